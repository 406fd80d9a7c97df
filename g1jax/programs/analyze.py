"""What `train/analyze.py` does: P and R of runs over their checkpoints, under other looks, and on other tests."""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from g1jax import settings
from g1jax.analysis import pages
from g1jax.analysis.appearance import AXES, check_axes, variants_along
from g1jax.analysis.checkpoint_play import FOLDER, CheckpointPlay, Setting
from g1jax.analysis.results import Analysis, CheckpointResult, RunAnalysis, TrialPoint, VariantPoint
from g1jax.analysis.transfer import Trial, game_of, kinship, trials_of
from g1jax.envs.core import Game
from g1jax.errors import EvaluationError, ExperimentError
from g1jax.evaluation import report
from g1jax.evaluation.lead_lag import lead_lag
from g1jax.evaluation.results import GameResult
from g1jax.evaluation.statistics import Interval, differences
from g1jax.files import require_writable
from g1jax.terminal import printable, printable_lines
from g1jax.training.saved_run import SavedRun, open_run
from g1jax.vlm import ConfigError

_FEW_POINTS = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """Perception and reasoning over the checkpoints of training runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of training runs; several are set side by side, such as G0 and G1."""
    looks: tuple[str, ...] | None = None
    """Also P under other looks, along these axes: palette, background, noise, jitter, distractors, cell_size. With no
    names, along all."""
    transfer: str = ""
    """Also other tests, with commas between: presets (`noisy,dark`), games (`swap`), both (`swap:noisy`), or `all`
    games."""
    games: str = ""
    """Only these of the runs' games, with commas between."""
    checkpoint: settings.CountOrNone | None = None
    """The step whose checkpoint looks and transfer are played with; each run's newest if not given."""
    episodes: settings.Episodes = 64
    """Of each game at each point."""
    steps: settings.Steps = 10
    """Of each episode: a point has episodes × steps states."""
    seed: settings.Seed = 0
    temperature: settings.Temperature = 1.0
    out: Path | None = None
    """The folder to write to; `evaluations/analysis-<runs>` if not given. What was played stays there, and the same
    settings play it no second time."""


def analyze(options: Options) -> Analysis:
    """Runs the program.

    Raises:
        EvaluationError, ExperimentError, LevelError, ConfigError: what cannot be done, in one line.
    """
    settings.check(options, EvaluationError)
    check_axes(axes := _axes(options))
    runs = _open(options.runs)
    games = _games(options, runs)
    at = {name: _step_of(name, run, options.checkpoint) for name, run in runs.items()}
    trials = trials_of(_split(options.transfer), games)
    setting = Setting(
        episodes=options.episodes, steps=options.steps, seed=options.seed, temperature=options.temperature
    )
    out = options.out or Path("evaluations") / f"analysis-{'-'.join(_file_name(name) for name in runs)}"
    files = pages
    require_writable(out, (files.DATA, files.MARKDOWN, files.PICTURE, report.FILE), EvaluationError, folders=[FOLDER])
    points = CheckpointPlay(out, setting, _tell)
    notes: list[str] = []
    experiments = [run.setup.experiment for run in runs.values()]
    found = []
    for name, run in runs.items():
        own = {game.id: game for game in run.setup.games if game.id in games}
        checkpoints = _moments(points, name, run, own, notes)
        curves = _curves(name, run, own, notes)
        leads = {game: lead_lag(of.get("perception", []), of.get("reasoning", [])) for game, of in curves.items()}
        looks = [p for game in own.values() for p in _along_axes(points, run, at[name], game, axes)]
        tested = [
            _trial(points, run, at[name], trial, game_of(trial, run.setup.experiment, experiments)) for trial in trials
        ]
        found.append(RunAnalysis(name, run, checkpoints, curves, leads, at[name], looks, tested))
    analysis = Analysis(setting, games, found, _differences(found, notes), notes)
    pages.write(out, analysis, points)
    print(printable_lines((out / pages.MARKDOWN).read_text("utf-8")))
    print(printable(f"In {out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_file()))}"))
    return analysis


# What to look at


def _axes(options: Options) -> list[str]:
    if options.looks is None:
        return []
    return [axis for names in options.looks for axis in _split(names)] or list(AXES)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(name).name).strip(".-") or "run"


def _open(folders: Sequence[Path]) -> dict[str, SavedRun]:
    """The runs by name: that of the folder, or the whole path where two folders have one name."""
    if not folders:
        raise EvaluationError("name at least one run's folder, such as runs/g1_multigame")
    for folder in folders:
        if not folder.is_dir():
            raise EvaluationError(f"no run at {folder}: there is no such folder")
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise EvaluationError("a run is named twice")
    names = [path.name for path in whole]
    return {
        name if names.count(name) == 1 else str(folder): open_run(folder)
        for name, folder in zip(names, folders, strict=True)
    }


def _games(options: Options, runs: Mapping[str, SavedRun]) -> list[str]:
    """The ids of the games to look at, in the order of the first run that learnt them.

    Raises:
        EvaluationError: a game is named that no run learnt, or the runs have no game in common and nothing else to do.
    """
    learnt = {name: [game.id for game in run.setup.games] for name, run in runs.items()}
    known = list(dict.fromkeys(game for games in learnt.values() for game in games))
    told = "; ".join(f"{name} learnt {', '.join(games)}" for name, games in learnt.items())
    if not options.transfer and not set.intersection(*map(set, learnt.values())):
        raise EvaluationError(
            f"runs of other games have nothing to be set side by side: {told}. Give --transfer=all to test each on all"
        )
    asked = _split(options.games)
    for game in asked:
        if game not in known:
            raise EvaluationError(f"games={game}: {told}; for other games there is --transfer={game}")
    return [game for game in known if game in asked or not asked]


def _step_of(name: str, run: SavedRun, asked: int | None) -> int:
    if asked is not None and asked not in run.steps:
        raise EvaluationError(f"{name} has no checkpoint {asked}; it keeps {', '.join(map(str, run.steps))}")
    return run.steps[-1] if asked is None else asked


def _tell(line: str) -> None:
    print(printable(f"playing {line}"), file=sys.stderr, flush=True)


# What is found


def _moments(
    points: CheckpointPlay, name: str, run: SavedRun, games: Mapping[str, Game[Any]], notes: list[str]
) -> list[CheckpointResult]:
    """What each kept checkpoint does. One that cannot be read is left out, and noted."""
    checkpoints = []
    for step in run.steps:
        try:
            own = {label: points.play(run, step, game) for label, game in games.items()}
            seeing = {label: points.play(run, step, game, sees=True) for label, game in games.items()}
        except ExperimentError as error:
            notes.append(f"{error}. It is left out.")
            continue
        checkpoints.append(CheckpointResult(step, own, seeing))
    if not checkpoints:
        raise EvaluationError(f"{name} has no checkpoint that can be read")
    if len(checkpoints) < _FEW_POINTS:
        e = run.setup.experiment
        notes.append(
            f"{name} has {len(checkpoints)} checkpoint{'s' * (len(checkpoints) > 1)} to look at (step "
            f"{', '.join(str(checkpoint.step) for checkpoint in checkpoints)} of {e.num_steps}): it keeps the newest "
            f"{e.log.keep} (log.keep), one every {e.log.checkpoint_every} steps. For more points, train with a larger --log.keep."
        )
    return checkpoints


def _curves(name: str, run: SavedRun, games: Mapping[str, Game[Any]], notes: list[str]) -> report.Curves:
    """What the run itself measured on the way, in its RL."""
    file = run.folder / report.METRICS
    curves = report.read_curves(file, may_be_none=True) if file.is_file() else {}
    curves = {label: curves[label] for label in games if label in curves}
    if not curves:
        notes.append(f"{name} has no curves of P and R of its own: they are measured in RL, and it has had none yet.")
    return curves


def _along_axes(
    points: CheckpointPlay, run: SavedRun, step: int, game: Game[Any], axes: Sequence[str]
) -> list[VariantPoint]:
    """P of a checkpoint under each value of the axes."""
    out = []
    own = points.play(run, step, game) if axes else None
    for look in [look for axis in axes for look in variants_along(game, axis)]:
        assert own is not None
        if look.why_not:
            out.append(VariantPoint(game.id, look, None, None))
            continue
        try:
            result = own if look.is_own else points.play(run, step, game, look=look)
        except ConfigError as error:  # such as cells that are no whole visual tokens
            out.append(VariantPoint(game.id, dataclasses.replace(look, why_not=str(error)), None, None))
            continue
        keys = ("perception",)
        sums = [{key: r.sums[key] for key in keys} for r in (result, own)]
        out.append(VariantPoint(game.id, look, result.figures, differences(sums[0], sums[1])["perception"]))
    return out


def _trial(points: CheckpointPlay, run: SavedRun, step: int, trial: Trial, game: Game[Any]) -> TrialPoint:
    kin = kinship(game, run.setup.games)
    try:
        return TrialPoint(trial, kin, points.play(run, step, game))
    except ConfigError as error:
        return TrialPoint(trial, kin, None, str(error))


def _differences(runs: Sequence[RunAnalysis], notes: list[str]) -> dict[str, dict[str, dict[str, Interval]]]:
    """Each later run minus the first, where both learnt a game at one level but for the words of the prompt."""
    first = runs[0].checkpoints[-1]
    out: dict[str, dict[str, dict[str, Interval]]] = {}
    for other in runs[1:]:
        last = other.checkpoints[-1]
        out[other.name] = {}
        for label in [label for label in last.own if label in first.own]:
            if _level(last.own[label]) != _level(first.own[label]):
                notes.append(f"{other.name} and {runs[0].name} learnt {label} at other levels: no paired difference.")
                continue
            found = differences(dict(last.own[label].sums), dict(first.own[label].sums))
            seeing = differences(dict(last.seeing[label].sums), dict(first.seeing[label].sums))
            out[other.name][label] = {**found, "seeing": seeing["reasoning"]}
    return out


def _level(result: GameResult) -> dict[str, Any]:
    return {key: value for key, value in result.level.items() if key != "prompt"}
