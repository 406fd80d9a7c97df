"""Does perception pull reasoning up, or reasoning perception? P and R over a training run, and which moves first.

The changes of the two curves, from point to point and smoothed, are correlated at every lag; the lag at which they go
together best says who leads. How sure it is comes from a moving-block bootstrap (Künsch, Annals of Statistics 17,
1989), since neighbouring changes are no independent draws. What is drawn are blocks of places in P's curve; each place
brings the changes of R around it as they were, so no pair at a lag is ever made of changes from two blocks (the blocks
of blocks of Politis and Romano, 1992). A block is as long as the smoothing, which joins what lies within it, and at
least the cube root of the number of changes (Hall, Horowitz and Jing, Biometrika 82, 1995).

A curve that rises once is a single event. The interval is about this run: how far its noise could have moved the lag.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g1jax.evaluation.statistics import INTERVAL, Interval

NUM_RESAMPLES = 2000
_SMOOTH = 0.1  # share of a curve that is averaged over
_LEAST_RISE = 0.05
_LEAST_CHANGES = 3
_LEAST_OVERLAP = 3  # of so many parts of the changes, all but one are compared at the largest lag
_CELLS_AT_ONCE = 2**22  # of the matrix of resampling counts


@dataclass(frozen=True)
class LeadLag:
    """How two curves of one run go together."""

    perception_at: float | None
    """The step at which P, smoothed, first has half of its rise; None if it does not rise."""
    reasoning_at: float | None
    correlations: dict[int, float]
    """Of P's changes with R's so many points later; at a positive lag, P moves first. NaN where either stands still."""
    lag: Interval | None = None
    """Where they correlate best, in points, with its 95% interval; None where no lag has a correlation."""
    correlation: Interval | None = None
    """The correlation there."""


def lead_lag(
    perception: Sequence[tuple[float, float]],
    reasoning: Sequence[tuple[float, float]],
    max_lag: int = 10,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> LeadLag:
    """Compares curves of (step, value), at the steps that both have. Lags go up to a third of the curves."""
    p, r = dict(perception), dict(reasoning)
    steps = np.array(sorted(p.keys() & r.keys()))
    values = np.array([[p[step], r[step]] for step in steps]).reshape(-1, 2)
    smooth = np.stack([smoothed(column) for column in values.T], axis=1)
    rises = _half_rise(steps, smooth[:, 0]), _half_rise(steps, smooth[:, 1])
    changes = np.diff(smooth, axis=0)
    most = min(max_lag, len(changes) // _LEAST_OVERLAP) if len(changes) >= _LEAST_CHANGES else -1
    lags = list(range(-most, most + 1))
    found = _correlations(changes, lags, np.ones((1, len(changes))))[0]
    correlations = dict(zip(lags, found.tolist(), strict=True))
    if np.isnan(found).all():
        return LeadLag(*rises, correlations)
    drawn = _resampled(changes, lags, _block_length(len(values), len(changes)), seed, num_resamples)
    best = int(np.nanargmax(found))
    known = drawn[~np.isnan(drawn).all(axis=1)]
    ends = np.quantile(np.array(lags)[np.nanargmax(known, axis=1)], INTERVAL, method="inverted_cdf")
    lag = Interval(lags[best], *ends.tolist())
    return LeadLag(*rises, correlations, lag, Interval(float(found[best]), *np.nanquantile(drawn[:, best], INTERVAL)))


def in_words(found: LeadLag) -> str:
    """Which of P and R moves first; nothing where one of them does not rise."""
    if found.perception_at is None or found.reasoning_at is None:
        return ""
    told = f"P has half of its rise at step {found.perception_at:g}, R at step {found.reasoning_at:g}"
    if found.lag is None or found.correlation is None:
        return f"{told}."
    lag, at = found.lag, found.correlation
    who = "together" if lag.mean == 0 else f"{'P' if lag.mean > 0 else 'R'} {abs(lag.mean):g} points ahead"
    span = f"P ahead by {lag.low:+g} to {lag.high:+g} points, correlation {at.mean:.2f} ({at.low:.2f} to {at.high:.2f})"
    settled = at.low > 0 and (lag.low > 0 or lag.high < 0)
    verdict = f"{'P' if lag.mean > 0 else 'R'} leads" if settled else "which one leads is not settled"
    return f"{told}. Their changes correlate best {who} (95%: {span}): {verdict}."


def _half_width(num_points: int) -> int:
    """Of the window of the smoothing, on either side of its middle."""
    return int(num_points * _SMOOTH / 2)


def smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Means over a window of a tenth of the curve, shorter at its ends: float64[n]."""
    values = np.asarray(values, np.float64)
    half = _half_width(len(values))
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _half_rise(steps: np.ndarray, values: np.ndarray) -> float | None:
    if not len(values) or values.max() - values[0] < _LEAST_RISE:
        return None
    return float(steps[np.argmax(values >= (values[0] + values.max()) / 2)])


def _block_length(num_points: int, num_changes: int) -> int:
    return min(num_changes, max(2 * _half_width(num_points) + 1, math.ceil(num_changes ** (1 / 3))))


def _resampled(changes: np.ndarray, lags: Sequence[int], block: int, seed: int, num_resamples: int) -> np.ndarray:
    """The correlations of resampled changes, float64[n, 2]: float64[num_resamples, lags]."""
    size = len(changes)
    at_once = max(1, _CELLS_AT_ONCE // size)
    rng = np.random.default_rng(seed)
    out = []
    for first in range(0, num_resamples, at_once):
        rows = min(at_once, num_resamples - first)
        starts = rng.integers(0, size - block + 1, (rows, -(-size // block)))
        drawn = (starts[:, :, None] + np.arange(block)).reshape(rows, -1)[:, :size]
        places = drawn + np.arange(rows)[:, None] * size
        counts = np.bincount(places.reshape(-1), minlength=rows * size).reshape(rows, size)
        out.append(_correlations(changes, lags, counts.astype(np.float64)))
    return np.concatenate(out)


def _correlations(changes: np.ndarray, lags: Sequence[int], counts: np.ndarray) -> np.ndarray:
    """Of the first column with the second a lag later, places of the first counted so often.

    float64[n, 2], [k, n] -> [k, lags]. NaN where a column stands still.
    """
    columns = []
    for lag in lags:
        size = len(changes) - abs(lag)
        a, b = changes[max(0, -lag) :][:size, 0], changes[max(0, lag) :][:size, 1]
        a, b = a - a.mean(), b - b.mean()  # so that little is lost below, where squares are subtracted
        weights = counts[:, max(0, -lag) :][:, :size]
        total = np.maximum(weights.sum(1), 1.0)
        mean_a, mean_b, mean_ab, mean_aa, mean_bb = (weights @ x / total for x in (a, b, a * b, a * a, b * b))
        spread = np.maximum(mean_aa - mean_a**2, 0.0) * np.maximum(mean_bb - mean_b**2, 0.0)
        least = 1e-20 * max(float(a @ a) * float(b @ b), 1e-300) / size**2
        scale = np.sqrt(np.where(spread > least, spread, np.nan))
        columns.append((mean_ab - mean_a * mean_b) / scale)
    return np.stack(columns, axis=1) if columns else np.zeros((len(counts), 0))
