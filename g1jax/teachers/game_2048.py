"""The teacher of 2048: it lists the largest tile that each direction merges, then takes the expert's move.

    up 8
    right 0
    down 8
    left -
    Take down.

`0`: tiles move but none merge; `-`: nothing moves.
"""

import functools

import jax.numpy as jnp

from g1jax.envs.games.game_2048 import DIRECTIONS, Game2048, State, legal_moves
from g1jax.envs.lines import twins
from g1jax.teachers.phrasebook import Phrasebook
from g1jax.typing import Array, Key


def teach(game: Game2048, state: State, key: Key) -> tuple[Array, Array]:
    """The expert's move, and the list of merges: (int32[], uint8[T])."""
    book, board, is_legal = _phrasebook(tuple(game.cell_names())), state.board, legal_moves(state.board)
    action = game.expert(state, key)
    merged = [jnp.max(largest_merge(lines)) for lines in (board.T, board)]
    merged = [jnp.minimum(merged[i], len(game.cell_names()) - 1) for i in (0, 1, 0, 1)]
    pieces: list[Array | str] = []
    for index, name in enumerate(DIRECTIONS):
        largest = jnp.where(merged[index] == 0, book.phrase(" 0"), book.name(merged[index]))
        pieces += [f"{chr(10) if index else ''}{name}", jnp.where(is_legal[index], largest, book.phrase(" -"))]
    pieces += ["\nTake", book.phrase_of(jnp.minimum(action, 3), [f" {name}" for name in DIRECTIONS]), "."]
    return action, jnp.where(jnp.any(is_legal), book.write(pieces), jnp.uint8(0))


def largest_merge(lines: Array) -> Array:
    """The largest tile merged when each line slides, as its exponent, 0 if none: int8[n, m] -> int32[n].

    `[1 1 2 2] -> 3`
    """
    merged = jnp.where(twins(lines), lines[:, :, None].astype(jnp.int32) + 1, 0)
    return jnp.max(merged, axis=(1, 2))


@functools.lru_cache(maxsize=16)
def _phrasebook(cell_names: tuple[str, ...]) -> Phrasebook:
    names = [f" {name}" for name in cell_names]
    directions = [f"{before}{name}" for before in ("", "\n", " ") for name in DIRECTIONS]
    return Phrasebook(names, 0, 0, (*directions, " 0", " -", "\nTake", "."))
