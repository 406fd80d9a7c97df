"""The exact mean gradient of each algorithm, over all groups that a tiny policy can generate, by probability.

On-policy and without KL it must be the gradient of the expected reward, times a factor computed by hand.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import rl
from g1jax.typing import Array

K, N, FIRST = 3, 2, 3
FULL: list[tuple[int, ...]] = [(a, b) for a in range(K) for b in range(K)]
RAGGED: list[tuple[int, ...]] = [(0,), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
"""Responses if token 0 ends one."""

PARAMS = jnp.asarray(np.random.default_rng(0).normal(size=(N, K + 1, K)), jnp.float32)


def tables(responses: list[tuple[int, ...]]) -> tuple[Array, Array]:
    tokens = np.array([response + (0,) * (N - len(response)) for response in responses], np.int32)
    mask = np.array([[t < len(response) for t in range(N)] for response in responses])
    return jnp.asarray(tokens), jnp.asarray(mask)


def logprobs_of(params: Array, tokens: Array) -> Array:
    """int32[B, N] -> float32[B, N], each token conditioned on the previous one."""
    before = jnp.concatenate([jnp.full_like(tokens[:, :1], FIRST), tokens[:, :-1]], axis=1)
    table = jax.nn.log_softmax(params)
    return jnp.stack([table[t, before[:, t], tokens[:, t]] for t in range(N)], axis=1)


def probabilities(params: Array, responses: list[tuple[int, ...]]) -> Array:
    tokens, mask = tables(responses)
    return jnp.exp(jnp.sum(jnp.where(mask, logprobs_of(params, tokens), 0.0), axis=1))


def expected_reward(params: Array, responses: list[tuple[int, ...]], rewards: Array) -> Array:
    return jnp.sum(probabilities(params, responses) * rewards)


def mean_gradient(algorithm: rl.Algorithm, responses: list[tuple[int, ...]], rewards: Array, num_samples: int) -> Array:
    """The mean gradient of the loss of a group of `num_samples` responses."""
    tokens, mask = tables(responses)
    groups = jnp.array(list(itertools.product(range(len(responses)), repeat=num_samples)), jnp.int32)
    probability = jnp.prod(probabilities(PARAMS, responses)[groups], axis=1)
    np.testing.assert_allclose(probability.sum(), 1, rtol=1e-5)

    def loss(params: Array, group: Array) -> Array:
        sampled = jax.lax.stop_gradient(logprobs_of(params, tokens[group]))
        batch = rl.Batch(mask[group], sampled, None, rewards[group], jnp.zeros(num_samples, jnp.int32))
        batch, advantages = rl.prepare(algorithm, batch, num_samples=num_samples)
        new = logprobs_of(params, tokens[group])
        return rl.policy_loss(algorithm, new, jnp.zeros_like(new), batch, advantages)[0]

    return jax.jit(jax.grad(lambda params: jnp.sum(probability * jax.vmap(loss, (None, 0))(params, groups))))(PARAMS)


def check(algorithm: rl.Algorithm, responses: list[tuple[int, ...]], rewards: Array, n: int, factor: float) -> None:
    exact = jax.grad(expected_reward)(PARAMS, responses, rewards)
    assert jnp.abs(exact).max() > 0.05
    found = mean_gradient(algorithm, responses, rewards, n)
    np.testing.assert_allclose(found, -factor * exact, atol=3e-6)


REWARDS = jnp.array([0.3, -1.0, 2.0, 0.5, 0.0, 1.5, -0.7, 1.0, 0.2])
BINARY = jnp.array([0.0, 1, 0, 0, 1, 1, 0, 0, 0])

# Pairs with rewards of 0 or 1. If the two are equal the advantages are 0; else they are plus and minus
#   1 / sqrt(2)  divided by the standard deviation with ddof 1
#   1            divided by that with ddof 0, or compared with the other
#   1 / 2        compared with the mean.
# The difference to the other is unbiased; the loss is a mean over N tokens.
FACTORS = {
    "grpo": 1 / math.sqrt(2),
    "dapo": 1 / math.sqrt(2),
    "gspo": 1 / math.sqrt(2),
    "rloo": 1.0,
    "reinforce_pp": 1.0,
    "reinforce_pp_baseline": 1.0,
    "dr_grpo": 0.5,
}


@pytest.mark.parametrize("name", rl.algorithm_names())
def test_pairs(name: str) -> None:
    changes = {"max_length": 2 * N} if name == "dapo" else {}  # so that no response is punished
    check(rl.make_algorithm(name, kl="none", **changes), FULL, BINARY, 2, FACTORS[name] / N)


def test_rloo_is_unbiased() -> None:
    """For any rewards, lengths and number of responses; Dr. GRPO up to a factor of (n − 1) / n."""
    rloo, dr_grpo = rl.make_algorithm("rloo", kl="none"), rl.make_algorithm("dr_grpo")
    for responses, n in ((FULL, 2), (RAGGED, 2), (RAGGED, 3)):
        rewards = REWARDS[: len(responses)]
        check(rloo, responses, rewards, n, 1 / N)
        check(dr_grpo, responses, rewards, n, (n - 1) / n / N)


def test_plain_reinforce_is_unbiased() -> None:
    reinforce = rl.Algorithm(baseline="none", normalize="none", aggregation="constant")
    check(reinforce, RAGGED, REWARDS[: len(RAGGED)], 1, 1 / N)
    check(reinforce, RAGGED, REWARDS[: len(RAGGED)], 2, 1 / N)


def test_means_over_tokens_are_biased_by_length() -> None:
    """Dr. GRPO's point: with the mean instead of the sum over a response, the gradient favors short responses."""
    rewards = REWARDS[: len(RAGGED)]
    algorithm = rl.make_algorithm("rloo", kl="none", aggregation="sequence_mean")
    found = mean_gradient(algorithm, RAGGED, rewards, 2).reshape(-1)
    exact = -jax.grad(expected_reward)(PARAMS, RAGGED, rewards).reshape(-1)
    cosine = jnp.dot(found, exact) / jnp.linalg.norm(found) / jnp.linalg.norm(exact)
    assert 0.5 < cosine < 0.999
