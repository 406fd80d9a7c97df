"""Which of two curves moves first, where it is known."""

import math

import numpy as np
import pytest

from g1jax.evaluation.bootstrapping import lead_lag

STEPS = np.arange(0.0, 200.0, 2.0)


def rise(at: float) -> list[tuple[float, float]]:
    values = 1 / (1 + np.exp(-(STEPS - at) / 8))
    return list(zip(STEPS.tolist(), values.tolist(), strict=True))


def test_the_curve_that_rises_first_leads() -> None:
    found = lead_lag(rise(60), rise(72))
    assert found.perception_at == pytest.approx(60, abs=4)
    assert found.reasoning_at == pytest.approx(72, abs=4)
    assert max(found.correlations, key=lambda lag: found.correlations[lag]) == 6  # points, of 2 steps each
    back = lead_lag(rise(72), rise(60))
    assert max(back.correlations, key=lambda lag: back.correlations[lag]) == -6


def test_correlations_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    p, r = (list(enumerate(rng.random(15).tolist())) for _ in range(2))  # too short to be smoothed
    found = lead_lag(p, r, max_lag=2)
    dp, dr = (np.diff([value for _, value in curve]) for curve in (p, r))
    assert list(found.correlations) == [-2, -1, 0, 1, 2]
    assert found.correlations[2] == pytest.approx(np.corrcoef(dp[:-2], dr[2:])[0, 1])
    assert found.correlations[-2] == pytest.approx(np.corrcoef(dp[2:], dr[:-2])[0, 1])


def test_curves_that_stand_still_have_no_lead() -> None:
    flat = [(step, 0.5) for step in STEPS.tolist()]
    found = lead_lag(flat, rise(60))
    assert found.perception_at is None
    assert found.reasoning_at is not None
    assert all(math.isnan(value) for value in found.correlations.values())
    assert lead_lag([], flat).correlations == {}


def test_only_shared_steps_count() -> None:
    assert lead_lag(rise(60)[::2], rise(60)) == lead_lag(rise(60)[::2], rise(60)[::2])
