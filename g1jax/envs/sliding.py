"""The rules of 2048 on single lines of tiles: which are equal, how they slide and merge.

Cells are exponents: 0 is empty, 1 the tile 2, 2 the tile 4.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32, Integer

from g1jax.typing import Array, ArrayLike

Line = list[Integer[ArrayLike, "*n"]]
"""The cells of a line from the wall, or of many lines at once."""


def slide_lines(
    lines: Int8[Array, "n m"], is_reversed: Bool[Array, ""]
) -> tuple[Int8[Array, "n m"], Float32[Array, ""]]:
    """Slides every line towards its start, or its end: the lines, and the reward."""
    towards_start = jnp.where(is_reversed, lines[:, ::-1], lines)
    cells, merged_cells = merge_cells(list(towards_start.T))
    slid = jnp.stack(cells, axis=1)
    exponents = jnp.stack(merged_cells).astype(jnp.uint32) if merged_cells else jnp.zeros((1, 1), jnp.uint32)
    values = (jnp.uint32(1) << exponents) & ~np.uint32(1)  # no merge: 1 -> 0
    reward = jnp.sum(values.astype(jnp.float32))
    return jnp.where(is_reversed, slid[:, ::-1], slid), reward


def merge_cells(cells: Line) -> tuple[Line, Line]:
    """The rule of one line, cell by cell from the wall: `[1 1 1 1] -> [2 2 0 0]`, `[2 1 1 0] -> [2 2 0 0]`.

    The pair nearest the wall merges first, and a tile merges once. Returns the cells and the exponents of the merged
    tiles (0 where none). Works on NumPy and JAX arrays.
    """
    cells = _close_gaps(cells)
    merged = []
    was_merged = cells[0] != cells[0]
    for i in range(len(cells) - 1):
        is_merge = (cells[i] == cells[i + 1]) & (cells[i] != 0) & ~was_merged
        cells[i] = cells[i] + is_merge.astype(cells[i].dtype)
        cells[i + 1] = cells[i + 1] * (~is_merge).astype(cells[i].dtype)
        merged.append(cells[i] * is_merge.astype(cells[i].dtype))
        was_merged = is_merge
    return _close_gaps(cells), merged


def _close_gaps(cells: Line) -> Line:
    """`[0 2 0 4] -> [2 4 0 0]`: tiles swap with the gap before them until no gap is left."""
    cells = list(cells)
    for end in range(len(cells) - 1, 0, -1):
        for i in range(end):
            is_gap = (cells[i] == 0).astype(cells[i].dtype)
            cells[i], cells[i + 1] = cells[i] + is_gap * cells[i + 1], (1 - is_gap) * cells[i + 1]
    return cells


def landing_places(lines: Int8[Array, "n m"], is_reversed: Bool[Array, ""]) -> Int32[Array, "n m"]:
    """The place, counted from the start of its line, or its end, in which each tile lands; -1 for an empty cell.

    `[2 0 2 4]` towards the start: `[0 -1 0 1]`.
    """
    towards_start = jnp.where(is_reversed, lines[:, ::-1], lines)
    was_merged, before = jnp.zeros(len(lines), bool), jnp.zeros(len(lines), lines.dtype)
    place, places = jnp.full(len(lines), -1, jnp.int32), []
    for cell in towards_start.T:
        is_tile = cell != 0
        is_merge = is_tile & (cell == before) & ~was_merged
        place = place + (is_tile & ~is_merge).astype(jnp.int32)
        places.append(jnp.where(is_tile, place, -1))
        was_merged, before = (jnp.where(is_tile, new, old) for new, old in ((is_merge, was_merged), (cell, before)))
    landed = jnp.stack(places, axis=1)
    return jnp.where(is_reversed, landed[:, ::-1], landed)


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


def equal_neighbors(lines: Int8[Array, "n m"]) -> tuple[Bool[Array, "n m"], Bool[Array, "n m"]]:
    """Whether the next tile to the left, and to the right, across empty cells is equal.

    `[1 0 1 2] -> [0 0 1 0], [1 0 0 0]`
    """
    pairs = twins(lines)
    return jnp.any(pairs, axis=1), jnp.any(pairs, axis=2)
