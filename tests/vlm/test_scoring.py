"""Responses that share a prompt have the log-probabilities, entropies and gradients of prompts of their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import vlm
from g1jax.vlm import attention
from tests.vlm.shapes import TINY, make_batch, make_params

SEQUENCE = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, positions="sequence"))
CONFIGS = {
    "plain": TINY,
    "sequence": SEQUENCE,
    "remat": dataclasses.replace(TINY, is_remat=True),
    "scanned": dataclasses.replace(TINY, is_scanned=True, is_remat=True),
    "blockwise": dataclasses.replace(TINY, attention="blockwise"),
}
SAMPLES = 3


IN_CI = [("sequence", 7), ("scanned", 7), ("blockwise", 20), ("plain", 1)]
REST = [("plain", 7), ("remat", 7), ("blockwise", 7), ("scanned", 1)]


@pytest.mark.parametrize(("name", "length"), [*IN_CI, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)])
def test_a_shared_prompt_is_a_prompt_for_each(monkeypatch: pytest.MonkeyPatch, name: str, length: int) -> None:
    monkeypatch.setattr(attention, "_BLOCK", 8)
    config, (tokens, mask, frames) = CONFIGS[name], make_batch()
    rng, rows = np.random.default_rng(0), len(tokens) * SAMPLES
    responses = jnp.asarray(rng.integers(7, 41, (rows, length)), jnp.int32)
    responses = responses.at[0].set(config.image_token_id)  # in a response it is text
    ends = jnp.asarray(rng.integers(0, length + 1, rows))
    response_mask = jnp.arange(length)[None] < ends[:, None]

    def loss(params: vlm.Params, prompts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, vlm.Score]:
        found = vlm.score(config, params, *prompts, responses, response_mask, frames)
        return jnp.sum(jnp.sin(found.logprobs)) + jnp.sum(jnp.cos(found.entropy)), found

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    grads, found = gradient(make_params(config), (tokens, mask))
    repeat = functools.partial(jnp.repeat, repeats=SAMPLES, axis=0)
    expected_grads, expected = gradient(make_params(config), (repeat(tokens), repeat(mask)))
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.entropy, expected.entropy, atol=1e-5, rtol=0)
    assert np.std(np.asarray(found.logprobs)[np.asarray(response_mask)]) > 0.1
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b) + 1e-6


def test_each_prompt_is_computed_once() -> None:
    """The product of a query projection has as many rows as there are tokens: those of the prompts are not repeated."""
    tokens, mask, frames = make_batch()
    rows, length = len(tokens) * SAMPLES, 7
    given = jnp.zeros((rows, length), jnp.int32), jnp.ones((rows, length), bool)
    program = str(jax.make_jaxpr(functools.partial(vlm.score, TINY))(make_params(TINY), tokens, mask, *given, frames))
    assert f"f32[{rows},{tokens.shape[1] + length},{TINY.text.hidden_size}]" not in program
    assert f"f32[{len(tokens)},{tokens.shape[1]},{TINY.text.hidden_size}]" in program
