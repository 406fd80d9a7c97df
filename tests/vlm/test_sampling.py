"""Sampled tokens against their distribution, computed in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import vlm
from g1jax.vlm import sampling as sampling_module

LOGITS = np.array([2.0, -1.0, 0.5, 0.4, 3.0, -4.0, 1.0, 0.9, -0.3, 2.2], np.float32)


def expected_distribution(sampling: vlm.Sampling) -> np.ndarray:
    """By definition: token by token, in order of probability."""
    scaled = LOGITS.astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled.max())
    order = np.argsort(-scaled)
    kept = list(order[: sampling.top_k or None])
    total = probabilities[kept].sum()
    mass, nucleus = 0.0, []
    for token in kept:
        if mass < sampling.top_p:
            nucleus.append(token)
        mass += probabilities[token] / total
    out = np.zeros(len(scaled))
    out[nucleus] = probabilities[nucleus] / probabilities[nucleus].sum()
    return out


SAMPLINGS = [
    vlm.Sampling(),
    vlm.Sampling(temperature=0.5),
    vlm.Sampling(temperature=2.5),
    vlm.Sampling(top_k=3),
    vlm.Sampling(top_k=100),
    vlm.Sampling(top_p=0.8),
    vlm.Sampling(top_p=1e-6),
    vlm.Sampling(temperature=1.7, top_k=6, top_p=0.9),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_tokens_follow_the_distribution(sampling: vlm.Sampling) -> None:
    count = 20_000
    expected = expected_distribution(sampling)
    logprobs = vlm.log_distribution(sampling, jnp.asarray(LOGITS))
    np.testing.assert_allclose(np.exp(logprobs), expected, atol=1e-6)
    rows = jnp.broadcast_to(jnp.asarray(LOGITS), (count, len(LOGITS)))
    tokens, taken = vlm.sample(sampling, rows, jax.random.key(0))
    np.testing.assert_allclose(np.exp(taken), expected[np.asarray(tokens)], atol=1e-6)
    observed = np.bincount(np.asarray(tokens), minlength=len(LOGITS))
    assert observed[expected == 0].sum() == 0
    wanted = expected[expected > 0] * count
    chi_square = ((observed[expected > 0] - wanted) ** 2 / wanted).sum()
    freedom = len(wanted) - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom) + 8


def test_greedy_is_certain() -> None:
    tokens, logprobs = vlm.sample(vlm.GREEDY, jnp.asarray(LOGITS)[None], jax.random.key(0))
    assert (tokens.tolist(), logprobs.tolist()) == ([4], [0.0])
    np.testing.assert_array_equal(np.exp(vlm.log_distribution(vlm.GREEDY, jnp.asarray(LOGITS))), np.eye(10)[4])


def test_entropy() -> None:
    for sampling in SAMPLINGS:
        p = expected_distribution(sampling)
        found = sampling_module.entropy(vlm.log_distribution(sampling, jnp.asarray(LOGITS)))
        np.testing.assert_allclose(found, -(p[p > 0] * np.log(p[p > 0])).sum(), atol=1e-5)


@pytest.mark.parametrize("changes", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_invalid_settings(changes: dict[str, float]) -> None:
    with pytest.raises(vlm.ConfigError, match=next(iter(changes))):
        vlm.Sampling(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 31, 32, 33, 1000, 5000])
def test_impossible_tokens_are_never_sampled(size: int) -> None:
    """With many impossible tokens and whole blocks of them; uniform numbers at both ends and random ones."""
    rng = np.random.default_rng(size)
    probabilities = rng.random((200, size), np.float32) ** 8 * (rng.random((200, size)) < 0.2)
    probabilities[:, size // 3 : size // 2] = 0
    probabilities[np.arange(200), rng.integers(0, size, 200)] = rng.random(200) + 1e-6
    uniform = rng.random(200, np.float32)
    uniform[:40], uniform[40:80] = 0.0, np.nextafter(np.float32(1), np.float32(0))
    tokens = np.asarray(jax.jit(sampling_module._inverse_cdf)(probabilities, uniform))
    assert (probabilities[np.arange(200), tokens] > 0).all()
    sums = np.cumsum(probabilities.astype(np.float64), axis=1)
    share = sums / sums[:, -1:]
    before = np.where(tokens > 0, share[np.arange(200), tokens - 1], 0.0)
    assert (before <= uniform + 1e-5).all()
    assert (uniform <= share[np.arange(200), tokens] + 1e-5).all()


def test_many_tokens_follow_the_distribution_with_a_key_a_row() -> None:
    count, size = 40_000, 300
    logits = np.random.default_rng(0).normal(size=size).astype(np.float32) * 1.5
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, size))
    draw = jax.jit(lambda rows, keys: vlm.sample(vlm.Sampling(), rows, keys))
    keys = jax.random.split(jax.random.key(1), count)
    tokens, _ = draw(rows, keys)
    wanted = np.exp(logits - logits.max()).astype(np.float64)
    wanted *= count / wanted.sum()
    observed = np.bincount(np.asarray(tokens), minlength=size)
    chi_square = ((observed - wanted) ** 2 / wanted).sum()
    assert chi_square < size + 4 * np.sqrt(2 * size)
    np.testing.assert_array_equal(draw(rows[:1], keys[7:8])[0][0], tokens[7])
