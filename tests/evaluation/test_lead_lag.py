"""Lead and lag of curves with a known answer."""

import math

import numpy as np
import pytest
from numpy.typing import ArrayLike

from g1jax.evaluation.lead_lag import LeadLag, in_words, lead_lag

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
    p, r = (list(enumerate(rng.random(15).tolist())) for _ in range(2))  # too short for smoothing
    found = lead_lag(p, r, max_lag=2)
    dp, dr = (np.diff([value for _, value in curve]) for curve in (p, r))
    assert list(found.correlations) == [-2, -1, 0, 1, 2]
    assert found.correlations[2] == pytest.approx(np.corrcoef(dp[:-2], dr[2:])[0, 1])
    assert found.correlations[-2] == pytest.approx(np.corrcoef(dp[2:], dr[:-2])[0, 1])


def test_constant_curves_have_no_lead() -> None:
    flat = [(step, 0.5) for step in STEPS.tolist()]
    found = lead_lag(flat, rise(60))
    assert found.perception_at is None
    assert found.reasoning_at is not None
    assert all(math.isnan(value) for value in found.correlations.values())
    assert lead_lag([], flat).correlations == {}


def test_only_shared_steps_count() -> None:
    assert lead_lag(rise(60)[::2], rise(60)) == lead_lag(rise(60)[::2], rise(60)[::2])


# Confidence intervals


def curve(changes: ArrayLike) -> list[tuple[float, float]]:
    return list(enumerate(np.concatenate([[0.0], np.cumsum(changes)]).tolist()))


def follow(seed: int, lag: int, *, size: int = 80, noise: float = 0.5) -> LeadLag:
    """R's changes are P's, `lag` points later, plus noise."""
    rng = np.random.default_rng(seed)
    changes = np.convolve(rng.normal(size=size + 20), np.ones(3) / 3, "valid")
    followed = changes[10 - lag :][:size] + noise * rng.normal(size=size)
    return lead_lag(curve(changes[10:][:size]), curve(followed), num_resamples=200)


@pytest.mark.parametrize("lag", [-4, 0, 3])
def test_the_interval_holds_the_true_lag(lag: int) -> None:
    found = [follow(seed, lag) for seed in range(20)]
    held = [one.lag is not None and one.lag.low <= lag <= one.lag.high for one in found]
    assert sum(held) >= 17  # 19 of 20 are expected
    assert np.median([one.lag.mean for one in found if one.lag]) == lag
    for one in found:
        assert one.correlation is not None
        assert one.correlation.low < one.correlation.mean < one.correlation.high


def test_more_noise_widens_the_interval() -> None:
    def width(noise: float) -> float:
        found = [follow(seed, 3, noise=noise).lag for seed in range(8)]
        return float(np.mean([lag.high - lag.low for lag in found if lag]))

    assert width(0.05) < 1 < width(2.0)


def test_resamples_are_moving_blocks() -> None:
    """Against a loop over resampled indices; pairs at a lag are always original pairs."""
    rng = np.random.default_rng(0)
    p, r = rng.normal(size=(2, 18))
    found = lead_lag(curve(p), curve(r), max_lag=3, seed=5, num_resamples=40)
    block = 3  # the cube root of 18, rounded up; 19 points are too few for smoothing
    starts = np.random.default_rng(5).integers(0, 18 - block + 1, (40, 6))
    best, lags = [], range(-3, 4)
    at: list[list[float]] = []
    for row in starts:
        indices = [start + i for start in row for i in range(block)]
        pairs = [[(p[t], r[t + lag]) for t in indices if 0 <= t + lag < 18] for lag in lags]
        at.append([float(np.corrcoef(np.array(of).T)[0, 1]) for of in pairs])
        best.append(lags[int(np.argmax(at[-1]))])
    assert found.lag is not None
    assert found.correlation is not None
    column = lags.index(int(found.lag.mean))
    expected = np.quantile([row[column] for row in at], [0.025, 0.975])
    assert [found.correlation.low, found.correlation.high] == pytest.approx(expected.tolist())
    assert (found.lag.low, found.lag.high) == (sorted(best)[0], sorted(best)[38])


def test_the_same_seed_gives_the_same_interval() -> None:
    p, r = rise(60), [(step, value + 0.05 * math.sin(9 * step)) for step, value in rise(72)]
    assert lead_lag(p, r, seed=1, num_resamples=100) == lead_lag(p, r, seed=1, num_resamples=100)
    assert (
        lead_lag(p, r, seed=1, num_resamples=100).correlation != lead_lag(p, r, seed=2, num_resamples=100).correlation
    )


def test_in_words() -> None:
    assert in_words(lead_lag(rise(60), rise(72))).endswith(": P leads.")
    assert in_words(lead_lag(rise(72), rise(60))).endswith(": R leads.")
    assert in_words(lead_lag(rise(60), rise(60))).endswith(": neither leads significantly.")
    assert in_words(lead_lag([(0.0, 0.5), (1.0, 0.5)], rise(60))) == ""
