"""Gradient accumulation: less memory, and faster on a CPU, because microbatches fit in its caches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Shaped

from g1jax.errors import ConfigError
from g1jax.typing import Array, Pytree

Loss = Callable[[Any, Any], tuple[Array, Any]]
"""(params, batch) -> a scalar, and a tree of auxiliary arrays to be averaged."""


def accumulated_grad(loss: Loss, num_parts: int) -> Callable[[Pytree, Pytree], tuple[tuple[Array, Any], Pytree]]:
    """Like `jax.value_and_grad(loss, has_aux=True)`, computed over equal parts of the batch in sequence.

    Value, auxiliaries and gradient are means over the parts. They equal those of the whole batch if `loss` is a mean
    over rows, or a sum over tokens divided by a number that does not depend on the part (put it in the batch, one copy
    per row). Part i has the rows i, i + num_parts, …, so that sharded rows stay on their devices. Results are float32
    if params or loss have fewer bits.

    Raises:
        ConfigError: when traced, if the rows do not divide or the arrays have different numbers of rows, as frames of
            several games do (take a part of every game then).
    """
    ConfigError.require(num_parts > 0, f"num_parts={num_parts}: expected 1 or more")
    gradient = jax.value_and_grad(loss, has_aux=True)

    def accumulate(params: Pytree, batch: Pytree) -> tuple[tuple[Float[Array, ""], Any], Pytree]:
        if num_parts == 1:
            return widened(gradient(params, batch))
        parts = _split(batch, num_parts)
        shapes = jax.eval_shape(lambda: gradient(params, jax.tree.map(lambda x: x[0], parts)))
        total, _ = lax.scan(lambda sums, part: (add_to(sums, gradient(params, part)), None), empty_sums(shapes), parts)
        mean: tuple[tuple[Array, Any], Pytree] = jax.tree.map(lambda x: x / num_parts, total)
        return mean

    return accumulate


def empty_sums(shapes: Pytree) -> Pytree:
    """Zeros to accumulate arrays of these shapes in: float32 where they have fewer bits."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32 if is_narrow(x) else x.dtype), shapes)


def add_to(sums: Pytree, part: Pytree) -> Pytree:
    """The sums plus a part."""
    return jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, part)


def widened(tree: Pytree) -> Pytree:
    """Floats with fewer than 32 bits as float32; other arrays unchanged."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_narrow(x) else x, tree)


def is_narrow(x: Any) -> bool:
    """Whether an array, or a shape, has floats with fewer than 32 bits."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating)) and x.dtype.itemsize < 4


def _split(batch: Pytree, num_parts: int) -> Pytree:
    """[B, …] -> [num_parts, B / num_parts, …] for every array."""
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    ConfigError.require(len(rows) == 1, f"the arrays of a batch have different numbers of rows: {sorted(rows)}")
    count = rows.pop()
    ConfigError.require(count % num_parts == 0, f"a batch of {count} rows does not divide into {num_parts} parts")
    return jax.tree.map(lambda x: split_rows(x, num_parts), batch)


def split_rows(x: Shaped[Array, "B ..."], num_parts: int) -> Shaped[Array, "{num_parts} B//{num_parts} ..."]:
    """Equal parts of the rows; part i has the rows i, i + num_parts, …

    Sharded rows stay on their devices.
    """
    return jnp.moveaxis(x.reshape(-1, num_parts, *x.shape[1:]), 1, 0)


def join_rows(parts: Shaped[Array, "parts B ..."]) -> Shaped[Array, "parts*B ..."]:
    """The inverse of `split_rows`."""
    return jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:])
