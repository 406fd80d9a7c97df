"""Teachers: functions that choose a good move for a state and explain it with a rationale.

A rationale is short and true, and names tiles and places as the board text and the answer do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from g1jax.envs.core import Game
from g1jax.errors import G1Error
from g1jax.teachers import game_2048, row_games
from g1jax.typing import Array, Key, Pytree

Teacher = Callable[[Any, Any, Key], tuple[Array, Array]]
"""(game, state, key) -> (action int32[], rationale uint8[T]); traceable by JAX."""

_TEACHERS: dict[str, Teacher] = {
    "game_2048": game_2048.teach,
    "shisen_sho": row_games.teach,
    "shisen_sho_cifar10": row_games.teach,
    "swap": row_games.teach,
}
_UNIFORM_TEACHERS: dict[str, Teacher] = {
    "game_2048": game_2048.teach_uniform,
    "shisen_sho": row_games.teach_uniform,
    "shisen_sho_cifar10": row_games.teach_uniform,
    "swap": row_games.teach_uniform,
}


def teach(game: Game[Any], state: Any, key: Key) -> tuple[Array, Array]:
    """The action and rationale of a game's teacher, (int32[], uint8[T]); without one, the expert's and none.

    >>> import jax
    >>> from g1jax import envs
    >>> from g1jax.envs.text import decode
    >>> game = envs.make("shisen_sho", rows=1, cols=4)
    >>> state = game.from_text("Red circle | Blue star | Blue star | Red circle")
    >>> print(decode(teach(game, state, jax.random.key(0))[1]))
    0 (0, 0) (0, 3)
    Take row 0.
    """
    teacher: Teacher = _TEACHERS.get(game.id, _expert)
    return teacher(game, state, key)


def teach_uniform(game: Game[Any], state: Any, key: Key) -> tuple[Array, Array]:
    """The same rationale with a choice that ignores it: one of the directions or rows it lists, all equally likely.

    Who learns from this sees and describes, but has not been shown which moves are good. The move may be illegal.

    Raises:
        G1Error: the game has no such teacher.
    """
    check_uniform(game.id)
    return _UNIFORM_TEACHERS[game.id](game, state, key)


def check_uniform(game_id: str) -> None:
    """Raises G1Error if the teacher of a game has no uniform choice."""
    G1Error.require(
        game_id in _UNIFORM_TEACHERS,
        f"{game_id}: its teacher has no uniform choice; register one with register_teacher(…, uniform=…)",
    )


def register_teacher(game_id: str, teacher: Teacher, uniform: Teacher | None = None) -> None:
    """Sets the teacher of a game, built-in or a user's own, and the one whose choice ignores its rationale, if any."""
    _TEACHERS[game_id] = teacher
    if uniform is not None:
        _UNIFORM_TEACHERS[game_id] = uniform
    else:
        _UNIFORM_TEACHERS.pop(game_id, None)


def _expert(game: Game[Any], state: Any, key: Key) -> tuple[Array, Array]:
    return game.expert(state, key), jnp.zeros(1, jnp.uint8)


# Teachers that reply on the host, such as a model behind an endpoint


@dataclass(frozen=True)
class Reply:
    """A teacher's reply to one state, or the problem for which there is none."""

    rationale: str = ""
    answer: str = ""
    problem: str = ""


@dataclass(frozen=True, eq=False)
class StateBatch:
    """One step of E environments; a teacher replies to the first len(boards) of its states."""

    step: int
    states: Pytree  # leaves [E, …]
    frames: np.ndarray  # uint8[E, H, W, 3]
    boards: Sequence[str]  # true board texts
    replies: Sequence[Reply]  # the built-in teacher's, one per board


Respond = Callable[[StateBatch], Sequence[Reply]]
"""Replies to a batch, one per board."""


def built_in(batch: StateBatch) -> Sequence[Reply]:
    """The built-in teacher's replies."""
    return batch.replies
