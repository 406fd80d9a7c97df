"""The program `g1jax analyze`: P and R of runs over checkpoints, under other appearances, and on other games."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from g1jax import settings
from g1jax.analysis import pages
from g1jax.analysis.appearance import AXES, check_axes, variants_along
from g1jax.analysis.checkpoint_play import FOLDER, CheckpointPlay, Setting
from g1jax.analysis.results import Analysis, CheckpointResult, RunAnalysis, TransferPoint, VariantPoint
from g1jax.analysis.transfer import TransferTest, game_of, kinship, transfer_tests
from g1jax.envs.core import Game
from g1jax.errors import EvaluationError, ExperimentError, LevelError
from g1jax.evaluation import report
from g1jax.evaluation.lead_lag import lead_lag
from g1jax.evaluation.statistics import Interval, differences
from g1jax.files import require_writable
from g1jax.programs import command_line
from g1jax.programs.machine import all_devices
from g1jax.programs.shared import folder_name, print_results, print_status, split_names
from g1jax.rl.observation import about
from g1jax.training.bucket import local_copy
from g1jax.training.saved_run import SavedRun, open_run
from g1jax.vlm import ConfigError

_FEW_POINTS = 5


DESCRIPTION = """Analyzes perception and reasoning over training runs: which one leads, appearance, transfer.

    {command} runs/g1_multigame
    {command} runs/g0_multigame runs/g1_multigame --out=evaluations/g0_g1
    {command} runs/g1_swap --looks --transfer=noisy,dark,shisen_sho --episodes=64 --steps=10
    {command} runs/g1_swap --looks=noise,cell_size --checkpoint=120

Writes analysis.json, analysis.md, analysis.png and report.html. Points played before with the same settings are read
from the output folder, so a running job can be analyzed repeatedly.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Perception and reasoning over the checkpoints of training runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of training runs; several are compared, such as G0 and G1."""
    looks: tuple[str, ...] | None = None
    """Also P under other appearances, along these axes: palette, background, noise, jitter, distractors, cell_size.
    Without names: all axes."""
    transfer: str = ""
    """Also other tests, comma-separated: presets (`noisy,dark`), games (`swap`), both (`swap:noisy`), or `all`."""
    games: str = ""
    """Only these of the runs' games, comma-separated."""
    checkpoint: settings.CountOrNone | None = None
    """The step of the checkpoint for looks and transfer. Default: each run's newest."""
    episodes: settings.Episodes = 64
    """Episodes of each game at each point."""
    steps: settings.Steps = 10
    """Steps of each episode: a point has episodes × steps states."""
    seed: settings.Seed = 0
    """Seed of the boards and of the sampling."""
    temperature: settings.Temperature = 1.0
    """Sampling temperature of the policies. 0: greedy."""
    out: Path | None = None
    """The output folder. Default: `evaluations/analysis-<runs>`. Points played before with the same settings are read
    from it."""


def main(arguments: Sequence[str], command: str) -> int:
    """Runs the program; returns the exit status."""
    description = DESCRIPTION.format(command=command)
    work, interrupted = all_devices()(analyze), "interrupted; finished points are kept"
    return command_line.main("analyze", Options, work, arguments, description, command, interrupted=interrupted)


def analyze(options: Options) -> Analysis:
    """Runs the program.

    Raises:
        EvaluationError, ExperimentError, LevelError, ConfigError: an option is invalid or the analysis fails; the
            message is one line.
    """
    settings.check(options, EvaluationError)
    check_axes(axes := _axes(options))
    runs = _open(options.runs)
    games = _games(options, runs)
    tested_at = {name: _step_of(name, run, options.checkpoint) for name, run in runs.items()}
    tests = transfer_tests(split_names(options.transfer), games)
    setting = Setting(
        episodes=options.episodes, steps=options.steps, seed=options.seed, temperature=options.temperature
    )
    names = "-".join(folder_name(Path(name).name, "run") for name in runs)
    out = options.out or Path("evaluations") / f"analysis-{names}"
    require_writable(out, (pages.DATA, pages.MARKDOWN, pages.PICTURE, report.FILE), EvaluationError, folders=[FOLDER])
    points = CheckpointPlay(out, setting, lambda line: print_status(f"playing {line}"))
    notes: list[str] = []
    experiments = [run.setup.experiment for run in runs.values()]
    analyses = []
    for name, run in runs.items():
        own = {game.id: game for game in run.setup.games if game.id in games}
        checkpoints = _play_checkpoints(points, name, run, own, notes)
        curves = _curves(name, run, own, notes)
        leads = {game: lead_lag(of.get("perception", []), of.get("reasoning", [])) for game, of in curves.items()}
        step = tested_at[name]
        variants = [point for game in own.values() for point in _along_axes(points, run, step, game, axes)]
        transfer = [
            _play_test(points, run, step, test, game_of(test, run.setup.experiment, experiments)) for test in tests
        ]
        analyses.append(RunAnalysis(name, run, checkpoints, curves, leads, step, variants, transfer))
    analysis = Analysis(setting, games, analyses, _differences(analyses, notes), notes)
    pages.write(out, analysis, points)
    print_results(out, pages.MARKDOWN)
    return analysis


# Options


def _axes(options: Options) -> list[str]:
    if options.looks is None:
        return []
    return [axis for names in options.looks for axis in split_names(names)] or list(AXES)


def _open(folders: Sequence[Path]) -> dict[str, SavedRun]:
    """The runs by the name of their folder, or by its path where two folders have the same name."""
    EvaluationError.require(len(folders) > 0, "name at least one run's folder, such as runs/g1_multigame")
    folders = [local_copy(folder) for folder in folders]
    for folder in folders:
        EvaluationError.require(folder.is_dir(), f"no run at {folder}: there is no such folder")
    whole = [folder.resolve() for folder in folders]
    EvaluationError.require(len(set(whole)) == len(whole), "a run is named twice")
    names = [path.name for path in whole]
    return {
        name if names.count(name) == 1 else str(folder): open_run(folder)
        for name, folder in zip(names, folders, strict=True)
    }


def _games(options: Options, runs: Mapping[str, SavedRun]) -> list[str]:
    """The ids of the games to analyze, in the order of the first run trained on them.

    Raises:
        EvaluationError: no run was trained on a requested game, or the runs share no game and there is no transfer.
    """
    trained = {name: [game.id for game in run.setup.games] for name, run in runs.items()}
    known = list(dict.fromkeys(game for games in trained.values() for game in games))
    summary = "; ".join(f"{name} was trained on {', '.join(games)}" for name, games in trained.items())
    if not options.transfer and not set.intersection(*map(set, trained.values())):
        raise EvaluationError(
            f"the runs have no game in common: {summary}. Give --transfer=all to test each on all games"
        )
    requested = split_names(options.games)
    for game in requested:
        if game not in known:
            raise EvaluationError(f"games={game}: {summary}; for other games use --transfer={game}")
    return [game for game in known if game in requested or not requested]


def _step_of(name: str, run: SavedRun, requested: int | None) -> int:
    if requested is not None and requested not in run.steps:
        raise EvaluationError(f"{name} has no checkpoint {requested}; it keeps {', '.join(map(str, run.steps))}")
    return run.steps[-1] if requested is None else requested


# Parts of the analysis


def _play_checkpoints(
    points: CheckpointPlay, name: str, run: SavedRun, games: Mapping[str, Game[Any]], notes: list[str]
) -> list[CheckpointResult]:
    """The results of each kept checkpoint. Unreadable ones are left out, with a note."""
    checkpoints = []
    if shown := about(run.setup.policy.observation):
        notes.append(f"{name} is shown {', '.join(shown['observation'])}.")
    for step in run.steps:
        try:
            own = {label: points.play(run, step, game) for label, game in games.items()}
            given = {label: points.play(run, step, game, given_perception=True) for label, game in games.items()}
        except ExperimentError as error:
            notes.append(f"{error}. It is left out.")
            continue
        checkpoints.append(CheckpointResult(step, own, given))
    EvaluationError.require(len(checkpoints) > 0, f"{name} has no checkpoint that can be read")
    if len(checkpoints) < _FEW_POINTS:
        e = run.setup.experiment
        notes.append(
            f"{name} has {len(checkpoints)} checkpoint{'s' * (len(checkpoints) > 1)} (step "
            f"{', '.join(str(checkpoint.step) for checkpoint in checkpoints)} of {e.num_steps}): it keeps the newest "
            f"{e.log.keep} (log.keep), one every {e.log.checkpoint_every} steps. For more points, train with a larger "
            "--log.keep."
        )
    return checkpoints


def _curves(name: str, run: SavedRun, games: Mapping[str, Game[Any]], notes: list[str]) -> report.Curves:
    """The run's own P and R, measured during RL."""
    file = run.folder / report.METRICS
    curves = report.read_curves(file, may_be_none=True) if file.is_file() else {}
    curves = {label: curves[label] for label in games if label in curves}
    if not curves:
        notes.append(f"{name} has no curves of P and R of its own: they are measured in RL, which it has not started.")
    return curves


def _along_axes(
    points: CheckpointPlay, run: SavedRun, step: int, game: Game[Any], axes: Sequence[str]
) -> list[VariantPoint]:
    """P of a checkpoint under each value of the axes."""
    found = []
    own = points.play(run, step, game) if axes else None
    for variant in [variant for axis in axes for variant in variants_along(game, axis)]:
        assert own is not None
        if variant.why_not:
            found.append(VariantPoint(game.id, variant, None, None))
            continue
        try:
            result = own if variant.is_own else points.play(run, step, game, variant=variant)
        except ConfigError as error:  # for example, a prompt that is too long
            found.append(VariantPoint(game.id, dataclasses.replace(variant, why_not=str(error)), None, None))
            continue
        varied, baseline = ({"perception": r.sums["perception"]} for r in (result, own))
        found.append(VariantPoint(game.id, variant, result.metrics, differences(varied, baseline)["perception"]))
    return found


def _play_test(points: CheckpointPlay, run: SavedRun, step: int, test: TransferTest, game: Game[Any]) -> TransferPoint:
    relation = kinship(game, run.setup.games)
    try:
        return TransferPoint(test, relation, points.play(run, step, game))
    except (ConfigError, LevelError) as error:
        return TransferPoint(test, relation, None, str(error))


def _differences(runs: Sequence[RunAnalysis], notes: list[str]) -> dict[str, dict[str, dict[str, Interval]]]:
    """Each later run minus the first, for games trained at the same level."""
    first = runs[0].checkpoints[-1]
    out: dict[str, dict[str, dict[str, Interval]]] = {}
    for other in runs[1:]:
        last = other.checkpoints[-1]
        out[other.name] = {}
        for label in [label for label in last.own if label in first.own]:
            if last.own[label].level != first.own[label].level:
                names = f"{other.name} and {runs[0].name}"
                notes.append(f"{names} were trained on {label} at different levels: no paired difference.")
                continue
            found = differences(dict(last.own[label].sums), dict(first.own[label].sums))
            given = differences(dict(last.given_perception[label].sums), dict(first.given_perception[label].sums))
            out[other.name][label] = {**found, report.GIVEN_PERCEPTION: given["reasoning"]}
    return out
