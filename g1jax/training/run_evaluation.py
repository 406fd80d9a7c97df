"""The evaluation of a run, compared with random play and the published results, and its training curves."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from g1jax.errors import EvaluationError
from g1jax.evaluation import Episodes, Player, Result, load, play, policy_player, random_player, report, result_of, save
from g1jax.evaluation.players import observation_of, prepared
from g1jax.evaluation.replay import replays_of
from g1jax.evaluation.tables import as_markdown
from g1jax.files import write_atomically
from g1jax.rl.observation import about as recorded
from g1jax.training.progress import Progress
from g1jax.training.run_folder import read_metrics
from g1jax.training.setup import Setup
from g1jax.training.steps import Constants, RunState, rollout_params
from g1jax.vlm import Params

_CURVES = ("play", "reward", "perception", "reasoning", "success", "format", "length")
_OVERALL = ("kl_reference", "entropy")
_RECORDED = 2  # episodes of each game to replay in the report
_SMOOTH = 0.1  # smoothing window as a share of the curve


def table_of(folder: Path, name: str) -> Path:
    """The file of an evaluation's table, which is written last."""
    return folder / "evaluation" / f"{name}.md"


def evaluate(
    setup: Setup,
    state: RunState,
    constants: Constants,
    *,
    name: str,
    num_episodes: int,
    folder: Path,
    progress: Progress,
    check: Callable[[], None],
) -> Result:
    """Evaluates the policy and random play by the paper's protocol; writes their results, a report and a table.

    The results go to `evaluation/<name>`, `evaluation/<name>_greedy` and `evaluation/random`, the table to
    `evaluation/<name>.md`, and the page with replays of the policy to `evaluation/report.html`. Both also show earlier
    evaluations of the run with as many episodes. `check` is called regularly, and may raise to stop the evaluation.
    """
    evaluation = setup.experiment.evaluation
    params = _params_of(setup, state, constants)
    temperatures = {name: evaluation.temperature} | ({f"{name}_greedy": 0.0} if evaluation.greedy else {})
    players = [
        policy_player(
            prepared(setup.policy, temperature, setup.games),
            params,
            constants.table,
            name=label,
            batch_size=num_episodes,
        )
        for label, temperature in temperatures.items()
    ]
    results, replays = [], []
    for player in [*players, random_player()]:
        num_recorded = _RECORDED if player is players[0] else 0
        played = _play_all(setup, progress, player, num_episodes, num_recorded, check)
        about: dict[str, Any] = {"name": player.name, "model": setup.experiment.model}
        about |= recorded(observation_of(player))
        if player.name in temperatures:
            about["temperature"] = temperatures[player.name]
        results.append(result_of(about, played))
        if jax.process_index() == 0:
            replays += replays_of(dict(played))
            save(results[-1], folder / "evaluation" / player.name)
    if jax.process_index() == 0:
        shown = _earlier(folder / "evaluation", results, progress) + results
        page = folder / "evaluation" / report.FILE
        write_atomically(page, report.as_html(shown, replays, _curves(folder, progress)))
        table = as_markdown(shown)
        write_atomically(table_of(folder, name), table)
        progress.results(table)
        progress.say(f"Report: {page}")
    return results[0]


def play_scores(setup: Setup, state: RunState, constants: Constants) -> dict[str, float]:
    """The mean score of a short evaluation, by the metric's name: `swap/play`. All processes call it."""
    e = setup.experiment.evaluation
    params = _params_of(setup, state, constants)
    policy = prepared(setup.policy, e.temperature, setup.games)
    player = policy_player(policy, params, constants.table, name="play", batch_size=e.play_episodes)
    played = {game.id: play(game, player, e.play_episodes, e.play_steps, setup.experiment.seed) for game in setup.games}
    return {f"{name}/play": float(episodes.score.sum(axis=1).mean()) for name, episodes in played.items()}


def _params_of(setup: Setup, state: RunState, constants: Constants) -> Params:
    """The model's params, laid out for generation as in RL."""
    return _rollout_params(setup.rl.learner, setup.rl.gathers_weights, state.trained, constants.frozen)


_rollout_params = jax.jit(rollout_params, static_argnums=(0, 1))


def _earlier(folder: Path, results: Sequence[Result], progress: Progress) -> list[Result]:
    """The evaluations after the cold start, and before the run became longer, that are comparable with these.

    One that is damaged is left out.
    """
    earlier, new = [], {result.name for result in results}
    steps = sorted(path.name for path in folder.glob("final*_step_*") if path.is_dir())
    for name in ("cold_start", "cold_start_greedy", *steps):
        if name in new or not (folder / name).is_dir():
            continue
        try:
            result = load(folder / name)
            earlier.append(dataclasses.replace(result, player={**result.player, "name": name}))
        except EvaluationError as error:
            progress.warn(f"{error}; left out of the table")
    return [result for result in earlier if result.protocol == results[0].protocol]


def _curves(folder: Path, progress: Progress) -> report.Curves | None:
    """The run's curves for the report. None, with a warning, if the metrics cannot be read."""
    try:
        return report.read_curves(folder, may_be_none=True) if (folder / report.METRICS).is_file() else None
    except EvaluationError as error:
        progress.warn(f"{error}; the report has no curves")
        return None


def _play_all(
    setup: Setup, progress: Progress, player: Player, num_episodes: int, num_recorded: int, check: Callable[[], None]
) -> Mapping[str, Episodes]:
    evaluation, played, seed = setup.experiment.evaluation, {}, setup.experiment.seed
    for game in setup.games:

        def show(done: int, total: int, label: str = f"evaluation of {player.name}: {game.id}") -> None:
            progress.part(label, done, total)
            check()

        played[game.id] = play(
            game, player, num_episodes, evaluation.steps, seed, num_recorded=num_recorded, on_progress=show
        )
    return played


def write_curves(folder: Path) -> Path | None:
    """Plots the run's metrics by game to `curves.png`; None if there are none."""
    lines = read_metrics(folder)
    if not lines:
        return None
    from matplotlib.figure import Figure  # not pyplot, whose backend depends on the user

    games = sorted({key.split("/")[0] for line in lines for key in line if "/" in key})
    names = [*(("loss",) if any("loss" in key for line in lines for key in line) else ()), *_CURVES, *_OVERALL]
    names = [name for name in names if any(_has(line, name, games) for line in lines)]
    columns = 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        for game in games if name not in _OVERALL else [""]:
            points = [(line["step"], line.get(f"{game}/{name}" if game else name)) for line in lines]
            known = [(step, value) for step, value in points if value is not None]
            if known:
                steps, values = zip(*known, strict=True)
                axis.plot(steps, values if name == "play" else _smoothed(values), label=game or None, linewidth=1.4)
        axis.set_title(name)
        if name == "play":  # scores of different games
            axis.set_yscale("symlog")
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    path = folder / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def _has(line: Mapping[str, Any], name: str, games: Sequence[str]) -> bool:
    return any(line.get(key) is not None for key in (name, *(f"{game}/{name}" for game in games)))


def _smoothed(values: Sequence[float]) -> list[float]:
    """A moving average over a tenth of the curve, truncated at its ends."""
    half = max(int(len(values) * _SMOOTH / 2), 0)
    windows = [values[max(i - half, 0) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
