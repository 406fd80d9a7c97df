"""Blockwise attention against the plain one: values and gradients, by shape and mask."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import vlm
from g1jax.vlm import attention, generation
from g1jax.vlm.attention import Causal, Filled, Mask, attend, attend_to_cache, even_lengths
from g1jax.vlm.cache import CachedLayer
from tests.vlm.shapes import TINY, make_params

BLOCKWISE = dataclasses.replace(TINY, attention="blockwise")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK", 8)
    monkeypatch.setattr(attention, "CACHE_BLOCK", 16)
    monkeypatch.setattr(generation, "CACHE_BLOCK", 16)


def make_inputs(queries: int, keys: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries of 8 heads, keys and values of 2."""
    shapes = (3, 8, queries, 16), (3, 2, keys, 16), (3, 2, keys, 16)
    query, key, value = (
        jax.random.normal(k, shape) for k, shape in zip(jax.random.split(jax.random.key(0), 3), shapes, strict=True)
    )
    return query, key, value


@pytest.mark.parametrize(("queries", "start"), [(37, 0), (29, 8), (9, 28), (32, 5)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_blocks_of_queries(queries: int, start: int, is_causal: bool) -> None:
    inputs = make_inputs(queries, 37)
    is_token = jnp.arange(37)[None] >= jnp.array([[0], [3], [9]])
    mask: Mask = Causal(is_token, start) if is_causal else None
    is_used = (start + jnp.arange(queries)[None] >= jnp.array([[0], [3], [9]]))[:, None, :, None]

    def loss(config: vlm.Config, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        out = jnp.where(is_used, attend(config, query, key, value, mask), 0.0)  # padding attends to nothing
        return jnp.sum(jnp.sin(out))

    for config in (TINY, BLOCKWISE):
        found = jax.jit(jax.value_and_grad(functools.partial(loss, config), (0, 1, 2)))(*inputs)
        if config is TINY:
            expected = found
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("queries", [1, 6, 7])
@pytest.mark.parametrize("keys", [12, 13])
@pytest.mark.parametrize("mask", [None, "all", "each"])
def test_even_lengths_for_cudnn(queries: int, keys: int, mask: str | None) -> None:
    inputs = make_inputs(queries, keys)
    dense = jax.random.bernoulli(jax.random.key(1), 0.7, (3, 1 if mask == "all" else queries, keys)) if mask else None
    *even, even_mask = even_lengths(*inputs, dense)
    assert (even[0].shape[2] % 2, even[1].shape[2] % 2, even[2].shape[2] % 2) == (0, 0, 0)
    found = attend(TINY, even[0], even[1], even[2], even_mask)[:, :, :queries]
    np.testing.assert_allclose(found, attend(TINY, *inputs, dense), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 16, 17, 30, 48])
def test_the_filled_part_of_a_cache(length: int) -> None:
    query, key, value = make_inputs(1, 48)
    is_read = jnp.arange(48) < -(-length // 16) * 16  # the last block is read as a whole
    key, value = (jnp.where(is_read[None, None, :, None], x, jnp.nan) for x in (key, value))
    is_token = (jnp.arange(48)[None] >= jnp.array([[0], [0], [min(5, length - 1)]])) & (jnp.arange(48)[None] < length)
    mask = Filled(is_token, jnp.int32(length))
    expected = attend(TINY, query, jnp.nan_to_num(key), jnp.nan_to_num(value), mask)
    stacked = CachedLayer((jnp.stack([jnp.full_like(key, jnp.nan), key]), jnp.stack([key, value])), jnp.int32(1))
    for layer in (CachedLayer((key, value)), stacked):
        found = attend_to_cache(BLOCKWISE, query, layer, mask)
        np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5)


def test_a_layer_in_a_stack_is_written_and_read_like_one_alone() -> None:
    _, key, value = make_inputs(1, 48)
    new_key, new_value = key[:, :, :2] + 1, value[:, :, :2] + 1
    alone = CachedLayer((key, value)).write(new_key, new_value, jnp.int32(7))
    stack = CachedLayer((jnp.stack([key, key]), jnp.stack([value, value])), jnp.int32(1))
    written = stack.write(new_key, new_value, jnp.int32(7))
    assert alone.length == written.length == 48
    for part, among in zip(alone.key_value, written.key_value, strict=True):
        np.testing.assert_array_equal(among[1], part)
    np.testing.assert_array_equal(alone.key_value[0][:, :, 7:9], new_key)
    np.testing.assert_array_equal(written.key_value[0][0], key)  # the other layer is as before
    for start, size in ((0, None), (16, 16)):
        jax.tree.map(np.testing.assert_array_equal, written.read(start, size), alone.read(start, size))


def test_the_sampler_is_the_scorer_and_writes_what_plain_attention_writes() -> None:
    rng = np.random.default_rng(0)
    image = np.full((4, 6), TINY.image_token_id)
    tokens = np.concatenate([rng.integers(7, 41, (4, 5)), image, rng.integers(7, 41, (4, 6))], axis=1).astype(np.int32)
    mask = np.arange(tokens.shape[1])[None] >= np.array([0, 1, 3, 5])[:, None]
    frames = rng.integers(0, 256, (4, 56, 84, 3)).astype(np.uint8)
    params = make_params(TINY, 5.0)
    for config in (TINY, BLOCKWISE):
        generate = jax.jit(functools.partial(vlm.generate, config, max_new_tokens=80, num_samples=2, stop_tokens=(9,)))
        response = generate(params, tokens, mask, frames, jax.random.key(1))
        rows = [np.repeat(x, 2, axis=0) for x in (tokens, mask)]
        score = jax.jit(functools.partial(vlm.score, config))
        found = score(params, *rows, response.response_tokens, response.response_mask, frames)
        np.testing.assert_allclose(found.logprobs, response.logprobs, atol=1e-5, rtol=0)
        if config is TINY:
            expected = response
    lengths = np.asarray(expected.response_mask).sum(axis=1)
    assert len(set(lengths.tolist())) > 3
    np.testing.assert_array_equal(response.response_tokens, expected.response_tokens)
