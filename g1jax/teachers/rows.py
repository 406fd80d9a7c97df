"""What the teacher says of a game whose action is two cells: of each row one legal pair, then which row's it takes.

    0 -
    1 (1, 3) (2, 3)
    2 -
    3 (3, 0) (3, 1)
    Take row 3.

A row's number says where to look, so a policy finds a row's pair by its number, and the chosen pair by its row's.
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
    """A random one of the pairs that are named, of each row the first legal one: (int32[], uint8[T])."""
    num_cells = game.rows * game.cols
    first, second = first_pairs(game.legal_actions(state).reshape(num_cells, num_cells), game.rows)
    chosen = choose_row(first, key)
    is_over = first[chosen] < 0
    action = jnp.where(is_over, game.invalid_action, first[chosen] * num_cells + second[chosen])
    pieces = write_rows(_phrasebook(game.rows, game.cols), first, second, chosen)
    return action, jnp.where(is_over, jnp.uint8(0), pieces)


@functools.lru_cache(maxsize=64)
def _phrasebook(rows: int, cols: int) -> Phrasebook:
    labels = [f"{_line(row)}{row}" for row in range(rows)]
    return Phrasebook([], rows, cols, (*labels, *(f" {row}" for row in range(rows)), _NONE, _TAKE, _END))


def first_pairs(is_legal: Array, rows: int) -> tuple[Array, Array]:
    """The pair that each row names: of its first cell with a legal partner further on, and the first such partner.

    bool[R·C, R·C] -> int32[R], int32[R], places in reading order, -1 where a row has none.
    """
    num_cells = is_legal.shape[0]
    is_ahead = is_legal & ~np.tri(num_cells, dtype=bool)
    has_partner = jnp.any(is_ahead, axis=1).reshape(rows, -1)
    cols = num_cells // rows
    first = jnp.argmax(has_partner, axis=1).astype(jnp.int32) + np.arange(rows, dtype=np.int32) * cols
    second = jnp.argmax(is_ahead[first], axis=1).astype(jnp.int32)
    is_named = jnp.any(has_partner, axis=1)
    return jnp.where(is_named, first, -1), jnp.where(is_named, second, -1)


def choose_row(first: Array, key: Key) -> Array:
    """A random row that names a pair: int32[R] -> int32[]."""
    return jnp.argmax(jnp.where(first >= 0, jax.random.uniform(key, first.shape, jnp.float32), -1.0)).astype(jnp.int32)


def write_rows(book: Phrasebook, first: Array, second: Array, chosen: Array) -> Array:
    """The text of these pairs and the chosen row: int32[R], int32[R], int32[] -> uint8[T]."""
    rows = first.shape[0]
    pieces: list[Array | str] = []
    for row in range(rows):
        pieces += [
            f"{_line(row)}{row}",
            book.phrase_if(first[row] < 0, _NONE),
            book.place(first[row]),
            book.place(second[row]),
        ]
    return book.write([*pieces, _TAKE, book.phrase_of(chosen, [f" {row}" for row in range(rows)]), _END])


def _line(row: int) -> str:
    return "\n" if row else ""
