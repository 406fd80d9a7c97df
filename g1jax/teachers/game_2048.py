"""The teacher of 2048: it lists, by direction, the largest tile that the move makes, and the largest that the next can.

    up 8 4
    right 0 8
    down 8 16
    left -
    Take down.

`0`: nothing merges; `-`: nothing moves. The second number is that of the board before a new tile appears. The teacher
takes the direction with the highest sum; among equal ones the expert's choice.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Int32

from g1jax.envs.games.game_2048 import (
    DIRECTIONS,
    Game2048,
    State,
    largest_merges,
    legal_moves,
    move_values,
    next_merges,
)
from g1jax.teachers.phrasebook import Phrasebook
from g1jax.typing import Array, Key


def teach(game: Game2048, state: State, key: Key) -> tuple[Array, Array]:
    """The move with the highest sum of merges, and the list: (int32[], uint8[T])."""
    del key
    board, is_legal = state.board, legal_moves(state.board)
    now, then = largest_merges(board), next_merges(board)
    values = move_values(board, state.level.spawn_four)
    is_best = is_legal & (_sum(now, then) == jnp.max(jnp.where(is_legal, _sum(now, then), -1)))
    action = jnp.argmax(jnp.where(is_best, values, -jnp.inf)).astype(jnp.int32)
    return jnp.where(jnp.any(is_legal), action, game.invalid_action), _rationale(game, state, now, then, action)


def teach_uniform(game: Game2048, state: State, key: Key) -> tuple[Array, Array]:
    """A random direction, legal or not, and the list: (int32[], uint8[T])."""
    return _take(game, state, jax.random.randint(key, (), 0, 4, jnp.int32))


def teach_first(game: Game2048, state: State, key: Key) -> tuple[Array, Array]:
    """The first direction, legal or not, and the list: (int32[], uint8[T])."""
    del key
    return _take(game, state, jnp.int32(0))


def _take(game: Game2048, state: State, action: Int32[Array, ""]) -> tuple[Array, Array]:
    board = state.board
    rationale = _rationale(game, state, largest_merges(board), next_merges(board), action)
    return jnp.where(jnp.any(legal_moves(board)), action, game.invalid_action), rationale


def _sum(now: Int32[Array, "4"], then: Int32[Array, "4"]) -> Int32[Array, "4"]:
    """The sum of two tiles, from their exponents."""
    return jnp.where(now > 0, 1 << now, 0) + jnp.where(then > 0, 1 << then, 0)


def _rationale(game: Game2048, state: State, now: Int32[Array, "4"], then: Int32[Array, "4"], action: Array) -> Array:
    """uint8[T]; empty if no direction is legal."""
    book, is_legal = _phrasebook(tuple(game.cell_names())), legal_moves(state.board)
    highest = len(game.cell_names()) - 1
    pieces: list[Array | str] = []
    for index, name in enumerate(DIRECTIONS):
        first, second = (book.name_or(jnp.minimum(tiles[index], highest), " 0") for tiles in (now, then))
        pieces += [f"{chr(10) if index else ''}{name}", jnp.where(is_legal[index], first, book.phrase(" -"))]
        pieces.append(jnp.where(is_legal[index], second, book.phrase_if(is_legal[index], " -")))
    pieces += ["\nTake", book.phrase_of(jnp.minimum(action, 3), [f" {name}" for name in DIRECTIONS]), "."]
    return jnp.where(jnp.any(is_legal), book.write(pieces), jnp.uint8(0))


@functools.lru_cache(maxsize=16)
def _phrasebook(cell_names: tuple[str, ...]) -> Phrasebook:
    names = [f" {name}" for name in cell_names]
    directions = [f"{before}{name}" for before in ("", "\n", " ") for name in DIRECTIONS]
    return Phrasebook(names, 0, 0, (*directions, " 0", " -", "\nTake", "."))
