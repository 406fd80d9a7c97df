"""Returns over several steps, computed by hand and against the definition."""

import dataclasses

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given

from g1jax import rl
from g1jax.rl.returns import discounted_returns, episode_returns, flatten_steps, is_running

F, T = False, True


def column(*values: float) -> jnp.ndarray:
    return jnp.array(values, jnp.float32)[:, None]


def ends(*values: bool) -> jnp.ndarray:
    return jnp.array(values)[:, None]


def test_returns_by_hand() -> None:
    rewards = column(1, 0, 2)
    # 2;  0 + 2 / 2 = 1;  1 + 1 / 2 = 1.5.
    np.testing.assert_allclose(discounted_returns(rewards, ends(F, F, F), 0.5)[:, 0], [1.5, 1, 2])
    np.testing.assert_allclose(discounted_returns(rewards, ends(T, F, F), 0.5)[:, 0], [1, 1, 2])
    np.testing.assert_allclose(discounted_returns(rewards, ends(F, T, F), 0.5)[:, 0], [1, 0, 2])
    np.testing.assert_allclose(discounted_returns(rewards, ends(F, F, F), 0.0)[:, 0], [1, 0, 2])


def test_whole_episodes_by_hand() -> None:
    rewards = column(1, 0, 2, 4)
    np.testing.assert_allclose(episode_returns(rewards, ends(F, F, F, F), 0.5)[:, 0], [2, 2, 2, 2])
    # The first episode earns 1 + 0 / 2, the second 2 + 4 / 2.
    np.testing.assert_allclose(episode_returns(rewards, ends(F, T, F, F), 0.5)[:, 0], [1, 1, 4, 4])


def test_steps_of_the_first_episode() -> None:
    assert is_running(ends(F, T, F, T, F))[:, 0].tolist() == [T, T, F, F, F]
    assert is_running(ends(F, F))[:, 0].tolist() == [T, T]
    assert is_running(ends(T, T, T))[:, 0].tolist() == [T, F, F]


both_returns = jax.jit(lambda *args: (discounted_returns(*args), episode_returns(*args)), static_argnums=2)


@given(st.integers(0, 1000), st.sampled_from([1, 2, 6]), st.sampled_from([0.0, 0.5, 1.0]))
def test_returns_are_discounted_sums(seed: int, steps: int, discount: float) -> None:
    draw = np.random.default_rng(seed)
    rewards, dones = draw.normal(size=(steps, 3)).astype(np.float32), draw.random((steps, 3)) < 0.3
    found, episode = map(np.asarray, both_returns(rewards, dones, discount))
    for b in range(3):
        first = 0
        for t in range(steps):
            total, factor = 0.0, 1.0
            for later in range(t, steps):
                total += factor * float(rewards[later, b])
                factor *= discount
                if dones[later, b]:
                    break
            np.testing.assert_allclose(found[t, b], total, atol=1e-5)
            first = t if t == 0 or dones[t - 1, b] else first
            assert episode[t, b] == found[first, b]


def test_groups_of_episodes() -> None:
    # Two groups of two environments, two steps. Environment 1 ends after its first step, so at the second step
    # environment 0 has nothing to be compared with.
    rewards = jnp.array([[0, 1, 2, 0], [3, 9, 0, 4]], jnp.float32)
    dones = jnp.array([[F, T, F, F], [F, F, F, F]])
    returns = discounted_returns(rewards, dones, 1.0)  # [3 1 2 4], [3 9 0 4]
    mask = is_running(dones)[..., None] & jnp.ones((2, 4, 1), bool)
    zeros = jnp.zeros((2, 4, 1))
    steps = rl.Batch(mask, zeros, None, returns, jnp.zeros((2, 4), jnp.int32))
    batch = flatten_steps(steps)
    assert batch.rewards.shape == (8,)
    _, advantages = rl.prepare(rl.make_algorithm("dr_grpo"), batch, num_samples=2)
    # First step: 3 1 -> 1 -1, 2 4 -> -1 1. Second step: 3 alone -> 0, 0 4 -> -2 2.
    np.testing.assert_allclose(advantages[:, 0], [1, -1, -1, 1, 0, 0, -2, 2])
    whole = dataclasses.replace(steps, rewards=episode_returns(rewards, dones, 1.0))
    _, advantages = rl.prepare(rl.make_algorithm("dr_grpo"), flatten_steps(whole), num_samples=2)
    np.testing.assert_allclose(advantages[:, 0], [1, -1, -1, 1, 0, 0, -1, 1])
