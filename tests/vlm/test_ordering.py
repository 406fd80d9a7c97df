"""`after` changes no value, and its dependency survives compilation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from g1jax.vlm.ordering import after


def slow_sum(x: jax.Array) -> jax.Array:
    """A loop."""
    return lax.while_loop(lambda c: jnp.any(c < 100), lambda c: c + 1, x)


def test_values_are_unchanged() -> None:
    tree = {
        "float": jnp.array([-0.0, jnp.inf, jnp.nan, 1e30], jnp.float32),
        "bool": jnp.array([True, False]),
        "byte": jnp.arange(3, dtype=jnp.uint8),
        "key": jax.random.key(3),
    }
    done = (jnp.zeros(2, bool), jnp.full((2, 2), -128, jnp.int8), jnp.array([2**32 - 1], jnp.uint32))
    held = jax.jit(after)(done, tree)
    for name in ("float", "bool", "byte"):
        assert held[name].dtype == tree[name].dtype
        assert np.asarray(held[name]).tobytes() == np.asarray(tree[name]).tobytes()
    assert bool(held["key"] == tree["key"])


def test_the_compiler_keeps_the_dependency() -> None:
    def two_loops(x: jax.Array, y: jax.Array) -> jax.Array:
        return slow_sum(after(slow_sum(x), y))

    def without(x: jax.Array, y: jax.Array) -> jax.Array:
        return slow_sum(lax.optimization_barrier((slow_sum(x), y))[1])

    x = jnp.zeros(4, jnp.int32)
    loops = [str(jax.jit(f).lower(x, x).compile().as_text()).count(" while(") for f in (two_loops, without)]
    assert loops[0] == 2
    assert loops[1] < 2  # the reason for `after`; if this fails, use the barrier
