"""Does perception pull reasoning up, or reasoning perception? P and R over a training run, and which moves first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SMOOTH = 0.1  # share of a curve that is averaged over
_LEAST_RISE = 0.05


@dataclass(frozen=True)
class LeadLag:
    """How two curves of one run go together."""

    perception_at: float | None
    """The step at which P, smoothed, first has half of its rise; None if it does not rise."""
    reasoning_at: float | None
    correlations: dict[int, float]
    """Of P's changes with R's so many points later; at a positive lag, P moves first. NaN where either stands still."""


def lead_lag(
    perception: Sequence[tuple[float, float]], reasoning: Sequence[tuple[float, float]], max_lag: int = 10
) -> LeadLag:
    """Compares curves of (step, value), at the steps that both have."""
    p, r = dict(perception), dict(reasoning)
    steps = np.array(sorted(p.keys() & r.keys()))
    values = np.array([[p[step], r[step]] for step in steps]).reshape(-1, 2)
    smooth = np.stack([_smoothed(column) for column in values.T], axis=1)
    changes = np.diff(smooth, axis=0)
    lags = range(-max_lag, max_lag + 1)
    return LeadLag(
        _half_rise(steps, smooth[:, 0]),
        _half_rise(steps, smooth[:, 1]),
        {lag: _correlation(changes[:, 0], changes[:, 1], lag) for lag in lags if abs(lag) < len(changes) - 2},
    )


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Means over a window, shorter at the ends."""
    half = int(len(values) * _SMOOTH / 2)
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _half_rise(steps: np.ndarray, values: np.ndarray) -> float | None:
    if not len(values) or values.max() - values[0] < _LEAST_RISE:
        return None
    return float(steps[np.argmax(values >= (values[0] + values.max()) / 2)])


def _correlation(first: np.ndarray, second: np.ndarray, lag: int) -> float:
    """Of `first` with `second` `lag` places later."""
    size = len(first) - abs(lag)
    a, b = first[max(0, -lag) :][:size], second[max(0, lag) :][:size]
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else float("nan")
