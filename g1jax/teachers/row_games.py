"""The teacher of games whose action is two cells: it lists one legal pair per row, then chooses a row.

    0 -
    1 (1, 3) (2, 3)
    2 -
    3 (3, 0) (3, 1)
    Take row 3.

Row numbers tell a policy where to attend: a row's number leads to its pair, and the chosen number to the chosen pair.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.envs.core import Game
from g1jax.teachers.phrasebook import Phrasebook
from g1jax.typing import Array, Key

_NONE, _TAKE, _END = " -", "\nTake row", "."


def teach(game: Game[Any], state: Any, key: Key) -> tuple[Array, Array]:
    """A random one of the listed pairs, and the list: (int32[], uint8[T])."""
    num_cells = game.rows * game.cols
    first, second = first_pairs(game.legal_actions(state).reshape(num_cells, num_cells), game.rows)
    chosen = choose_row(first, key)
    is_over = first[chosen] < 0
    action = jnp.where(is_over, game.invalid_action, first[chosen] * num_cells + second[chosen])
    rationale = write_rows(_phrasebook(game.rows, game.cols), first, second, chosen)
    return action, jnp.where(is_over, jnp.uint8(0), rationale)


def teach_uniform(game: Game[Any], state: Any, key: Key) -> tuple[Array, Array]:
    """A random row's pair, or two adjacent cells of a row without one, and the list: (int32[], uint8[T])."""
    row_key, col_key = jax.random.split(key)
    col = jax.random.randint(col_key, (), 0, max(game.cols - 1, 1), jnp.int32)
    return _take(game, state, jax.random.randint(row_key, (), 0, game.rows, jnp.int32), col)


def teach_first(game: Game[Any], state: Any, key: Key) -> tuple[Array, Array]:
    """The first row's pair, or its first two cells if it has none, and the list: (int32[], uint8[T])."""
    del key
    return _take(game, state, jnp.int32(0), jnp.int32(0))


def _take(game: Game[Any], state: Any, chosen: Array, col: Array) -> tuple[Array, Array]:
    """A row's pair, or the two cells from a column on if it has none, and the list."""
    num_cells = game.rows * game.cols
    first, second = first_pairs(game.legal_actions(state).reshape(num_cells, num_cells), game.rows)
    cell = chosen * game.cols + col
    has_pair, is_over = first[chosen] >= 0, jnp.all(first < 0)
    pair = jnp.where(has_pair, first[chosen] * num_cells + second[chosen], cell * num_cells + (cell + 1) % num_cells)
    rationale = write_rows(_phrasebook(game.rows, game.cols), first, second, chosen)
    return jnp.where(is_over, game.invalid_action, pair), jnp.where(is_over, jnp.uint8(0), rationale)


@functools.lru_cache(maxsize=64)
def _phrasebook(rows: int, cols: int) -> Phrasebook:
    return Phrasebook([], rows, cols, (*_labels(rows), *(f" {row}" for row in range(rows)), _NONE, _TAKE, _END))


def first_pairs(is_legal: Array, rows: int) -> tuple[Array, Array]:
    """Each row's first cell with a legal partner later in reading order, and the first such partner.

    bool[R·C, R·C] -> int32[R], int32[R], places in reading order, -1 for a row without a pair.
    """
    num_cells = is_legal.shape[0]
    is_ahead = is_legal & ~np.tri(num_cells, dtype=bool)
    has_partner = jnp.any(is_ahead, axis=1).reshape(rows, -1)
    cols = num_cells // rows
    first = jnp.argmax(has_partner, axis=1).astype(jnp.int32) + np.arange(rows, dtype=np.int32) * cols
    second = jnp.argmax(is_ahead[first], axis=1).astype(jnp.int32)
    has_pair = jnp.any(has_partner, axis=1)
    return jnp.where(has_pair, first, -1), jnp.where(has_pair, second, -1)


def choose_row(first: Array, key: Key) -> Array:
    """A random row with a pair: int32[R] -> int32[]."""
    return jnp.argmax(jnp.where(first >= 0, jax.random.uniform(key, first.shape, jnp.float32), -1.0)).astype(jnp.int32)


def write_rows(book: Phrasebook, first: Array, second: Array, chosen: Array) -> Array:
    """The text of the rows' pairs and the chosen row: int32[R], int32[R], int32[] -> uint8[T]."""
    rows = first.shape[0]
    pieces: list[Array | str] = []
    for row, label in enumerate(_labels(rows)):
        pieces += [label, book.phrase_if(first[row] < 0, _NONE), book.place(first[row]), book.place(second[row])]
    return book.write([*pieces, _TAKE, book.phrase_of(chosen, [f" {row}" for row in range(rows)]), _END])


def _labels(rows: int) -> list[str]:
    return ["0", *(f"\n{row}" for row in range(1, rows))]
