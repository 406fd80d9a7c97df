"""Some rows of a batch, taken out of it and put back: for example those that are not done yet.

Rows that are sharded stay on their devices: each device takes as many of its own.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int32

from g1jax.typing import Array
from g1jax.vlm.sharding import num_shards


def batch_sizes(num_rows: int, num_halvings: int = 3) -> list[int]:
    """The sizes that a batch is cut down to, ascending: all rows, a half, a quarter, an eighth, where they divide.

    >>> batch_sizes(24), batch_sizes(6)
    ([3, 6, 12, 24], [3, 6])
    """
    shards = num_shards(num_rows)
    sizes = [num_rows // 2**k for k in range(num_halvings + 1) if num_rows % (2**k * shards) == 0]
    return sizes[::-1]


def running_first(is_done: Bool[Array, "B"]) -> tuple[Int32[Array, "shards B//shards"], Int32[Array, ""]]:
    """Each device's rows, those that are not done first; and how many rows a batch needs to hold all of these.

    >>> order, needed = running_first(jnp.array([True, False, True, False]))
    >>> order.tolist(), int(needed)
    ([[1, 3, 0, 2]], 2)
    """
    shards = num_shards(len(is_done))
    local = is_done.reshape(shards, -1)
    order = jnp.argsort(local, axis=1, stable=True).astype(jnp.int32)
    return order, jnp.max(jnp.sum((~local).astype(jnp.int32), axis=1)) * shards


def take_rows(x: Array, index: Int32[Array, "shards b"], axis: int = 0) -> Array:
    """The rows of each device at its indices: `[a b | c d]` at `[[1], [0]]` is `[b | c]`."""
    axis %= x.ndim

    def take(x: Array, index: Array) -> Array:
        return x.at[(*[slice(None)] * axis, index)].get(mode="promise_in_bounds")

    taken: Array = jax.vmap(take, (axis, 0), axis)(_by_device(x.shape, x, index, axis), index)
    return taken.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def put_rows(x: Array, index: Int32[Array, "shards b"], rows: Array, axis: int = 0) -> Array:
    """`x` with the rows of each device at its indices replaced."""
    axis %= x.ndim

    def put(x: Array, index: Array, rows: Array) -> Array:
        place = (*[slice(None)] * axis, index)
        return x.at[place].set(rows, mode="promise_in_bounds", unique_indices=True)

    local, rows = _by_device(x.shape, x, index, axis), _by_device(x.shape, rows, index, axis)
    new: Array = jax.vmap(put, (axis, 0, axis), axis)(local, index, rows)
    return new.reshape(x.shape)


def _by_device(shape: Sequence[int], x: Array, index: Array, axis: int) -> Array:
    """[…, B, …] -> […, shards, B // shards, …]."""
    return x.reshape(*shape[:axis], len(index), -1, *shape[axis + 1 :])
