"""Metrics and intervals against hand-computed values, NumPy and the normal distribution."""

import math
from typing import Any

import numpy as np
import pytest

from g1jax.evaluation.statistics import METRIC_LABELS, Interval, Sums, curves_of, differences, intervals, sums_of
from tests.evaluation.helpers import episodes_of


def means(episodes: Any) -> dict[str, float]:
    return {key: metric.mean for key, metric in intervals(sums_of(episodes), num_resamples=10).items()}


def test_metrics_by_hand() -> None:
    episodes = episodes_of([[4, -1, 0], [8, 4, 16]], is_exact=[[1, 1, 0], [0, 1, 1]], is_invalid=[[0, 1, 0], [0, 0, 0]])
    assert means(episodes) == {
        "score": (4 + 28) / 2,  # the −1 of the invalid answer is not counted
        "reward": 31 / 6,
        "success": 4 / 6,
        "perception": 4 / 6,
        "reasoning": 3 / 4,
        "cells": (4 * 16 + 2 * 15) / (6 * 16),
        "format": 5 / 6,
        "legal": 5 / 6,
        "unreadable": 1 / 6,
        "tokens": 4.0,
        "bytes": 10.0,
    }
    assert list(means(episodes)) == [key for key in METRIC_LABELS if key not in ("board", "cleared")]


def test_other_games_count_steps_with_a_reward() -> None:
    from g1jax import envs

    assert means(episodes_of([[1, -1, 6], [-1, -1, 1]], game=envs.make("swap")))["score"] == 1.5


def test_one_board_ends_with_the_first_end() -> None:
    from g1jax import envs

    episodes = episodes_of(
        [[1, -1, 1, 1], [1, -1, 1, -1], [-1, -1, -1, -1]],
        game=envs.make("shisen_sho", rows=2, cols=2),
        is_end=[[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]],  # cleared; stuck; never over
    )
    found = means(episodes)
    assert (found["score"], found["board"], found["cleared"]) == (5 / 3, (2 + 1 + 0) / 3, 1 / 3)


def test_players_that_write_no_text_have_no_text_metrics() -> None:
    assert set(means(episodes_of([[1.0]]))) == {"score", "reward", "success", "legal", "unreadable"}


def test_curves_by_hand() -> None:
    curves = curves_of(episodes_of([[4, 0], [8, 4]], is_exact=[[1, 0], [1, 0]]))
    assert curves["score"] == [6.0, 2.0]
    assert curves["success"] == [1.0, 0.5]
    assert curves["perception"] == [1.0, 0.0]
    assert curves["reasoning"] == [1.0, None]


def test_reasoning_is_undefined_where_no_board_is_read() -> None:
    metric = intervals(sums_of(episodes_of([[1, 1]], is_exact=[[0, 0]])))["reasoning"]
    assert math.isnan(metric.mean)
    assert math.isnan(metric.low)


def test_intervals_match_numpy() -> None:
    rng = np.random.default_rng(1)
    above, below = rng.integers(0, 9, 7).astype(float), rng.integers(1, 5, 7).astype(float)
    found = intervals({"legal": Sums(above, below)}, seed=3, num_resamples=500)["legal"]
    indices = np.random.default_rng(3).integers(0, 7, (500, 7))
    ratios = above[indices].sum(1) / below[indices].sum(1)
    assert found == Interval(above.sum() / below.sum(), *np.quantile(ratios, [0.025, 0.975]))


def test_intervals_match_the_normal_distribution() -> None:
    values = np.random.default_rng(0).integers(0, 1000, 4000).astype(float)
    found = intervals({"score": Sums(values, np.ones(4000))}, num_resamples=4000)["score"]
    half = 1.96 * values.std() / math.sqrt(4000)
    assert found.low == pytest.approx(found.mean - half, abs=0.06 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.06 * half)


def test_intervals_of_many_episodes() -> None:
    sums = {"score": Sums(np.arange(3000.0), np.ones(3000))}
    assert intervals(sums, num_resamples=2000)["score"].mean == 1499.5
    assert intervals(sums, seed=1, num_resamples=2000) == intervals(sums, seed=1, num_resamples=2000)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(2)
    shared = rng.integers(0, 1000, 50).astype(float)
    ours, theirs = Sums(shared + rng.integers(1, 4, 50), np.ones(50)), Sums(shared, np.ones(50))
    found = differences({"score": ours, "legal": ours}, {"score": theirs}, num_resamples=300)
    assert list(found) == ["score"]
    gain = ours.above - theirs.above
    indices = np.random.default_rng(0).integers(0, 50, (300, 50))
    low, high = np.quantile(gain[indices].mean(1), [0.025, 0.975])
    assert found["score"].mean == pytest.approx(gain.mean())
    assert found["score"].low == pytest.approx(low)
    assert found["score"].high == pytest.approx(high)
    same = differences({"score": theirs}, {"score": theirs}, num_resamples=50)["score"]
    assert same == Interval(0.0, 0.0, 0.0)


def test_differences_need_the_same_episodes() -> None:
    with pytest.raises(ValueError, match="3 and 4"):
        differences({"score": Sums(np.ones(3), np.ones(3))}, {"score": Sums(np.ones(4), np.ones(4))})
