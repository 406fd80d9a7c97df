"""What the teacher of 2048 says: of each direction the largest tile that it makes, and the expert's move.

    up 8
    right 0
    down 8
    left -
    Take down.

`0`: tiles move and none merge; `-`: nothing moves.
"""

import functools

import jax.numpy as jnp

from g1jax.envs.games.game_2048 import DIRECTIONS, Game2048, State, legal_moves
from g1jax.envs.lines import twins
from g1jax.teachers.phrasebook import Phrasebook
from g1jax.typing import Array, Key


def teach(game: Game2048, state: State, key: Key) -> tuple[Array, Array]:
    """The expert's move, and the merges of every direction: (int32[], uint8[T])."""
    book, board, is_legal = _phrasebook(tuple(game.cell_names())), state.board, legal_moves(state.board)
    action = game.expert(state, key)
    made = [jnp.max(largest_merge(lines)) for lines in (board.T, board)]
    made = [jnp.minimum(made[i], len(game.cell_names()) - 1) for i in (0, 1, 0, 1)]
    pieces: list[Array | str] = []
    for index, name in enumerate(DIRECTIONS):
        largest = jnp.where(made[index] == 0, book.phrase(" 0"), book.name(made[index]))
        pieces += [f"{chr(10) if index else ''}{name}", jnp.where(is_legal[index], largest, book.phrase(" -"))]
    pieces += ["\nTake", book.phrase_of(jnp.minimum(action, 3), [f" {name}" for name in DIRECTIONS]), "."]
    return action, jnp.where(jnp.any(is_legal), book.write(pieces), jnp.uint8(0))


def largest_merge(lines: Array) -> Array:
    """The largest tile that each line makes when it slides, as its exponent, 0 if none: int8[n, m] -> int32[n].

    `[1 1 2 2] -> 3`
    """
    made = jnp.where(twins(lines), lines[:, :, None].astype(jnp.int32) + 1, 0)
    return jnp.max(made, axis=(1, 2))


@functools.lru_cache(maxsize=16)
def _phrasebook(cell_names: tuple[str, ...]) -> Phrasebook:
    names = [f" {name}" for name in cell_names]
    directions = [f"{before}{name}" for before in ("", "\n", " ") for name in DIRECTIONS]
    return Phrasebook(names, 0, 0, (*directions, " 0", " -", "\nTake", "."))
