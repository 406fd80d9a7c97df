"""Writes an analysis: analysis.json, analysis.md, analysis.png, and a report page."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from g1jax.analysis.checkpoint_play import CheckpointPlay
from g1jax.analysis.figure import draw
from g1jax.analysis.results import Analysis, RunAnalysis, VariantPoint
from g1jax.evaluation import report
from g1jax.evaluation.lead_lag import LeadLag, in_words
from g1jax.evaluation.report import GIVEN_PERCEPTION
from g1jax.evaluation.statistics import METRIC_LABELS, Interval
from g1jax.evaluation.tables import NONE, as_text, bold_if_significant, escape, table

FORMAT = 1
DATA, MARKDOWN, PICTURE = "analysis.json", "analysis.md", "analysis.png"
_TRANSFER_METRICS = ("score", "success", "perception", "reasoning")
_R_GIVEN = "R given perception"


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
        players.append(points.result(name, dict(last.own)))
        players.append(points.result(f"{name}, given perception", dict(last.given_perception)))
    for game, run in [(game, run) for game in analysis.games for run in analysis.runs]:
        if game in run.checkpoints[-1].own:
            label = game if len(analysis.runs) == 1 else f"{game}: {run.name}"
            curves[label], marks[label] = dict(run.curves.get(game, {})), run.points(game)
    (out / report.FILE).write_text(report.as_html(players, [], curves, marks, published=False), "utf-8")


# JSON


def as_json(analysis: Analysis) -> dict[str, Any]:
    """An analysis as JSON data."""
    return {
        "g1jax_analysis": FORMAT,
        "setting": dataclasses.asdict(analysis.setting),
        "games": list(analysis.games),
        "notes": list(analysis.notes),
        "runs": [_run_as_json(run) for run in analysis.runs],
        "differences_to_first": {
            name: {game: _metrics(metrics) for game, metrics in games.items()}
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
                        "own": _metrics(checkpoint.own[game].metrics),
                        "seeing": _metrics(checkpoint.given_perception[game].metrics),
                        "lost_to_misreading": checkpoint.lost(game).as_json(),
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
                "axis": point.variant.axis,
                "value": point.variant.value,
                "is_own": point.variant.is_own,
                "figures": None if point.metrics is None else _metrics(point.metrics),
                "perception_minus_own": None if point.difference is None else point.difference.as_json(),
                "why_not": point.variant.why_not,
            }
            for point in run.variants
        ],
        "transfer": [
            {
                "test": point.test.label,
                "kinship": point.kinship,
                "figures": None if point.result is None else _metrics(point.result.metrics),
                "level": None if point.result is None else point.result.level,
                "why_not": point.why_not,
            }
            for point in run.transfer
        ],
    }


def _lead_as_json(lead: LeadLag) -> dict[str, Any]:
    return {
        "perception_at": lead.perception_at,
        "reasoning_at": lead.reasoning_at,
        "lag_in_points": None if lead.lag is None else lead.lag.as_json(),
        "correlation": None if lead.correlation is None else lead.correlation.as_json(),
        "correlations": {str(lag): None if math.isnan(value) else value for lag, value in lead.correlations.items()},
    }


def _metrics(metrics: Mapping[str, Interval]) -> dict[str, Any]:
    return {key: metric.as_json() for key, metric in metrics.items()}


# Markdown


def as_markdown(analysis: Analysis) -> str:
    """A page: each game over the checkpoints, lead and lag, differences between runs, appearances, transfer."""
    setting, several = analysis.setting, len(analysis.runs) > 1
    lines = [f"# Perception and reasoning: {escape(', '.join(run.name for run in analysis.runs))}", ""]
    lines += [
        f"P: boards read exactly. R: moves with a reward above 0 on boards read exactly. {_R_GIVEN}: R when each "
        "response starts with the true perception. Lost: the success rate over all moves given the perception minus "
        "the rate without, paired by episode. "
        f"Each point: {setting.episodes} episodes of {setting.steps} steps, seed {setting.seed}, temperature "
        f"{setting.temperature:g}, with 95% bootstrap intervals over episodes.",
        "",
        *_bullets("", analysis.notes),
        *[""] * bool(analysis.notes),
    ]
    for game in analysis.games:
        rows = [
            row
            for run in analysis.runs
            if game in run.checkpoints[-1].own
            for row in _checkpoint_rows(run, game, named=several)
        ]
        head = [*["run"] * several, "step", "P", "R", _R_GIVEN, "lost", "score"]
        lines += [f"## {escape(game)}", "", *table(head, rows), ""]
        for run in analysis.runs:
            sentence = in_words(run.leads[game]) if game in run.leads else ""
            lines += [f"{f'{escape(run.name)}: ' if several else ''}{sentence}", ""] if sentence else []
    if several:
        lines += _differences(analysis)
    for run in analysis.runs:
        lines += _variants(run) if run.variants else []
    if any(run.transfer for run in analysis.runs):
        lines += _transfer(analysis.runs)
    return "\n".join(lines).rstrip() + "\n"


def _bullets(prefix: str, items: Iterable[str]) -> list[str]:
    return [f"- {prefix}{escape(item)}" for item in items]


def _checkpoint_rows(run: RunAnalysis, game: str, *, named: bool) -> list[list[str]]:
    rows = []
    for checkpoint in run.checkpoints:
        metrics = checkpoint.metrics(game)
        cells = [as_text(metrics[key], "reasoning") for key in ("perception", "reasoning", GIVEN_PERCEPTION)]
        lost = as_text(checkpoint.lost(game), "success", signed=True)
        rows.append(
            [*[run.name] * named, str(checkpoint.step), *cells, lost, as_text(checkpoint.own[game].metrics["score"])]
        )
    return rows


def _differences(analysis: Analysis) -> list[str]:
    first = analysis.runs[0]
    lines = [f"## Minus {escape(first.name)}, at the newest checkpoints", ""]
    lines += ["Paired by episode; bold: the interval excludes zero.", ""]
    keys = {"perception": "perception", "reasoning": "reasoning", GIVEN_PERCEPTION: "reasoning", "score": "score"}
    rows = []
    for name, games in analysis.differences.items():
        for game, found in games.items():
            cells = [bold_if_significant(as_text(found[k], kind, signed=True), found[k]) for k, kind in keys.items()]
            rows.append([name, game, *cells])
    return [*lines, *table(["run", "game", "P", "R", _R_GIVEN, "score"], rows), ""]


def _variants(run: RunAnalysis) -> list[str]:
    """P by game and value of each axis."""
    games = list(dict.fromkeys(point.game for point in run.variants))
    values = list(dict.fromkeys((point.variant.axis, point.variant.value) for point in run.variants))
    points = {(point.variant.axis, point.variant.value, point.game): point for point in run.variants}
    rows = []
    axes = list(dict.fromkeys(axis for axis, _ in values))
    for axis, value in sorted(values, key=lambda pair: axes.index(pair[0])):
        cells = [_variant_cell(points.get((axis, value, game))) for game in games]
        rows.append([axis, f"{value:g}" if isinstance(value, float) else str(value), *cells])
    reasons = dict.fromkeys(
        f"{point.game}, {point.variant.axis} {point.variant.value}: {point.variant.why_not}"
        for point in run.variants
        if point.variant.why_not
    )
    return [
        f"## P at other appearances: {escape(run.name)} at step {run.tested_at}",
        "",
        "One axis is changed at a time; boards and random keys stay the same. Own: the appearance in training. "
        "Bold: P differs from it, paired by episode.",
        "",
        *table(["axis", "value", *games], rows),
        "",
        *_bullets("Not shown: ", reasons),
        *[""] * bool(reasons),
    ]


def _variant_cell(point: VariantPoint | None) -> str:
    if point is None or point.metrics is None:
        return NONE
    cell = as_text(point.metrics["perception"], "perception")
    return f"{cell}, own" if point.variant.is_own else bold_if_significant(cell, point.difference)


def _transfer(runs: Sequence[RunAnalysis]) -> list[str]:
    """Score, successes, P and R of each run on each test."""
    rows, reasons = [], []
    for i, test in enumerate(point.test for point in runs[0].transfer):
        for run in runs:
            point = run.transfer[i]
            metrics = point.result.metrics if point.result is not None else {}
            cells = [as_text(metrics[key], key) if key in metrics else NONE for key in _TRANSFER_METRICS]
            rows.append([test.label, f"{run.name}, step {run.tested_at}", point.kinship, *cells])
            reasons += [f"{test.label}, {run.name}: {point.why_not}"] if point.why_not else []
    counts = {point.test.label: point.result.counts for run in runs for point in run.transfer if point.result}
    return [
        "## Transfer",
        "",
        f"Score: {'; '.join(f'{escape(label)} {escape(what)}' for label, what in counts.items())}.",
        "",
        *table(["test", "run", "relation", "score", METRIC_LABELS["success"], "P", "R"], rows),
        "",
        *_bullets("Not played: ", reasons),
    ]
