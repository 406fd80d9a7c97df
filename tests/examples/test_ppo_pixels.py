"""The example: its parts against plain ones, a tiny run, and that it learns."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import ppo_pixels
from g1jax.adapters import gymnax


@pytest.fixture(autouse=True, scope="module")
def _settings() -> Iterator[None]:
    """Compiles quickly, and with JAX's own promotion of dtypes and ranks, as in a user's program."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_a_tiny_run_prints_its_table_and_keeps_to_the_mask(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ppo_pixels.Settings(
        game="shisen_sho",
        mask=True,
        updates=4,
        rows=2,
        episodes=4,
        num_envs=4,
        num_steps=4,
        minibatches=2,
        width=8,
        depth=1,
    )
    ppo_pixels.main(tiny)
    printed = capsys.readouterr().out
    assert "256 actions, episodes of at most 100 steps" in printed
    of_all, of_legal = map(float, re.findall(r"(-?[\d.]+) among", printed))
    assert of_all < -70
    assert 5 < of_legal <= 8
    rows = re.findall(r"\| (\d+) \| \d+ \| (-?[\d.]+) \|", printed)
    assert [steps for steps, _ in rows] == ["0", "32", "64"]
    assert all(5 < float(mean) <= 8 for _, mean in rows)  # an illegal action costs 1, and there would be dozens


def test_advantages_are_the_discounted_sums_of_errors() -> None:
    env, _ = gymnax.make("game_2048")
    settings = ppo_pixels.Settings()
    random = np.random.default_rng(0)
    reward, value = random.normal(size=(2, 5, 3)).astype(np.float32)
    is_done = random.random((5, 3)) < 0.3
    last_value = random.normal(size=3).astype(np.float32)
    no = jnp.zeros((5, 3))
    steps = ppo_pixels.Steps(no, no, no, no, *map(jnp.asarray, (value, reward, is_done)))
    found = ppo_pixels.Learner(env, settings).advantages(steps, jnp.asarray(last_value))
    following = np.vstack([value[1:], last_value]) * ~is_done
    error = reward + settings.discount * following - value
    for t in range(5):
        weight, expected = np.ones(3), np.zeros(3)
        for i in range(t, 5):
            expected += weight * error[i]
            weight *= settings.discount * settings.gae_lambda * ~is_done[i]
        np.testing.assert_allclose(found[t], expected, rtol=1e-4, atol=1e-5)


def test_a_projection_of_neighborhoods_is_a_convolution() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 6))
    expected: Any = nn.Conv(6, (3, 3), use_bias=False).apply({"params": {"kernel": kernel}}, x)
    found = ppo_pixels.neighborhoods(x) @ kernel.reshape(27, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_learns_to_see_which_pairs_match() -> None:
    """2×4 cells of two kinds: about 6 of 64 actions are legal."""
    jax.config.update("jax_disable_most_optimizations", False)
    env, _ = gymnax.make("shisen_sho", obs="pixels", max_steps=20, cell_size=8, rows=2, cols=4, colors=2, shapes=1)
    learner = ppo_pixels.Learner(env, ppo_pixels.Settings(num_envs=64, num_steps=16, minibatches=4, episodes=64))
    run = learner.start(jax.random.key(0))
    before = learner.evaluate(run.params)
    after = learner.evaluate(learner.train(run, 150).params)
    assert before < -8
    assert after > before + 8
