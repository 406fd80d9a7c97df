"""Fast 2048 on the 4×4 board: a line of four cells is packed into one integer, and its slide is a table lookup.

Lines are the rows or columns along the move, from the wall, so all four directions are one case. A packed line has 5
bits per cell, cell 0 lowest. Choosing a random empty cell and detecting the end of the game take a few bit operations.
`sliding` has the same rules for every size, cell by cell; tests compare the two.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int8, UInt32

from g1jax.envs import prng
from g1jax.envs.sliding import merge_cells
from g1jax.typing import Array, Key

SIZE = 4
_BASE = SIZE * SIZE + 2  # exponents 0 … 17, all that 16 cells can hold
_BITS, _CELL = np.uint32(5), np.uint32(0b11111)
_CELLS = np.uint32(0xFFFFF)
_LOWEST_BITS = np.uint32(0b00001_00001_00001_00001)
_ALL_CELLS = np.uint32(0b01111_01111_01111_01111)  # bit 5·cell + line, for all 16 cells
_IS_CHANGED = np.uint32(30)


@functools.cache
def slid_lines() -> UInt32[np.ndarray, "18**4"]:
    """The slide of every line of four cells, by `line_index`.

    An entry has four cells and the exponents of two merged tiles, 5 bits each; bit 30 is set if the line changed.
    """
    index = np.arange(_BASE**SIZE)
    lines = [(index // _BASE**i % _BASE).astype(np.uint32) for i in range(SIZE)]
    cells, merged = merge_cells([*lines])
    first = merged[0] + (merged[0] == 0) * merged[1]  # at most two of the three pairs merge, never adjacent ones
    is_changed = np.any(np.stack(cells) != np.stack(lines), axis=0)
    packed = is_changed.astype(np.uint32) << _IS_CHANGED
    for i, exponent in enumerate([*cells, first, merged[2]]):
        packed |= exponent << (np.uint32(i) * _BITS)
    return packed


def line_index(lines: Int8[Array, "n 4"], is_reversed: Bool[Array, ""]) -> UInt32[Array, "n"]:
    """The table index of each line, read from its start or its end."""
    weights = _BASE ** np.arange(SIZE, dtype=np.uint32)
    weight = jnp.where(is_reversed, weights[::-1], weights)
    cells = lines.astype(jnp.uint32)
    return cells[:, 0] * weight[0] + cells[:, 1] * weight[1] + cells[:, 2] * weight[2] + cells[:, 3] * weight[3]


def slide(
    board: Int8[Array, "4 4"], is_vertical: Bool[Array, ""], is_reversed: Bool[Array, ""]
) -> tuple[UInt32[Array, "4"], Float32[Array, ""], Bool[Array, ""]]:
    """Slides without a new tile: the packed lines, the reward and whether the move is legal."""
    index = line_index(jnp.where(is_vertical, board.T, board), is_reversed)
    entries = list(jnp.asarray(slid_lines()).at[index].get(mode="promise_in_bounds"))
    value = jnp.uint32(0)
    for entry in entries:
        for merged in (entry >> (4 * _BITS), entry >> (5 * _BITS)):
            value += (jnp.uint32(1) << (merged & _CELL)) & ~np.uint32(1)  # exponent 0 (no merge): 1 -> 0
    is_legal = ((entries[0] | entries[1] | entries[2] | entries[3]) >> _IS_CHANGED) > 0
    return jnp.stack([entry & _CELLS for entry in entries]), value.astype(jnp.float32), is_legal


def unpack(lines: UInt32[Array, "4"], is_vertical: Bool[Array, ""], is_reversed: Bool[Array, ""]) -> Int8[Array, "4 4"]:
    """The board of packed lines."""
    shifts = np.arange(SIZE, dtype=np.uint32) * _BITS
    shift = jnp.where(is_reversed, shifts[::-1], shifts)
    board = ((lines[:, None] >> shift[None, :]) & _CELL).astype(jnp.int8)
    return jnp.where(is_vertical, board.T, board)


def spawn(
    packed: UInt32[Array, "4"], is_legal: Bool[Array, ""], key: Key, spawn_four: Float[Array, ""]
) -> tuple[UInt32[Array, "4"], Bool[Array, ""]]:
    """Adds a tile after a legal move: the packed lines, and whether no move is legal any more."""
    lines = list(packed)
    filled = jnp.uint32(0)
    for i, line in enumerate(lines):
        filled |= _filled(line) << i
    empty = ~filled & _ALL_CELLS
    num_empty = jax.lax.population_count(empty)
    nth, uniform = prng.dice(jax.random.bits(key, dtype=jnp.uint32), num_empty)
    bit = prng.nth_bit(empty, nth)
    tile = jnp.where(uniform < spawn_four, jnp.uint32(2), jnp.uint32(1)) << (bit // 5 * 5).astype(jnp.uint32)
    lines = [jnp.where(is_legal & (bit % 5 == i), line | tile, line) for i, line in enumerate(lines)]
    is_full = (num_empty == 0) | ((num_empty == 1) & is_legal)
    is_pair = jnp.bool_(False)
    for i, line in enumerate(lines):
        is_pair |= (_filled(line ^ (line >> _BITS)) | (_LOWEST_BITS & ~np.uint32(0x7FFF))) != _LOWEST_BITS
        if i + 1 < SIZE:
            is_pair |= _filled(line ^ lines[i + 1]) != _LOWEST_BITS
    return jnp.stack(lines), is_full & ~is_pair


def _filled(line: Array) -> Array:
    """The lowest bit of every nonzero cell of a packed line."""
    return (line | (line >> 1) | (line >> 2) | (line >> 3) | (line >> 4)) & _LOWEST_BITS
