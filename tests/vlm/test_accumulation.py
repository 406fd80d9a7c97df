"""Accumulated gradients equal those of the whole batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import vlm
from g1jax.vlm.accumulation import accumulated_grad
from tests.vlm.shapes import TINY, make_batch, make_params


def loss(params: vlm.Params, batch: Any) -> tuple[jax.Array, Any]:
    tokens, mask, frames = batch["prompt"]
    found = vlm.score(TINY, params, tokens[:, :-3], mask[:, :-3], tokens[:, -3:], mask[:, -3:], frames)
    weight = batch["advantages"][:, None]
    return jnp.mean(found.logprobs * weight), {"entropy": jnp.mean(found.entropy)}


def make() -> dict[str, Any]:
    return {"prompt": make_batch(rows=8), "advantages": jnp.cos(jnp.arange(8, dtype=jnp.float32))}


@pytest.mark.parametrize("num_parts", [1, 2, pytest.param(8, marks=pytest.mark.slow)])
def test_parts_equal_the_whole(num_parts: int) -> None:
    params, batch = make_params(), make()
    (value, aux), whole = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    (found, found_aux), gradient = jax.jit(accumulated_grad(loss, num_parts))(params, batch)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(found_aux["entropy"], aux["entropy"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(gradient), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a) + 1e-7


def test_rows_that_do_not_divide_or_match() -> None:
    with pytest.raises(vlm.ConfigError, match="a batch of 8 rows does not divide into 3 parts"):
        jax.eval_shape(accumulated_grad(loss, 3), make_params(), make())
    batch = {**make(), "advantages": jnp.zeros(4)}
    with pytest.raises(vlm.ConfigError, match=r"different numbers of rows: \[4, 8\]"):
        jax.eval_shape(accumulated_grad(loss, 2), make_params(), batch)


@pytest.mark.parametrize("num_parts", [1, 1024])
def test_parts_add_up_in_float32(num_parts: int) -> None:
    """In bfloat16 a sum of ones stops at 256."""
    weight, rows = jnp.ones((), jnp.bfloat16), jnp.ones(1024, jnp.bfloat16)

    def mean(weight: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.mean(weight * rows), jnp.sum(rows.astype(jnp.float32))

    (value, _), gradient = jax.jit(accumulated_grad(mean, num_parts))(weight, rows)
    assert value.dtype == gradient.dtype == jnp.float32
    assert value == gradient == 1.0
