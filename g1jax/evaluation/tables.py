"""Results in Markdown: scores next to the paper's, every metric of every game, and paired differences."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from g1jax import envs
from g1jax.envs.batch import EPISODE_STEPS
from g1jax.envs.core import describe_level
from g1jax.evaluation.results import Result, num_paired
from g1jax.evaluation.statistics import METRIC_LABELS, Interval
from g1jax.terminal import one_line

PUBLISHED_GAMES = ("game_2048", "shisen_sho", "shisen_sho_cifar10", "swap")
PUBLISHED: Mapping[str, tuple[float, float, float, float]] = {
    "Random": (701, 0.4, 0.4, 1),
    "Qwen2.5-VL-7B": (246, 1.9, 0.4, 2),
    "Qwen2.5-VL-72B": (243, 2.6, 0.8, 6),
    "GPT-4o": (620, 1.5, 4.7, 1),
    "o1": (539, 3.9, 5.4, 4),
    "Claude-3.7-Sonnet-Thinking": (892, 15.3, 8.7, 43),
    "G0-7B": (759, 12.8, 8.0, 5),
    "G1-7B": (1070, 17.5, 14.1, 78),
}
"""The table of arXiv 2505.13426, by player, in the order of PUBLISHED_GAMES: 10 environments × 100 steps."""

PUBLISHED_NOTE = (
    "Published scores are from the paper (arXiv 2505.13426; 10 environments of 100 steps) and were not run here. They "
    "are shown only for the same protocol: one board of Shisen-Sho, CIFAR-10 images. Whether 2048's include fresh "
    "boards is unknown."
)
RATES = ("cleared", "success", "perception", "reasoning", "cells", "format", "legal", "unreadable")
NONE = "–"
"""The cell of an unknown value."""

_SPECIAL = re.compile(r"[\\`*\[\]<>&|~#$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is plain text
_BLOCK = re.compile(r"^(?:[-+](?=[\s-]|$)|(?<!\d)(?P<number>\d{1,9})(?=[.)](?:\s|$)))")

FILE = "results.md"


def as_markdown(results: Sequence[Result]) -> str:
    """A page: scores next to the published ones, then all metrics of each game."""
    labels = list(dict.fromkeys(label for result in results for label in result.games))
    columns = score_columns(results)
    head = ["player", *(column.title for column in columns)]
    lines = ["# Scores", "", *_about(results, columns), "", *table(head, score_rows(results, columns)), ""]
    for label in labels:
        played = [result for result in results if label in result.games]
        head = ["metric", *(result.title for result in played)]
        lines += [f"## {escape(label)}", "", *table(head, metric_rows(played, label)), ""]
    return "\n".join(lines)


@dataclass(frozen=True)
class Column:
    """A score of one game."""

    title: str
    label: str
    metric: str
    is_published: bool
    """Whether the paper's score has the same protocol; only then is it shown next to ours."""


def score_columns(results: Sequence[Result]) -> list[Column]:
    """The score columns of every game: over all steps and, where the paper scores that, of one board."""
    columns = []
    for label in dict.fromkeys(label for result in results for label in result.games):
        played = [result for result in results if label in result.games]
        has_board = any("board" in result.games[label].metrics for result in played)
        is_paper = all(_is_paper(result, label) for result in played)
        columns.append(Column(label, label, "score", is_paper and not has_board))
        if has_board:
            columns.append(Column(f"{label}, one board", label, "board", is_paper))
    return columns


def _is_paper(result: Result, label: str) -> bool:
    """Whether a game was played under the paper's protocol: its level, its images, 100 steps, nothing given."""
    is_alone = not result.player.get("sees") and "caption" not in result.observation
    if label not in PUBLISHED_GAMES or result.protocol["steps"] != EPISODE_STEPS or not is_alone:
        return False
    level, own = result.games[label].level, describe_level(envs.make(label))
    known = {**own, "images": "cifar10"} if "images" in own else own
    return all(level.get(key, value) == value for key, value in known.items())


def _about(results: Sequence[Result], columns: Sequence[Column]) -> list[str]:
    protocols = list(dict.fromkeys(tuple(result.protocol.items()) for result in results))
    ours = "; ".join(", ".join(f"{escape(key)} {value}" for key, value in protocol) for protocol in protocols)
    counts = {label: game.counts for result in results for label, game in result.games.items()}
    return [
        f"Means with 95% bootstrap intervals over episodes ({ours}). "
        f"Counted: {', '.join(f'{escape(label)} {escape(what)}' for label, what in counts.items())}.",
        *([PUBLISHED_NOTE] if any(column.is_published for column in columns) else []),
    ]


def score_rows(results: Sequence[Result], columns: Sequence[Column], *, published: bool = True) -> list[list[str]]:
    """A row per player: ours, then with `published` the paper's, if any column has its protocol."""
    rows = []
    for result in results:
        games = [result.games.get(column.label) for column in columns]
        metrics = [game and game.metrics.get(column.metric) for game, column in zip(games, columns, strict=True)]
        rows.append([result.title, *(as_text(metric) if metric else NONE for metric in metrics)])
    if published and any(column.is_published for column in columns):
        for player, scores in PUBLISHED.items():
            known = dict(zip(PUBLISHED_GAMES, scores, strict=True))
            cells = [f"{known[column.label]:g}" if column.is_published else NONE for column in columns]
            rows.append([f"{player} (published, not run)", *cells])
    return rows


def metric_rows(results: Sequence[Result], label: str) -> list[list[str]]:
    """A row per metric of one game: its label, and each player's value."""
    rows = []
    for key, title in METRIC_LABELS.items():
        metrics = [result.games[label].metrics.get(key) for result in results]
        if any(metrics):
            rows.append([title, *(NONE if metric is None else as_text(metric, key) for metric in metrics)])
    return rows


def differences_as_markdown(ours: Result, theirs: Result, found: Mapping[str, Mapping[str, Interval]]) -> str:
    """Paired differences, a table per game; bold where the interval excludes zero."""
    lines = [f"# {escape(ours.title)} minus {escape(theirs.title)}", ""]
    counts, paired = [result.protocol["episodes"] for result in (ours, theirs)], num_paired(ours, theirs)
    over = "" if counts == [paired] * 2 else f" over the first {paired} episodes, of {counts[0]} and {counts[1]}"
    lines += [f"Paired by episode{over}, with 95% bootstrap intervals; bold: the interval excludes zero.", ""]
    for label, metrics in found.items():
        rows = [
            [METRIC_LABELS[key], bold_if_significant(as_text(metric, key, signed=True), metric)]
            for key, metric in metrics.items()
        ]
        lines += [f"## {escape(label)}", "", *table(["metric", "difference"], rows), ""]
    return "\n".join(lines)


def as_text(metric: Interval, key: str = "score", *, signed: bool = False) -> str:
    """A metric as text: `706 (700–711)`, `12.3% (11.9–12.8)`; signed, `+0.40 (+0.31 to +0.49)`."""
    if math.isnan(metric.mean):
        return NONE
    scale = 100 if key in RATES else 1
    digits = 1 if key in RATES else 0 if abs(metric.mean) >= 100 else 2
    sign = "+" if signed else ""
    mean, low, high = (f"{value * scale:{sign}.{digits}f}" for value in (metric.mean, metric.low, metric.high))
    percent = "%" if key in RATES else ""
    return f"{mean}{percent} ({low}{' to ' if signed or metric.low < 0 else '–'}{high})"


class Bold(str):
    """A cell in bold type."""


def bold_if_significant(cell: str, difference: Interval | None) -> str:
    """A cell, bold if the interval of the difference excludes zero."""
    return Bold(cell) if difference is not None and (difference.low > 0 or difference.high < 0) else cell


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, with cells escaped."""
    lines = [" | ".join(map(_cell, row)) for row in (head, *rows)]
    return [f"| {line} |" for line in (lines[0], " | ".join(["---"] * len(head)), *lines[1:])]


def _cell(cell: str) -> str:
    return f"**{escape(cell)}**" if isinstance(cell, Bold) else escape(cell)


def escape(text: str) -> str:
    """The text on one line, with markup, HTML, cell separators and control characters escaped for Markdown."""
    flat = _SPECIAL.sub(r"\\\g<0>", one_line(text))
    return _BLOCK.sub(lambda match: f"{match[0]}\\" if match["number"] else f"\\{match[0]}", flat)
