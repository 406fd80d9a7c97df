"""Teachers: functions that choose a good move for a state and explain it with a rationale.

A rationale is short and true, and names tiles and places as the board text and the answer do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
Choice = Literal["teacher", "uniform", "first"]
"""How a demonstration chooses. teacher: well. uniform: any of the directions or rows that its rationale lists. first:
always the first of them."""
_WEAK_TEACHERS: dict[str, dict[str, Teacher]] = {
    "game_2048": {"uniform": game_2048.teach_uniform, "first": game_2048.teach_first},
    "shisen_sho": {"uniform": row_games.teach_uniform, "first": row_games.teach_first},
    "shisen_sho_cifar10": {"uniform": row_games.teach_uniform, "first": row_games.teach_first},
    "swap": {"uniform": row_games.teach_uniform, "first": row_games.teach_first},
}


def teach(game: Game[Any], state: Any, key: Key, choice: Choice = "teacher") -> tuple[Array, Array]:
    """The action and rationale of a game's teacher, (int32[], uint8[T]); without one, the expert's and none.

    `choice`: "uniform" and "first" take a move that ignores the rationale and may be illegal. Who learns from them sees
    and describes, but has not been shown which moves are good.

    >>> import jax
    >>> from g1jax import envs
    >>> from g1jax.envs.text import decode
    >>> game = envs.make("shisen_sho", rows=1, cols=4)
    >>> state = game.from_text("Red circle | Blue star | Blue star | Red circle")
    >>> print(decode(teach(game, state, jax.random.key(0))[1]))
    0 (0, 0) (0, 3)
    Take row 0.

    Raises:
        G1Error: the game has no teacher with that choice.
    """
    check_choice(game, choice)
    own: Teacher | None = _of_game(_TEACHERS, game)
    if own is None:
        return _WITHOUT_TEACHER[choice](game, state, key)
    teacher = own if choice == "teacher" else _of_game(_WEAK_TEACHERS, game)[choice]
    return teacher(game, state, key)


def check_choice(game: Game[Any], choice: Choice) -> None:
    """Raises G1Error if the teacher of a game cannot choose like this."""
    G1Error.require(
        choice == "teacher" or _of_game(_TEACHERS, game) is None or choice in (_of_game(_WEAK_TEACHERS, game) or {}),
        f"{game.id}: its teacher has no {choice} choice; set cold_start.choice=teacher, or register one with "
        f"register_teacher(…, {choice}=…)",
    )


def register_teacher(
    game_id: str, teacher: Teacher, *, uniform: Teacher | None = None, first: Teacher | None = None
) -> None:
    """Sets the teacher of a game, built-in or a user's own, and those whose choice ignores its rationale, if any."""
    _TEACHERS[game_id] = teacher
    weak = {"uniform": uniform, "first": first}
    _WEAK_TEACHERS[game_id] = {choice: found for choice, found in weak.items() if found is not None}


def _of_game(table: Mapping[str, Any], game: Game[Any]) -> Any:
    """The entry of a game's id, else of the game that its class extends; None if there is none."""
    ids: list[str] = [vars(kind)["id"] for kind in type(game).__mro__ if "id" in vars(kind)]
    return next((table[name] for name in ids if name in table), None)


_NO_RATIONALE = np.zeros(1, np.uint8)
_WITHOUT_TEACHER: dict[Choice, Teacher] = {
    "teacher": lambda game, state, key: (game.expert(state, key), jnp.asarray(_NO_RATIONALE)),
    "uniform": lambda game, state, key: (game.sample_action(state, key, legal=False), jnp.asarray(_NO_RATIONALE)),
    "first": lambda game, state, key: (jnp.int32(0), jnp.asarray(_NO_RATIONALE)),
}


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
