"""Metrics over episodes with bootstrap intervals: ratios of sums, resampled by whole episodes.

Every metric is one sum over episodes divided by another: the rate of legal moves is legal moves over steps, R is
successes on boards read exactly over boards read exactly. Episodes are resampled whole, since their steps are not
independent. The sums are of integers, so metrics are bit-identical in any order of summation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from g1jax.evaluation.protocol import Episodes, scores_one_board

NUM_RESAMPLES = 10_000
INTERVAL = (0.025, 0.975)  # 95%, in quantiles
_CELLS_AT_ONCE = 2**22  # of the matrix of resampling counts

METRIC_LABELS = {
    "score": "score",
    "board": "pairs of the first board",
    "cleared": "first boards cleared",
    "reward": "reward a step",
    "success": "reward > 0",
    "perception": "P: board read exactly",
    "reasoning": "R: reward > 0 where read exactly",
    "cells": "cells read correctly",
    "format": "all six tags",
    "legal": "legal moves",
    "unreadable": "invalid answers",
    "tokens": "tokens a response",
    "bytes": "bytes a response",
}
"""Every metric: its key and its label."""


@dataclass(frozen=True)
class Interval:
    """A metric with its bootstrap interval. All three are NaN where the denominator is 0."""

    mean: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """The fields, with None for NaN."""
        return {key: None if np.isnan(value) else value for key, value in vars(self).items()}


@dataclass(frozen=True, eq=False)
class Sums:
    """A metric's numerator and denominator by episode: float64[E] each, of integers."""

    above: np.ndarray
    below: np.ndarray


def sums_of(episodes: Episodes) -> dict[str, Sums]:
    """Every metric that is defined for this player, by its key in METRIC_LABELS."""
    return {key: Sums(above.sum(1), below.sum(1)) for key, (above, below) in _parts(episodes).items()}


def curves_of(episodes: Episodes) -> dict[str, list[float | None]]:
    """Every metric at each step of the episodes: [T]; None where the denominator is 0."""
    out = {}
    for key, (above, below) in _parts(episodes).items():
        if key in ("score", "board", "cleared"):
            below = np.ones_like(above)  # per step instead of per episode
        totals = below.sum(0)
        means = np.divide(above.sum(0), totals, out=np.full(totals.shape, np.nan), where=totals > 0)
        out[key] = [None if np.isnan(mean) else float(mean) for mean in means]
    return out


def _parts(episodes: Episodes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The numerator and denominator of every metric by step: float64[E, T] each."""
    game, steps = episodes.game, episodes.steps
    score = episodes.score
    one, first = np.ones_like(score), np.zeros_like(score)
    first[:, 0] = 1.0
    is_success = _as_float(steps.reward) > 0
    parts = {
        "score": (score, first),
        "reward": (_as_float(steps.reward), one),
        "success": (is_success.astype(float), one),
        "legal": (_as_float(steps.is_legal), one),
        "unreadable": (_as_float(steps.is_invalid), one),
    }
    if scores_one_board(game):
        is_end = _as_float(steps.is_end)
        pairs = score * (np.cumsum(is_end, axis=1) - is_end == 0)
        is_cleared = (
            is_end * (np.cumsum(pairs, axis=1) == game.rows * game.cols // 2) * (np.cumsum(is_end, axis=1) == 1)
        )
        parts |= {"board": (pairs, first), "cleared": (is_cleared, first)}
    if steps.is_exact is not None:
        is_exact = _as_float(steps.is_exact)
        parts["perception"] = (is_exact, one)
        parts["reasoning"] = (is_exact * is_success, is_exact)
    for key, values, per_step in (
        ("cells", steps.num_right, game.rows * game.cols),
        ("format", steps.is_formatted, 1),
        ("tokens", steps.num_tokens, 1),
        ("bytes", steps.num_bytes, 1),
    ):
        if values is not None:
            parts[key] = (_as_float(values), one * per_step)
    return {key: parts[key] for key in METRIC_LABELS if key in parts}


def _as_float(values: object) -> np.ndarray:
    return np.asarray(values, np.float64)


def intervals(sums: dict[str, Sums], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> dict[str, Interval]:
    """Each metric with its percentile bootstrap interval over episodes; all metrics share the resamples."""
    table = np.stack([f.above for f in sums.values()] + [f.below for f in sums.values()], axis=1)  # [E, 2·metrics]

    def ratio(totals: np.ndarray) -> np.ndarray:
        return _ratio(*np.split(totals, 2, axis=-1))

    return _with_quantiles(list(sums), ratio(table.sum(0)), ratio(_resampled_totals(table, seed, num_resamples)))


def differences(
    ours: dict[str, Sums], theirs: dict[str, Sums], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> dict[str, Interval]:
    """Ours minus theirs, paired by episode, with intervals, for each metric that both have.

    Raises:
        ValueError: The numbers of episodes differ.
    """
    keys = [key for key in ours if key in theirs]
    parts = [getattr(of[key], part) for of in (ours, theirs) for part in ("above", "below") for key in keys]
    counts = {len(part) for part in parts}
    if len(counts) != 1:
        raise ValueError(
            f"paired differences need the same number of episodes, not {' and '.join(map(str, sorted(counts)))}"
        )

    def difference(totals: np.ndarray) -> np.ndarray:
        a, b, c, d = np.split(totals, 4, axis=-1)
        return _ratio(a, b) - _ratio(c, d)

    table = np.stack(parts, axis=1)  # [E, 4·metrics]
    return _with_quantiles(keys, difference(table.sum(0)), difference(_resampled_totals(table, seed, num_resamples)))


def _resampled_totals(table: np.ndarray, seed: int, num_resamples: int) -> np.ndarray:
    """Sums over E episodes drawn with replacement: float64[E, n] -> float64[num_resamples, n]."""
    size = len(table)
    parts = resample(lambda rng, rows: rng.integers(0, size, (rows, size)), size, seed, num_resamples)
    return np.concatenate([counts @ table for counts in parts])


def resample(
    draw: Callable[[np.random.Generator, int], np.ndarray], size: int, seed: int, num_resamples: int
) -> Iterator[np.ndarray]:
    """How often each item is drawn, float64[k, size], in k resamples at a time; `draw` gives them as int[k, size]."""
    at_once = max(1, _CELLS_AT_ONCE // size)
    rng = np.random.default_rng(seed)
    for first in range(0, num_resamples, at_once):
        drawn = draw(rng, min(at_once, num_resamples - first))
        offsets = np.arange(0, drawn.size, size)[:, None]
        yield np.bincount((drawn + offsets).reshape(-1), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _with_quantiles(keys: list[str], means: np.ndarray, resampled: np.ndarray) -> dict[str, Interval]:
    """The means with the quantiles of their resamples, without those whose denominator is 0."""
    out = {}
    for key, mean, column in zip(keys, means, resampled.T, strict=True):
        valid = column[~np.isnan(column)]
        ends = np.quantile(valid, INTERVAL) if len(valid) else (np.nan, np.nan)
        out[key] = Interval(float(mean), float(ends[0]), float(ends[1]))
    return out
