"""The report: a self-contained HTML file that shows what a player saw, thought and did.

Text from models and files is untrusted. It is embedded as JSON with every `<` escaped and displayed as text only. The
page's Content-Security-Policy allows only its own script, by hash, and no connections.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from g1jax.errors import EvaluationError, G1Error
from g1jax.evaluation import tables
from g1jax.evaluation.lead_lag import in_words, lead_lag
from g1jax.evaluation.results import Result
from g1jax.untrusted import name_of, read_json_lines

FILE = "report.html"
METRICS = "metrics.jsonl"
_MAX_LINE = 2**20  # bytes
TEXT_BYTES = 2_500_000
"""The size limit of all responses in a report together; the longest are truncated to fit."""

PLAY = "play"
"""The score of a run's short evaluations, plotted on its own."""

CURVES = {
    "perception": "P, board read exactly",
    "reasoning": "R, reward > 0 where read exactly",
    "reward": "reward",
    PLAY: "score in play",
}
"""The metrics of a training run that are plotted, in this order."""

GIVEN_PERCEPTION = "seeing"
POINTS = {GIVEN_PERCEPTION: "R given the true perception"}
"""Further metrics that are plotted for analyzed checkpoints."""

Curves = dict[str, dict[str, list[tuple[float, float]]]]
"""By game, then by key of CURVES: (step, value)."""

Point = tuple[float, float, float, float]
"""(step, mean, low, high), none of them NaN."""

Points = dict[str, dict[str, list[Point]]]
"""By game, then by key of CURVES and POINTS."""

_PAGE = Path(__file__).parent / "page"


def as_html(
    results: Sequence[Result],
    replays: Sequence[dict[str, Any]],
    curves: Curves | None = None,
    points: Points | None = None,
    *,
    published: bool = True,
) -> str:
    """A report, as an HTML page, of results, replays, the curves of a training run, and points with intervals.

    `published` adds the paper's results where the protocol is the same.
    """
    labels = list(dict.fromkeys(label for result in results for label in result.games))
    columns = tables.score_columns(results)
    data = {
        "about": _about(results, published and any(column.is_published for column in columns)),
        "scores": {
            "head": ["player", *(column.title for column in columns)],
            "rows": tables.score_rows(results, columns, published=published),
            "ours": len(results),
        },
        "figures": [
            {
                "game": label,
                "head": ["metric", *(result.title for result in results if label in result.games)],
                "rows": tables.metric_rows([result for result in results if label in result.games], label),
            }
            for label in labels
        ],
        "curve_names": {**CURVES, **POINTS},
        "curves": {game: (curves or {}).get(game, {}) for game in {**(curves or {}), **(points or {})}},
        "points": points or {},
        "leads": {game: _lead(of) for game, of in (curves or {}).items()},
        "replays": _shortened(replays),
    }
    style, script = ((_PAGE / name).read_text("utf-8") for name in ("report.css", "report.js"))
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    page = (_PAGE / "report.html").read_text("utf-8")
    title = f"g1jax: {', '.join(dict.fromkeys(result.title for result in results))}"
    parts = {
        "title": html.escape(title),
        "policy": policy,
        "style": style,
        "script": script,
        "data": as_script_data(data),
    }
    # In one pass, since the values may contain braces too.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def as_script_data(data: Any) -> str:
    """JSON that is safe inside `<script>`: it cannot end the element or start a comment."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _about(results: Sequence[Result], published: bool) -> str:
    protocols = {", ".join(f"{key} {value}" for key, value in result.protocol.items()) for result in results}
    return (
        f"Means with 95% bootstrap intervals over episodes ({'; '.join(sorted(protocols))}). 2048 counts its score, "
        "the other games the steps with a reward above 0."
    ) + (f" {tables.PUBLISHED_NOTE}" if published else "")


def _lead(curves: dict[str, list[tuple[float, float]]]) -> str:
    return in_words(lead_lag(curves.get("perception", []), curves.get("reasoning", [])))


def _shortened(replays: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The replays with responses truncated to the largest common length at which all of them fit in TEXT_BYTES."""
    sizes = sorted(len(step["response"] or "") for replay in replays for step in replay["steps"])
    available, max_length = TEXT_BYTES, 0
    for i, size in enumerate(sizes):
        max_length = available // (len(sizes) - i)
        if size > max_length:
            break
        available -= size
        max_length = size

    def truncated(step: dict[str, Any]) -> dict[str, Any]:
        response = step["response"]
        if response is None or len(response) <= max_length:
            return step
        return {**step, "response": response[:max_length], "left_out": len(response) - max_length}

    return [{**replay, "steps": [truncated(step) for step in replay["steps"]]} for replay in replays]


# Training runs


def _ends_in_newline(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"


def read_curves(path: Path, *, may_be_none: bool = False) -> Curves:
    """The curves in a run's metrics.jsonl, given the file or its folder: keys such as `game_2048/perception`.

    Raises:
        EvaluationError: There is no such file or a line is invalid, or there are no curves and not `may_be_none`.
    """
    file = path / METRICS if path.is_dir() else path
    EvaluationError.require(file.is_file(), f"no curves at {path}: neither a {METRICS} nor a folder with one")
    curves: Curves = {}
    bad: list[G1Error] = []
    for number, row in read_json_lines(
        file, max_line_bytes=_MAX_LINE, allow_nan=True, error=EvaluationError, on_error=bad.append
    ):
        step = row.get("step") if isinstance(row, dict) else None
        if bad or not isinstance(step, int | float) or isinstance(step, bool):
            raise bad[0] if bad else EvaluationError(f"{name_of(file)}:{number}: not a line of metrics with a step")
        for name, value in row.items():
            game, _, key = name.rpartition("/")
            if key == "reasoning" and row.get(f"{game}/perception") == 0:
                continue  # no board was read exactly, so R is undefined
            if game and key in CURVES and type(value) in (int, float) and math.isfinite(value):
                curves.setdefault(game, {}).setdefault(key, []).append((float(step), float(value)))
    if len(bad) > 1 or (bad and _ends_in_newline(file)):  # an active run may not have finished its last line
        raise bad[0]
    EvaluationError.require(bool(curves) or may_be_none, f"{file}: no keys such as game_2048/perception")
    return curves
