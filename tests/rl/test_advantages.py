"""Advantages computed by hand, and properties for all rewards."""

import dataclasses
import itertools
from typing import Any, get_args

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from g1jax import rl
from g1jax.rl.advantages import has_spread, overlong_punishment
from g1jax.rl.algorithm import Baseline, Normalize

MASK = [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
"""Lengths 3 1 2 4."""


def batch_of(
    rewards: list[float],
    mask: list[list[int]] | None = None,
    kl: list[list[float]] | None = None,
    game_id: list[int] | None = None,
) -> rl.Batch:
    """`kl` is log π − log π_ref of each token, its k1. Without a mask, responses have one token."""
    response_mask = np.array(mask if mask is not None else [[1]] * len(rewards), bool)
    logprobs = np.full(response_mask.shape, -1.0, np.float32)
    reference = logprobs - np.array(kl if kl is not None else np.zeros(response_mask.shape), np.float32)
    games = np.array(game_id if game_id is not None else [0] * len(rewards), np.int32)
    return rl.Batch(
        jnp.asarray(response_mask),
        jnp.asarray(logprobs),
        jnp.asarray(reference),
        jnp.asarray(rewards, jnp.float32),
        jnp.asarray(games),
    )


def by_row(algorithm: rl.Algorithm, batch: rl.Batch, num_samples: int, num_games: int = 1) -> list[float]:
    """The advantage of each row, which all its tokens share."""
    batch, advantages = rl.prepare(algorithm, batch, num_samples=num_samples, num_games=num_games)
    mask, values = np.asarray(batch.response_mask), np.asarray(advantages)
    assert (values[~mask] == 0).all()
    rows = [row[row_mask] for row, row_mask in zip(values, mask, strict=True)]
    assert all((row == row[0]).all() for row in rows if len(row))
    return [float(row[0]) if len(row) else 0.0 for row in rows]


def without_kl(name: str, **changes: Any) -> rl.Algorithm:
    return rl.make_algorithm(name, kl="none", **changes)


# By hand


def test_grpo() -> None:
    # Group 1 0 2 1: mean 1, deviations 0 -1 1 0, sum of squares 2, std with ddof 1: sqrt(2 / 3).
    # Group 3 -1 -1 -1: mean 0, squares 9 + 1 + 1 + 1 = 12, std sqrt(12 / 3) = 2.
    found = by_row(without_kl("grpo"), batch_of([1, 0, 2, 1, 3, -1, -1, -1]), 4)
    step = 1 / np.sqrt(2 / 3)
    np.testing.assert_allclose(found, [0, -step, step, 0, 1.5, -0.5, -0.5, -0.5], atol=1e-5)


def test_dr_grpo() -> None:
    # The same groups, with only the mean subtracted.
    found = by_row(rl.make_algorithm("dr_grpo"), batch_of([1, 0, 2, 1, 3, -1, -1, -1]), 4)
    np.testing.assert_allclose(found, [0, -1, 1, 0, 3, -1, -1, -1], atol=1e-6)


def test_rloo() -> None:
    # 1 - (0 + 2 + 1) / 3 = 0;  0 - 4 / 3;  2 - 2 / 3 = 4 / 3;  and 3 - (-1) = 4;  -1 - (3 - 1 - 1) / 3 = -4 / 3.
    found = by_row(without_kl("rloo"), batch_of([1, 0, 2, 1, 3, -1, -1, -1]), 4)
    np.testing.assert_allclose(found, [0, -4 / 3, 4 / 3, 0, 4, -4 / 3, -4 / 3, -4 / 3], atol=1e-5)


def test_rloo_with_the_kl_in_the_reward() -> None:
    # Coefficient 0.5. Row 0: KL 1 + 1 (the third token is masked), 4 - 0.5 · 2 = 3. Row 1: 1 - 0.5 · (-2) = 2.
    batch = batch_of([4, 1], [[1, 1, 0], [1, 0, 0]], kl=[[1, 1, 9], [-2, 9, 9]])
    assert by_row(rl.make_algorithm("rloo", kl_coefficient=0.5), batch, 2) == [1.0, -1.0]


def test_reinforce_pp() -> None:
    # Returns R - 0.5 · (KL from here on). Row 0 (R = 4, KL 1 1): 4 - 1 = 3 and 4 - 0.5 = 3.5. Row 1 (R = 1, KL -2): 2.
    # Row 2 (R = 0, KL 0 1): -0.5 -0.5. Five tokens: mean 7.5 / 5 = 1.5, deviations 1.5 2 0.5 -2 -2,
    # squares 2.25 + 4 + 0.25 + 4 + 4 = 14.5, std sqrt(14.5 / 5).
    batch = batch_of([4, 1, 0], [[1, 1, 0], [1, 0, 0], [1, 1, 0]], kl=[[1, 1, 9], [-2, 9, 9], [0, 1, 9]])
    _, found = rl.prepare(rl.make_algorithm("reinforce_pp", kl_coefficient=0.5), batch, num_samples=1)
    expected = np.array([[1.5, 2, 0], [0.5, 0, 0], [-2, -2, 0]]) / np.sqrt(14.5 / 5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_reinforce_pp_counts_tokens() -> None:
    # Rewards 1 0 0 1 with 3 1 2 4 tokens: 7 of 10 tokens have 1. Mean 0.7, variance 0.7 · 0.3 = 0.21.
    found = by_row(without_kl("reinforce_pp"), batch_of([1, 0, 0, 1], MASK), 1)
    high, low = 0.3 / np.sqrt(0.21), -0.7 / np.sqrt(0.21)
    np.testing.assert_allclose(found, [high, low, low, high], atol=1e-5)


def test_reinforce_pp_with_baseline() -> None:
    # Groups 1 0 and 6 0: less their means 0.5 -0.5 3 -3. Mean 0, variance (0.25 + 0.25 + 9 + 9) / 4 = 4.625.
    found = by_row(without_kl("reinforce_pp_baseline"), batch_of([1, 0, 6, 0]), 2)
    np.testing.assert_allclose(found, np.array([0.5, -0.5, 3, -3]) / np.sqrt(4.625), atol=1e-5)


def test_statistics_of_each_game() -> None:
    # Game 0 (rows 0 1 4 5): 1 3 1 3, mean 2, std 1. Game 2 (rows 2 3): 100 500, mean 300, std 200. Game 1 is empty.
    batch = batch_of([1, 3, 100, 500, 1, 3], game_id=[0, 0, 2, 2, 0, 0])
    found = by_row(without_kl("reinforce_pp", normalize="game"), batch, 1, num_games=3)
    np.testing.assert_allclose(found, [-1, 1, -1, 1, -1, 1], atol=1e-5)
    # Over the whole batch the game with large rewards dominates.
    over_batch = by_row(without_kl("reinforce_pp"), batch, 1)
    assert over_batch[3] > 2
    assert max(over_batch[:2]) < 0


def test_statistics_of_each_game_after_the_group_mean() -> None:
    # Groups 1 3, 100 500, 2 8 less their means: -1 1, -200 200, -3 3. Game 0 (first, third): (1 + 1 + 9 + 9) / 4 = 5.
    batch = batch_of([1, 3, 100, 500, 2, 8], game_id=[0, 0, 1, 1, 0, 0])
    found = by_row(without_kl("grpo", normalize="game"), batch, 2, num_games=2)
    one, three = 1 / np.sqrt(5), 3 / np.sqrt(5)
    np.testing.assert_allclose(found, [-one, one, -1, 1, -three, three], atol=1e-5)


def test_overlong_punishment() -> None:
    # Of 20 tokens the last 5 are the buffer: 0 up to 15, then a fifth per token.
    found = overlong_punishment(jnp.array([1, 15, 16, 18, 20, 25], jnp.int32), 20, 0.25)
    np.testing.assert_allclose(found, [0, 0, -0.2, -0.6, -1, -1], atol=1e-6)


def test_dapo_punishes_long_responses() -> None:
    # Up to 4 tokens, a buffer of 2: lengths 3 1 2 4 are punished by 0.5 0 0 1. Rewards 1 1 0 0 become 0.5 1 0 -1.
    # Mean 0.125, deviations 0.375 0.875 -0.125 -1.125, squares 0.140625 + 0.765625 + 0.015625 + 1.265625 = 2.1875.
    found = by_row(rl.make_algorithm("dapo", overlong_buffer=0.5), batch_of([1, 1, 0, 0], MASK), 4)
    expected = np.array([0.375, 0.875, -0.125, -1.125]) / np.sqrt(2.1875 / 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # With up to 8 tokens, a buffer of 4 starts beyond all of these lengths.
    longer = rl.make_algorithm("dapo", overlong_buffer=0.5, max_length=8)
    np.testing.assert_allclose(
        by_row(longer, batch_of([1, 1, 0, 0], MASK), 4), np.array([1, 1, -1, -1]) * np.sqrt(3) / 2, atol=1e-5
    )


def test_dapo_masks_groups_without_spread() -> None:
    # Lengths differ, so shaping would spread the first group; the rewards before shaping count.
    batch = batch_of([1, 1, 0, 1], [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    kept, advantages = rl.prepare(rl.make_algorithm("dapo"), batch, num_samples=2)
    assert np.asarray(kept.response_mask).sum(axis=1).tolist() == [0, 0, 2, 1]
    half = np.sqrt(0.5)  # 0 1: deviations ±1/2, std sqrt(1/2), so ±1 / sqrt(2)
    np.testing.assert_allclose(
        advantages, [[0, 0, 0, 0], [0, 0, 0, 0], [-half, -half, 0, 0], [half, 0, 0, 0]], atol=1e-5
    )
    # The loss is a mean over the 3 remaining tokens, not over 8.
    weights = rl.token_weights(rl.make_algorithm("dapo"), kept.response_mask)
    np.testing.assert_allclose(np.asarray(weights.loss).sum(axis=1), [0, 0, 2 / 3, 1 / 3], atol=1e-6)
    # Without dynamic sampling the group is included.
    without, _ = rl.prepare(rl.make_algorithm("dapo", dynamic_sampling=False), batch, num_samples=2)
    assert np.asarray(without.response_mask).sum() == 8


def test_rows_without_tokens_are_ignored() -> None:
    # The last row of the first group is padding: 1 3 remain, mean 2, std sqrt(2). A row alone in its group has 0.
    mask = [[1], [1], [0], [1], [0], [0]]
    batch = batch_of([1, 3, 1000, 7, 1000, 1000], mask)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(by_row(without_kl("grpo"), batch, 3), [-half, half, 0, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(by_row(without_kl("rloo"), batch, 3), [-2, 2, 0, 0, 0, 0], atol=1e-5)
    found = by_row(without_kl("reinforce_pp"), batch, 3)  # 1 3 7: mean 11 / 3, variance 59 / 3 - 121 / 9 = 56 / 9
    np.testing.assert_allclose(np.array(found)[[0, 1, 3]], np.array([-8, -2, 10]) / np.sqrt(56), atol=1e-5)
    assert has_spread(batch, 3).tolist() == [True] * 3 + [False] * 3


# Properties for all rewards

NUM_SAMPLES, NUM_GROUPS = 4, 3
ROWS = NUM_SAMPLES * NUM_GROUPS
whole_rewards = st.lists(st.integers(-50, 50), min_size=ROWS, max_size=ROWS)
every_algorithm = st.sampled_from(rl.algorithm_names())
GAMES = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]


def ragged(seed: int) -> rl.Batch:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(0, 5, ROWS)
    mask = (np.arange(4)[None] < lengths[:, None]).astype(int).tolist()
    return batch_of([0.0] * ROWS, mask, kl=draw.normal(size=(ROWS, 4)).tolist(), game_id=GAMES)


@jax.jit
def _jitted_by_name(batches: rl.Batch) -> dict[str, tuple[rl.Batch, jax.Array]]:
    return {
        name: rl.prepare(rl.make_algorithm(name), batches, num_samples=NUM_SAMPLES, num_games=2)
        for name in rl.algorithm_names()
    }


def prepare(name: str, batch: rl.Batch) -> tuple[np.ndarray, np.ndarray]:
    prepared, advantages = _jitted_by_name(batch)[name]
    return np.asarray(prepared.response_mask), np.asarray(advantages)


def with_rewards(batch: rl.Batch, rewards: list[int]) -> rl.Batch:
    return dataclasses.replace(batch, rewards=jnp.asarray(rewards, jnp.float32))


@given(every_algorithm, whole_rewards, st.integers(0, 9), st.integers(-1000, 1000))
def test_a_constant_added_to_all_rewards_changes_nothing(name: str, rewards: list[int], seed: int, shift: int) -> None:
    batch = ragged(seed)
    mask, before = prepare(name, with_rewards(batch, rewards))
    mask_after, after = prepare(name, with_rewards(batch, [reward + shift for reward in rewards]))
    np.testing.assert_array_equal(mask, mask_after)
    has_fractions = rl.make_algorithm(name).kl in ("reward", "token_reward")  # all other sums are exact, means are not
    np.testing.assert_allclose(before, after, rtol=0, atol=0.02 if has_fractions else 1e-3)


@given(every_algorithm, whole_rewards, st.integers(0, 9), st.permutations(range(NUM_SAMPLES)))
def test_the_order_within_groups_does_not_matter(name: str, rewards: list[int], seed: int, order: list[int]) -> None:
    batch = with_rewards(ragged(seed), rewards)
    index = np.concatenate([NUM_SAMPLES * group + np.array(order) for group in range(NUM_GROUPS)])
    mask, expected = prepare(name, batch)
    mask_after, found = prepare(name, jax.tree.map(lambda x: x[index], batch))
    np.testing.assert_array_equal(mask[index], mask_after)
    np.testing.assert_allclose(expected[index], found, atol=1e-3)


@jax.jit
def _advantages_of_every_comparison(batch: rl.Batch) -> list[jax.Array]:
    algorithms = [
        rl.Algorithm(baseline=baseline, normalize=normalize)
        for baseline, normalize in itertools.product(get_args(Baseline), get_args(Normalize))
        if (baseline, normalize) != ("none", "none")  # plain REINFORCE, which uses the reward itself
    ]
    return [rl.prepare(each, batch, num_samples=NUM_SAMPLES, num_games=2)[1] for each in algorithms]


@given(st.integers(-100_000, 100_000), st.integers(0, 9))
def test_equal_rewards_have_no_advantage(tenths: int, seed: int) -> None:
    batch = dataclasses.replace(ragged(seed), rewards=jnp.full(ROWS, tenths / 10, jnp.float32))
    found = _advantages_of_every_comparison(batch)
    assert len(found) == 11
    assert all((np.asarray(advantages) == 0).all() for advantages in found)


@given(every_algorithm, whole_rewards, st.integers(0, 9))
def test_advantages_are_finite_and_those_of_a_group_sum_to_zero(name: str, rewards: list[int], seed: int) -> None:
    batch = with_rewards(ragged(seed), rewards)
    mask, advantages = prepare(name, batch)
    assert np.isfinite(advantages).all()
    assert (advantages[~mask] == 0).all()
    if name in ("grpo", "dr_grpo", "rloo", "dapo", "gspo"):
        np.testing.assert_allclose(advantages.max(1, initial=0) + advantages.min(1, initial=0), advantages[:, 0])
        np.testing.assert_allclose(advantages[:, 0].reshape(NUM_GROUPS, -1).sum(1), 0, atol=1e-3)


def test_a_batch_without_tokens() -> None:
    batch = dataclasses.replace(ragged(0), response_mask=jnp.zeros((ROWS, 4), bool))
    for name in rl.algorithm_names():
        assert (prepare(name, batch)[1] == 0).all()


@pytest.mark.parametrize("name", rl.algorithm_names())
def test_jitted_and_not(name: str) -> None:
    batch = with_rewards(ragged(3), list(range(ROWS)))
    prepared, advantages = rl.prepare(rl.make_algorithm(name), batch, num_samples=NUM_SAMPLES, num_games=2)
    mask, expected = prepare(name, batch)
    np.testing.assert_array_equal(prepared.response_mask, mask)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
