"""An analysis to read and to compute with: analysis.json, analysis.md, analysis.png, and a report page."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from g1jax.analysis.checkpoint_play import CheckpointPlay
from g1jax.analysis.figure import draw
from g1jax.analysis.results import Analysis, RunAnalysis, VariantPoint
from g1jax.evaluation import report
from g1jax.evaluation.lead_lag import LeadLag, in_words
from g1jax.evaluation.report import SEEING
from g1jax.evaluation.statistics import FIGURES, Interval
from g1jax.evaluation.tables import NONE, as_text, bold_if_clear, escape, table

FORMAT = 1
DATA, MARKDOWN, PICTURE = "analysis.json", "analysis.md", "analysis.png"
_SHOWN = ("score", "success", "perception", "reasoning")


def write(out: Path, analysis: Analysis, points: CheckpointPlay) -> None:
    """Writes all files."""
    out.mkdir(parents=True, exist_ok=True)
    (out / DATA).write_text(json.dumps(as_json(analysis), indent=1, allow_nan=False) + "\n", "utf-8")
    (out / MARKDOWN).write_text(as_markdown(analysis), "utf-8")
    draw(out / PICTURE, analysis)
    players, curves, marks = [], {}, {}
    for run in analysis.runs:
        last = run.checkpoints[-1]
        name = f"{run.name}, step {last.step}"
        players += [points.result(name, dict(last.own)), points.result(f"{name}, seeing", dict(last.seeing))]
    for game, run in [(game, run) for game in analysis.games for run in analysis.runs]:
        if game in run.checkpoints[-1].own:
            label = game if len(analysis.runs) == 1 else f"{game}: {run.name}"
            curves[label], marks[label] = dict(run.curves.get(game, {})), run.points(game)
    report.write(out / report.FILE, players, [], curves, marks, published=False)


# JSON


def as_json(analysis: Analysis) -> dict[str, Any]:
    """An analysis as JSON has it."""
    return {
        "g1jax_analysis": FORMAT,
        "setting": dataclasses.asdict(analysis.setting),
        "games": list(analysis.games),
        "notes": list(analysis.notes),
        "runs": [_run_as_json(run) for run in analysis.runs],
        "differences_to_first": {
            name: {game: _figures(figures) for game, figures in games.items()}
            for name, games in analysis.differences.items()
        },
    }


def _run_as_json(run: RunAnalysis) -> dict[str, Any]:
    return {
        "name": run.name,
        "checkpoints": [
            {
                "step": checkpoint.step,
                "games": {
                    game: {
                        "own": _figures(checkpoint.own[game].figures),
                        "seeing": _figures(checkpoint.seeing[game].figures),
                        "lost_to_misreading": _interval(checkpoint.lost(game)),
                    }
                    for game in checkpoint.own
                },
            }
            for checkpoint in run.checkpoints
        ],
        "curves": run.curves,
        "lead_lag": {game: _lead_as_json(lead) for game, lead in run.leads.items()},
        "tested_at": run.tested_at,
        "looks": [
            {
                "game": point.game,
                "axis": point.look.axis,
                "value": point.look.value,
                "is_own": point.look.is_own,
                "figures": None if point.figures is None else _figures(point.figures),
                "perception_minus_own": None if point.difference is None else _interval(point.difference),
                "why_not": point.look.why_not,
            }
            for point in run.looks
        ],
        "transfer": [
            {
                "test": point.trial.label,
                "kinship": point.kinship,
                "figures": None if point.result is None else _figures(point.result.figures),
                "level": None if point.result is None else point.result.level,
                "why_not": point.why_not,
            }
            for point in run.trials
        ],
    }


def _lead_as_json(lead: LeadLag) -> dict[str, Any]:
    return {
        "perception_at": lead.perception_at,
        "reasoning_at": lead.reasoning_at,
        "lag_in_points": None if lead.lag is None else _interval(lead.lag),
        "correlation": None if lead.correlation is None else _interval(lead.correlation),
        "correlations": {str(lag): None if math.isnan(value) else value for lag, value in lead.correlations.items()},
    }


def _figures(figures: Mapping[str, Interval]) -> dict[str, Any]:
    return {key: _interval(figure) for key, figure in figures.items()}


def _interval(figure: Interval) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in dataclasses.asdict(figure).items()}


# Markdown


def as_markdown(analysis: Analysis) -> str:
    """A page: each game over the checkpoints, what leads, runs against each other, looks, other tests."""
    setting, several = analysis.setting, len(analysis.runs) > 1
    lines = [f"# Perception and reasoning: {escape(', '.join(run.name for run in analysis.runs))}", ""]
    lines += [
        "P: boards read exactly. R: moves that earn something where the board is read exactly. R seeing: the same "
        "with the true perception written before the policy goes on. Lost: by how much more of all moves then earn "
        "something than without, paired by episode. "
        f"Each point: {setting.episodes} episodes of {setting.steps} steps, seed {setting.seed}, temperature "
        f"{setting.temperature:g}, with 95% bootstrap intervals over episodes.",
        "",
        *(f"- {escape(note)}" for note in analysis.notes),
        *[""] * bool(analysis.notes),
    ]
    for game in analysis.games:
        rows = [
            row for run in analysis.runs if game in run.checkpoints[-1].own for row in _moment_rows(run, game, several)
        ]
        head = [*["run"] * several, "step", "P", "R", "R seeing", "lost", "score"]
        lines += [f"## {escape(game)}", "", *table(head, rows), ""]
        for run in analysis.runs:
            told = in_words(run.leads[game]) if game in run.leads else ""
            lines += [f"{f'{escape(run.name)}: ' if several else ''}{told}", ""] if told else []
    if several:
        lines += _differences(analysis)
    for run in analysis.runs:
        lines += _looks(run) if run.looks else []
    if any(run.trials for run in analysis.runs):
        lines += _trials(analysis.runs)
    return "\n".join(lines).rstrip() + "\n"


def _moment_rows(run: RunAnalysis, game: str, named: bool) -> list[list[str]]:
    rows = []
    for checkpoint in run.checkpoints:
        figures = checkpoint.figures(game)
        cells = [as_text(figures[key], "reasoning") for key in ("perception", "reasoning", SEEING)]
        lost = as_text(checkpoint.lost(game), "success", signed=True)
        rows.append(
            [*[run.name] * named, str(checkpoint.step), *cells, lost, as_text(checkpoint.own[game].figures["score"])]
        )
    return rows


def _differences(analysis: Analysis) -> list[str]:
    first = analysis.runs[0]
    lines = [f"## Minus {escape(first.name)}, at the newest checkpoints", ""]
    lines += ["Paired by episode; bold: the interval leaves out zero.", ""]
    keys = ("perception", "reasoning", SEEING, "score")
    rows = []
    for name, games in analysis.differences.items():
        for game, figures in games.items():
            told = [_difference(figures[key], "reasoning" if key == SEEING else key) for key in keys]
            rows.append([name, game, *told])
    return [*lines, *table(["run", "game", "P", "R", "R seeing", "score"], rows), ""]


def _difference(difference: Interval, key: str) -> str:
    return bold_if_clear(as_text(difference, key, signed=True), difference)


def _looks(run: RunAnalysis) -> list[str]:
    """P by game and value of each axis."""
    games = list(dict.fromkeys(point.game for point in run.looks))
    values = list(dict.fromkeys((point.look.axis, point.look.value) for point in run.looks))
    cells = {(point.look.axis, point.look.value, point.game): point for point in run.looks}
    rows = []
    axes = list(dict.fromkeys(axis for axis, _ in values))
    for axis, value in sorted(values, key=lambda pair: axes.index(pair[0])):
        told = [_look_cell(cells.get((axis, value, game))) for game in games]
        rows.append([axis, f"{value:g}" if isinstance(value, float) else str(value), *told])
    reasons = dict.fromkeys(
        f"{point.game}, {point.look.axis} {point.look.value}: {point.look.why_not}"
        for point in run.looks
        if point.look.why_not
    )
    return [
        f"## P under other looks: {escape(run.name)} at step {run.tested_at}",
        "",
        "One axis is changed at a time, the boards and their chance stay. Own: what the run was trained on. "
        "Bold: P differs from that, paired by episode.",
        "",
        *table(["axis", "value", *games], rows),
        "",
        *(f"- Not shown: {escape(reason)}" for reason in reasons),
        *[""] * bool(reasons),
    ]


def _look_cell(point: VariantPoint | None) -> str:
    if point is None or point.figures is None:
        return NONE
    told = as_text(point.figures["perception"], "perception")
    return f"{told}, own" if point.look.is_own else bold_if_clear(told, point.difference)


def _trials(runs: Sequence[RunAnalysis]) -> list[str]:
    """Score, successes, P and R of each run on each test."""
    rows, reasons = [], []
    for i, trial in enumerate(point.trial for point in runs[0].trials):
        for run in runs:
            point = run.trials[i]
            figures = point.result.figures if point.result is not None else {}
            cells = [as_text(figures[key], key) if key in figures else NONE for key in _SHOWN]
            rows.append([trial.label, f"{run.name}, step {run.tested_at}", point.kinship, *cells])
            reasons += [f"{trial.label}, {run.name}: {point.why_not}"] if point.why_not else []
    counts = {point.trial.label: point.result.counts for run in runs for point in run.trials if point.result}
    return [
        "## Transfer",
        "",
        f"Score: {'; '.join(f'{escape(label)} {escape(what)}' for label, what in counts.items())}.",
        "",
        *table(["test", "run", "it is", "score", FIGURES["success"], "P", "R"], rows),
        "",
        *(f"- Not played: {escape(reason)}" for reason in reasons),
    ]
