"""The paper's bootstrapping figure: P and R over training steps, with a column per game and a row per run."""

from pathlib import Path
from typing import Any

from g1jax.analysis.results import Analysis, RunAnalysis
from g1jax.evaluation.lead_lag import smoothed
from g1jax.evaluation.report import GIVEN_PERCEPTION

_LINES = {
    "perception": ("P: board read exactly", "#1f6feb", "o"),
    "reasoning": ("R: reward > 0 on boards read exactly", "#c2620a", "s"),
    GIVEN_PERCEPTION: ("R given the true perception", "#7a3fb5", "^"),
}
_LEGEND_TITLE = "markers: checkpoints, with 95% intervals; solid lines: the run's own metrics in RL, smoothed"
_PANEL = (3.5, 2.7)  # inches


def draw(path: Path, analysis: Analysis) -> None:
    """Writes the figure."""
    from matplotlib.figure import Figure  # not pyplot, which uses the user's backend
    from matplotlib.lines import Line2D

    rows, columns = len(analysis.runs), len(analysis.games)
    size = (max(_PANEL[0] * columns, 7.0), _PANEL[1] * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for run, line in zip(analysis.runs, axes, strict=True):
        for game, axis in zip(analysis.games, line, strict=True):
            _panel(axis, run, game)
        line[0].set_ylabel(run.name, fontsize=11)
    for game, axis in zip(analysis.games, axes[0], strict=True):
        axis.set_title(game, fontsize=11)
    for axis in axes[-1]:
        axis.set_xlabel("training step")
    keys = [
        Line2D([], [], color=color, marker=marker, markersize=5, linewidth=1.3, label=label)
        for label, color, marker in _LINES.values()
    ]
    legend = figure.legend(
        handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=9, title=_LEGEND_TITLE
    )
    legend.get_title().set(fontsize=8.5, color="0.35")
    figure.savefig(path, dpi=130)


def _panel(axis: Any, run: RunAnalysis, game: str) -> None:
    """One run in one game: its own metrics as lines, its checkpoints as points with intervals."""
    axis.set_ylim(-0.03, 1.03)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if game not in run.checkpoints[-1].own:
        axis.text(0.5, 0.5, "not trained", transform=axis.transAxes, ha="center", va="center", color="0.5")
        return
    for key, (_, color, marker) in _LINES.items():
        curve = run.curves.get(game, {}).get(key, [])
        if curve:
            steps, values = zip(*curve, strict=True)
            axis.plot(steps, values, color=color, alpha=0.18, linewidth=0.8)
            axis.plot(steps, smoothed(values), color=color, linewidth=1.3)
        points = run.points(game).get(key, [])
        if points:
            steps, means, lows, highs = zip(*points, strict=True)
            below = [mean - low for mean, low in zip(means, lows, strict=True)]
            above = [high - mean for mean, high in zip(means, highs, strict=True)]
            axis.fill_between(steps, lows, highs, color=color, alpha=0.14, linewidth=0)
            axis.errorbar(
                steps, means, (below, above), color=color, marker=marker, markersize=4.5, capsize=2.5, linewidth=1.1,
                linestyle="--", zorder=3,
            )  # fmt: skip
    cold = run.run.setup.experiment.cold_start.steps
    if 0 < cold < run.run.setup.experiment.num_steps and any(checkpoint.step >= cold for checkpoint in run.checkpoints):
        axis.axvline(cold, color="0.55", linewidth=0.9, linestyle=":")
        axis.annotate("RL", (cold, 1.0), (3, -2), textcoords="offset points", fontsize=8, color="0.4", va="top")
