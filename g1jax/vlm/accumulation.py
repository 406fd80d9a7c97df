"""Gradients of a large batch, a part at a time: less memory, and on a CPU faster, for the parts stay in its caches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from g1jax.errors import ConfigError
from g1jax.typing import Array, Pytree

Loss = Callable[[Any, Any], tuple[Array, Any]]
"""(params, batch) -> a scalar, and a tree of further scalars or arrays to be averaged."""


def accumulated_grad(loss: Loss, num_parts: int) -> Callable[[Pytree, Pytree], tuple[tuple[Array, Any], Pytree]]:
    """As `jax.value_and_grad(loss, has_aux=True)`, over equal parts of the batch one after another.

    Value, auxiliaries and gradient are the means over the parts. So they are those of the whole batch if `loss` is a
    mean over rows, or a sum over tokens divided by a number that does not depend on the part (put it into the batch, a
    copy a row). Part i is the rows i, i + num_parts, …: rows split among devices stay where they are. All of them are
    float32, if params or loss have fewer bits.

    Raises:
        ConfigError: when traced, if the arrays have different numbers of rows, as frames of several games have (take a
            part of every game then), or the rows do not divide.
    """
    ConfigError.require(num_parts > 0, f"num_parts={num_parts}: 1 or more")
    gradient = jax.value_and_grad(loss, has_aux=True)

    def accumulate(params: Pytree, batch: Pytree) -> tuple[tuple[Array, Any], Pytree]:
        if num_parts == 1:
            return widened(gradient(params, batch))
        parts = _split(batch, num_parts)
        shapes = jax.eval_shape(lambda: gradient(params, jax.tree.map(lambda x: x[0], parts)))
        total, _ = lax.scan(lambda sums, part: (add_to(sums, gradient(params, part)), None), empty_sums(shapes), parts)
        mean: tuple[tuple[Array, Any], Pytree] = jax.tree.map(lambda x: x / num_parts, total)
        return mean

    return accumulate


def empty_sums(shapes: Pytree) -> Pytree:
    """Zeros to which arrays of these shapes are added up: float32 where they have fewer bits, which sums would lose."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32 if is_narrow(x) else x.dtype), shapes)


def add_to(sums: Pytree, part: Pytree) -> Pytree:
    """The sums, and a part more."""
    return jax.tree.map(lambda so_far, x: so_far + x.astype(so_far.dtype), sums, part)


def widened(tree: Pytree) -> Pytree:
    """Arrays of float32 where they had fewer bits; the others as they are."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_narrow(x) else x, tree)


def is_narrow(x: Any) -> bool:
    """Whether an array, or its shape, is of floats with less than 32 bits."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating)) and x.dtype.itemsize < 4


def _split(batch: Pytree, num_parts: int) -> Pytree:
    """[B, …] -> [num_parts, B / num_parts, …], every array."""
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    ConfigError.require(len(rows) == 1, f"arrays of a batch with different numbers of rows: {sorted(rows)}")
    count = rows.pop()
    ConfigError.require(count % num_parts == 0, f"a batch of {count} rows does not divide into {num_parts} parts")
    return jax.tree.map(lambda x: split_rows(x, num_parts), batch)


def split_rows(x: Array, num_parts: int) -> Array:
    """[B, …] -> [num_parts, B / num_parts, …], part i the rows i, i + num_parts, …

    Rows that are split among devices stay where they are.
    """
    return jnp.moveaxis(x.reshape(-1, num_parts, *x.shape[1:]), 1, 0)
