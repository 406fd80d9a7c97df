"""Tiles along the lines of a board: which have an equal one next in line."""

import jax.numpy as jnp
import numpy as np

from g1jax.typing import Array


def twins(lines: Array) -> Array:
    """Which equal tiles see each other along each line: int8[n, m] -> bool[n, m, m], the first before the second.

    0 is empty. `[2 0 2 2]` has two such pairs, of places 0 and 2 and of places 2 and 3.
    """
    is_tile = lines != 0
    count = jnp.cumsum(is_tile.astype(jnp.int32), axis=1, dtype=jnp.int32)  # of tiles up to a place, its own too
    first, second = lines[:, :, None], lines[:, None, :]
    is_next = count[:, None, :] - count[:, :, None] == 1
    before = np.triu(np.ones((lines.shape[1],) * 2, bool), 1)[None]
    return (first == second) & is_tile[:, :, None] & is_tile[:, None, :] & is_next & before
