"""Two optimizations for `vmap`: fences against recomputation, and loops that do not wait for the slowest environment.

They change how a batch is computed, never its results.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Bool

from g1jax.typing import Array, Pytree

_SHARE = 16  # `loop_while` advances a 16th of a batch per pass, so that one slow environment costs little


def fenced(function: Callable[..., Any], on_cuda: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The same function, not fused into the consumers of its result.

    XLA's CPU compiler fuses a cheap producer into every consumer and recomputes it for each of their elements. Here the
    function is inside a branch that is always taken, which the compiler cannot know unless the first element of the
    first integer argument is a constant. On accelerators the function is unchanged, or on NVIDIA GPUs `on_cuda`, which
    computes the same in another way.
    """
    cuda = {} if on_cuda is None else {"cuda": on_cuda}

    @custom_vmap
    def run(*args: Any) -> Any:
        return lax.platform_dependent(*args, cpu=lambda *args: _in_branch(function, *args), default=function, **cuda)

    @run.def_vmap
    def _(axis_size: int, in_batched: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        in_axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(in_batched))
        batched = functools.partial(jax.vmap, in_axes=in_axes, axis_size=axis_size)
        out = fenced(batched(function), None if on_cuda is None else batched(on_cuda))(*args)
        return out, jax.tree.map(lambda _: True, out)

    return lambda *args: run(*args)


@fenced
def fence(values: Pytree) -> Pytree:
    """The same values, computed once rather than by each of their consumers."""
    return values


def _in_branch(function: Callable[..., Any], *args: Any) -> Any:
    integers = next(leaf for leaf in jax.tree.leaves(args) if jnp.issubdtype(leaf.dtype, jnp.integer))
    is_true = (integers.reshape(-1)[0] | jnp.ones((), integers.dtype)) != 0

    def nothing(*args: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *args))

    return lax.cond(is_true, function, nothing, *args)


def loop_while(is_active: Callable[[Any], Array], body: Callable[[Any], Any], carry: Any) -> Any:
    """`lax.while_loop` that under `vmap` does not run all environments until the last one is done.

    Each pass gathers a chunk of the environments that are still active, runs the body on it, and scatters the results.
    The functions must not close over traced values; pass these in the carry.
    """

    @custom_vmap
    def run(carry: Any) -> Any:
        return lax.while_loop(is_active, body, carry)

    @run.def_vmap
    def _(axis_size: int, in_batched: Sequence[Any], carry: Any) -> tuple[Any, Any]:
        carry = _all_batched(axis_size, in_batched[0], carry)
        out = _loop_batch(jax.vmap(is_active), jax.vmap(body), carry)
        return out, jax.tree.map(lambda _: True, out)

    return run(carry)


def _loop_batch(is_active: Callable[[Any], Array], body: Callable[[Any], Any], carry: Any) -> Any:
    """`loop_while` over a carry whose leaves all have one leading batch axis; further axes are folded into it."""

    @custom_vmap
    def run(carry: Any) -> Any:
        size = jax.tree.leaves(carry)[0].shape[0]
        chunk = min(size, max(64, size // _SHARE))

        def advance(loop: tuple[Array, Any]) -> tuple[Array, Any]:
            active, carry = loop
            chosen = jnp.nonzero(active, size=chunk, fill_value=size)[0].astype(jnp.int32)
            some = body(jax.tree.map(lambda leaf: leaf.at[chosen].get(mode="clip"), carry))
            carry = jax.tree.map(lambda leaf, new: leaf.at[chosen].set(new, mode="drop"), carry, some)
            return active.at[chosen].set(is_active(some), mode="drop"), carry

        return lax.while_loop(lambda loop: jnp.any(loop[0]), advance, (is_active(carry), carry))[1]

    @run.def_vmap
    def _(axis_size: int, in_batched: Sequence[Any], carry: Any) -> tuple[Any, Any]:
        carry = _all_batched(axis_size, in_batched[0], carry)
        folded = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carry)
        out = _loop_batch(is_active, body, folded)
        out = jax.tree.map(lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return run(carry)


def _all_batched(size: int, in_batched: Any, values: Any) -> Any:
    def batched(is_batched: bool, leaf: Any) -> Any:  # a constant of a jaxpr is no Array
        return leaf if is_batched else jnp.broadcast_to(leaf[None], (size, *leaf.shape))

    return jax.tree.map(batched, in_batched, values)


def where(mask: Bool[Array, "B"], values: Pytree, otherwise: Pytree) -> Pytree:
    """`jnp.where` by leaf: the rows of `values` where the mask holds, else of `otherwise`."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, values, otherwise)
