"""Where Swap's teacher looks: at two lines side by side, along paths on which three equal tiles are one swap away.

Three equal tiles in three neighbouring columns of two neighbouring rows, not all in one of them, become a line when the
odd one changes rows. A path visits one tile of each column; these six meet every such three once:

    x . x .    . x . x    x x . .    x . . x    . . x x    . x x .
    . x . x    x . x .    . . x x    . x x .    x x . .    x . . x
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.typing import Array, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scan:
    """What is seen along the paths of a band of two rows, or of two columns."""

    is_found: Array  # bool[], three equal tiles follow each other on a path
    band: Array  # int32[], by its first row; behind these, by its first column
    named: (
        Array  # int32[6·max(R, C)], the kinds on the paths, up to the third equal one; -1 behind it, or behind the end
    )
    source: Array  # int32[], the tile to move, in reading order
    target: Array  # int32[], and where to


def scan(board: Array, key: Key) -> Scan:
    """A random band of those that show three equal tiles, or if none does, of all: int8[R, C]."""
    place = np.arange(board.size, dtype=np.int32).reshape(board.shape)
    board = board.astype(jnp.int32)
    most = 6 * max(board.shape)
    views = [_look(board, place, most), _look(board.T, place.T, most)]
    kinds, is_end, source, target = (jnp.concatenate(column) for column in zip(*views, strict=True))
    has_three = jnp.any(is_end, axis=1)
    band = jnp.argmax(jax.random.uniform(key, has_three.shape) + has_three.astype(jnp.float32)).astype(jnp.int32)
    end = jnp.argmax(is_end[band])
    is_found = has_three[band]
    is_named = (np.arange(most, dtype=np.int32) <= end) | ~is_found
    named = jnp.where(is_named, kinds[band], -1)
    return Scan(is_found, band, named, source[band, end], target[band, end])


def paths(length: int) -> np.ndarray:
    """Which of a band's two rows each path visits, column by column: int32[6, length]."""
    column = np.arange(length, dtype=np.int32)
    there_and_back = [(column + first) % 2 for first in (0, 1)]
    two_by_two = [(column + first) % 4 // 2 for first in range(4)]
    return np.stack([*there_and_back, *two_by_two])


def _look(board: Array, place: np.ndarray, most: int) -> tuple[Array, Array, Array, Array]:
    """Of each band of two rows, [R - 1, most]: the kinds on its paths (-1 behind them), where three equal ones end, and
    which tile then goes where.
    """
    rows, cols = board.shape
    column = np.arange(cols)
    own = np.arange(rows - 1)[:, None, None] + paths(cols)  # [bands, 6, C], the rows that are visited
    other = 2 * np.arange(rows - 1)[:, None, None] + 1 - own
    kinds, others = board[own, column], board[other, column]
    is_end = jnp.zeros(kinds.shape, bool)
    source, target = np.zeros(own.shape, np.int32), np.zeros(own.shape, np.int32)
    if cols >= 3:
        first, second, third = own[..., :-2], own[..., 1:-1], own[..., 2:]
        odd = np.where(first == second, 2, np.where(second == third, 0, 1))  # of the three, the one in the other row
        odd_column = column[:-2] + odd
        odd_row = np.take_along_axis(own, odd_column, axis=2)
        goes_to = 2 * np.arange(rows - 1)[:, None, None] + 1 - odd_row
        source[..., 2:], target[..., 2:] = place[odd_row, odd_column], place[goes_to, odd_column]
        is_three = (kinds[..., :-2] == kinds[..., 1:-1]) & (kinds[..., 1:-1] == kinds[..., 2:])
        is_other = jnp.take_along_axis(others, jnp.asarray(odd_column), axis=2) != kinds[..., 2:]
        is_end = is_end.at[..., 2:].set(is_three & is_other)

    def flat(x: Array | np.ndarray, fill: int | bool) -> Array:
        x = jnp.asarray(x).reshape(rows - 1, 6 * cols)
        return jnp.pad(x, ((0, 0), (0, most - 6 * cols)), constant_values=fill)

    return flat(kinds, -1), flat(is_end, False), flat(source, 0), flat(target, 0)
