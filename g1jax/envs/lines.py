"""Equal tiles along the lines of a board."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int8

from g1jax.typing import Array


def twins(lines: Int8[Array, "n m"]) -> Bool[Array, "n m m"]:
    """Pairs of equal tiles of a line with only empty cells between them, first before second.

    0 is empty. `[2 0 2 2]` has two such pairs: cells 0 and 2, and cells 2 and 3.
    """
    is_tile = lines != 0
    count = jnp.cumsum(is_tile.astype(jnp.int32), axis=1, dtype=jnp.int32)  # tiles up to and including a cell
    first, second = lines[:, :, None], lines[:, None, :]
    is_next = count[:, None, :] - count[:, :, None] == 1
    before = np.triu(np.ones((lines.shape[1],) * 2, bool), 1)[None]
    return (first == second) & is_tile[:, :, None] & is_tile[:, None, :] & is_next & before
