"""The order of independent computations with collectives, which must be the same on every device."""

import jax
import jax.numpy as jnp

from g1jax.typing import Array, Pytree


def after(done: Pytree, tree: Pytree) -> Pytree:
    """Within a jit: the same arrays and random keys, available only once the numbers in `done` are computed.

    Each device waits in a collective until all have reached it. If two of them belong to independent loops, such as
    those of two games, XLA's CPU client may run one first on one device and the other on the next, and each waits until
    the process is aborted. `lax.optimization_barrier` does not prevent this: the compiler for CPUs removes it.
    """
    numbers = [leaf for leaf in jax.tree.leaves(done) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    first = [leaf.reshape(-1)[0].astype(jnp.float32) for leaf in numbers]
    is_never = sum(first, jnp.float32(0)) == 1e30  # which the compiler cannot know

    def held(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(held(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jnp.where(is_never, jnp.zeros_like(leaf), leaf)

    return jax.tree.map(held, tree)
