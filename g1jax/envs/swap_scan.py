"""Where Swap's teacher looks: at two lines side by side, along paths on which three equal tiles are one swap away.

Three equal tiles in three neighbouring columns of two neighbouring rows, not all in one of them, become a line when the
odd one changes rows. A path visits one tile of each column; these six meet every such three once:

    x . x .    . x . x    x x . .    x . . x    . . x x    . x x .
    . x . x    x . x .    . . x x    . x x .    x x . .    x . . x

Three equal tiles of four in one row become a line when the tile beyond the gap fills it. A path that leaves out every
third tile meets them; these three, along the one row and then along the other, meet every such three once:

    x x . x x .    . x x . x x    x . x x . x
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.typing import Array, Key

Cell = tuple[int, int]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Look:
    """What is seen along the paths of a band of two rows, or of two columns; N names at most."""

    is_found: Array  # bool[], three equal tiles follow each other on a path
    band: Array  # int32[], by its first row; behind these, by its first column
    named: Array  # int32[N], the kinds on the paths, up to the third equal one; -1 behind it, or behind the end
    is_first: Array  # bool[N], the first of a path
    source: Array  # int32[], the tile to move, in reading order
    target: Array  # int32[], and where to


def look(board: Array, key: Key, count: int) -> list[Look]:
    """So many looks at a board, int8[R, C], each at another band, at random."""
    place = np.arange(board.size, dtype=np.int32).reshape(board.shape)
    board = board.astype(jnp.int32)
    most = max(sum(map(len, paths(length))) for length in board.shape)
    views = [_see(board, place, most), _see(board.T, place.T, most)]
    kinds, is_first, is_end, source, target = (jnp.concatenate(column) for column in zip(*views, strict=True))
    bands = jax.lax.top_k(jax.random.uniform(key, kinds.shape[:1], jnp.float32), count)[1]

    def look_at(band: Array) -> Look:
        end, is_found = jnp.argmax(is_end[band]).astype(jnp.int32), jnp.any(is_end[band])
        is_named = (np.arange(most, dtype=np.int32) <= end) | ~is_found
        named = jnp.where(is_named, kinds[band], -1)
        return Look(is_found, band, named, is_first[band], source[band, end], target[band, end])

    return [look_at(bands[i]) for i in range(count)]


def paths(length: int) -> list[list[Cell]]:
    """The paths along two rows, as (which of them, column)."""
    columns = range(length)
    there_and_back = [[((c + first) % 2, c) for c in columns] for first in (0, 1)]
    two_by_two = [[((c + first) % 4 // 2, c) for c in columns] for first in range(4)]
    with_gaps = [
        [(row, c) for c in columns if (c - first) % 3 != 2] for row in (0, 1) for first in range(3) if length >= 4
    ]
    return there_and_back + two_by_two + with_gaps


def move_of(three: list[Cell]) -> tuple[Cell, Cell]:
    """Which of three tiles that follow each other on a path goes where, to stand in a line with the others."""
    (row, first), (_, second), (_, third) = three
    if third - first == 3:
        return ((row, third), (row, third - 1)) if second == first + 1 else ((row, first), (row, first + 1))
    rows = [row for row, _ in three]
    odd = next(cell for cell in three if rows.count(cell[0]) == 1)
    return odd, (1 - odd[0], odd[1])


def _see(board: Array, place: np.ndarray, most: int) -> tuple[Array, ...]:
    """Of each band of two rows, [R - 1, most]: the kinds on its paths (-1 behind them), where a path begins, where
    three equal tiles end, and which tile then goes where.
    """
    rows, cols = board.shape
    ways = paths(cols)
    cells = [cell for way in ways for cell in way]
    is_first = [i == 0 for way in ways for i in range(len(way))]
    threes = [way[i - 2 : i + 1] if i >= 2 else None for way in ways for i in range(len(way))]
    moves = [move_of(three) if three else ((0, 0), (0, 0)) for three in threes]
    band = np.arange(rows - 1)[:, None]

    def at(values: Array | np.ndarray, these: list[Cell]) -> Array | np.ndarray:
        """The values at a place of every band: [R - 1, N]."""
        row, col = np.array(these).T
        return values[band + row, col[None]]

    kinds = jnp.asarray(at(board, cells))
    before, before_that = (jnp.roll(kinds, by, axis=1) for by in (1, 2))
    is_three = np.array([three is not None for three in threes])[None] & (before == kinds) & (before_that == kinds)
    is_end = is_three & (at(board, [target for _, target in moves]) != kinds)
    source, target = at(place, [source for source, _ in moves]), at(place, [target for _, target in moves])

    def padded(x: Array | np.ndarray, fill: int | bool) -> Array:
        x = jnp.broadcast_to(jnp.asarray(x), kinds.shape)
        return jnp.pad(x, ((0, 0), (0, most - len(cells))), constant_values=fill)

    return (
        padded(kinds, -1),
        padded(np.array(is_first)[None], False),
        padded(is_end, False),
        padded(source, 0),
        padded(target, 0),
    )
