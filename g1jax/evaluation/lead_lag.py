"""Which of perception and reasoning leads the other over a training run: lagged correlations of P and R.

The smoothed curves' changes from point to point are correlated at every lag; the lag with the highest correlation says
which curve leads. Confidence intervals come from a moving-block bootstrap (Künsch, Annals of Statistics 17, 1989),
since neighboring changes are not independent. Blocks of indices of P's curve are resampled, and each index keeps its
own neighborhood in R, so a pair at a lag never mixes two blocks (the blocks of blocks of Politis and Romano, 1992). A
block is as long as the smoothing window, which correlates the points within it, and at least the cube root of the
number of changes (Hall, Horowitz and Jing, Biometrika 82, 1995).

A curve that rises once is a single event. The interval is about this run only: how far its noise could move the lag.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g1jax.evaluation.statistics import INTERVAL, Interval, resample

NUM_RESAMPLES = 2000
_SMOOTH = 0.1  # smoothing window, as a fraction of the curve
_MIN_RISE = 0.05
_MIN_CHANGES = 3
_MAX_LAG_DIVISOR = 3  # the largest lag is the number of changes divided by this


@dataclass(frozen=True)
class LeadLag:
    """How two curves of one run are related."""

    perception_at: float | None
    """The step at which smoothed P first reaches half of its rise; None if it does not rise."""
    reasoning_at: float | None
    """The same for R."""
    correlations: dict[int, float]
    """By lag in points: P's changes with R's changes a lag later; P leads at a positive lag. NaN if one is constant."""
    lag: Interval | None = None
    """The lag of the highest correlation, with its 95% interval; None if there is no correlation at any lag."""
    correlation: Interval | None = None
    """The correlation at that lag."""


def lead_lag(
    perception: Sequence[tuple[float, float]],
    reasoning: Sequence[tuple[float, float]],
    max_lag: int = 10,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> LeadLag:
    """Compares curves of (step, value) at their common steps. Lags go up to a third of the curves."""
    p, r = dict(perception), dict(reasoning)
    steps = np.array(sorted(p.keys() & r.keys()))
    values = np.array([[p[step], r[step]] for step in steps]).reshape(-1, 2)
    smooth = np.stack([smoothed(column) for column in values.T], axis=1)
    rises = _half_rise(steps, smooth[:, 0]), _half_rise(steps, smooth[:, 1])
    changes = np.diff(smooth, axis=0)
    max_lag = min(max_lag, len(changes) // _MAX_LAG_DIVISOR) if len(changes) >= _MIN_CHANGES else -1
    lags = list(range(-max_lag, max_lag + 1))
    found = _correlations(changes, lags, np.ones((1, len(changes))))[0]
    correlations = dict(zip(lags, found.tolist(), strict=True))
    if np.isnan(found).all():
        return LeadLag(*rises, correlations)
    block = min(len(changes), max(2 * _half_width(len(values)) + 1, math.ceil(len(changes) ** (1 / 3))))
    resampled = _resampled(changes, lags, block, seed, num_resamples)
    best = int(np.nanargmax(found))
    valid = resampled[~np.isnan(resampled).all(axis=1)]
    ends = np.quantile(np.array(lags)[np.nanargmax(valid, axis=1)], INTERVAL, method="inverted_cdf")
    lag = Interval(lags[best], *ends.tolist())
    correlation = Interval(float(found[best]), *np.nanquantile(resampled[:, best], INTERVAL))
    return LeadLag(*rises, correlations, lag, correlation)


def in_words(found: LeadLag) -> str:
    """A sentence on which of P and R leads; empty where one of them does not rise."""
    if found.perception_at is None or found.reasoning_at is None:
        return ""
    rises = f"P reaches half of its rise at step {found.perception_at:g}, R at step {found.reasoning_at:g}"
    if found.lag is None or found.correlation is None:
        return f"{rises}."
    lag, at = found.lag, found.correlation
    best = "at lag 0" if lag.mean == 0 else f"with {'P' if lag.mean > 0 else 'R'} {abs(lag.mean):g} points ahead"
    span = f"P ahead by {lag.low:+g} to {lag.high:+g} points, correlation {at.mean:.2f} ({at.low:.2f} to {at.high:.2f})"
    is_significant = at.low > 0 and (lag.low > 0 or lag.high < 0)
    verdict = f"{'P' if lag.mean > 0 else 'R'} leads" if is_significant else "neither leads significantly"
    return f"{rises}. Their changes correlate best {best} (95%: {span}): {verdict}."


def _half_width(num_points: int) -> int:
    """The points of the smoothing window on either side of its center."""
    return int(num_points * _SMOOTH / 2)


def smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """A moving average over a tenth of the curve, with shorter windows at the ends: float64[n]."""
    values = np.asarray(values, np.float64)
    half = _half_width(len(values))
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _half_rise(steps: np.ndarray, values: np.ndarray) -> float | None:
    if not len(values) or values.max() - values[0] < _MIN_RISE:
        return None
    return float(steps[np.argmax(values >= (values[0] + values.max()) / 2)])


def _resampled(changes: np.ndarray, lags: Sequence[int], block: int, seed: int, num_resamples: int) -> np.ndarray:
    """The correlations of resampled changes, float64[n, 2]: float64[num_resamples, lags]."""
    size = len(changes)

    def blocks(rng: np.random.Generator, rows: int) -> np.ndarray:
        starts = rng.integers(0, size - block + 1, (rows, -(-size // block)))
        return (starts[:, :, None] + np.arange(block)).reshape(rows, -1)[:, :size]

    return np.concatenate(
        [_correlations(changes, lags, counts) for counts in resample(blocks, size, seed, num_resamples)]
    )


def _correlations(changes: np.ndarray, lags: Sequence[int], counts: np.ndarray) -> np.ndarray:
    """Correlations of the first column with the second a lag later, weighted by the counts of the first's indices.

    float64[n, 2], [k, n] -> [k, lags]. NaN where a column is constant.
    """
    columns = []
    for lag in lags:
        size = len(changes) - abs(lag)
        a, b = changes[max(0, -lag) :][:size, 0], changes[max(0, lag) :][:size, 1]
        a, b = a - a.mean(), b - b.mean()  # avoids cancellation in the variances below
        weights = counts[:, max(0, -lag) :][:, :size]
        total = np.maximum(weights.sum(1), 1.0)
        mean_a, mean_b, mean_ab, mean_aa, mean_bb = (weights @ x / total for x in (a, b, a * b, a * a, b * b))
        spread = np.maximum(mean_aa - mean_a**2, 0.0) * np.maximum(mean_bb - mean_b**2, 0.0)
        least = 1e-20 * max(float(a @ a) * float(b @ b), 1e-300) / size**2
        scale = np.sqrt(np.where(spread > least, spread, np.nan))
        columns.append((mean_ab - mean_a * mean_b) / scale)
    return np.stack(columns, axis=1) if columns else np.zeros((len(counts), 0))
