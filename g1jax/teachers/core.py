"""What a teacher is, and which one a game has: a good move for a state, and a rationale in words.

A rationale is short and true, and names tiles and places as the board text and the answer do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from g1jax.envs.core import Game
from g1jax.teachers import game_2048, rows
from g1jax.typing import Array, Key, Pytree

Teacher = Callable[[Any, Any, Key], tuple[Array, Array]]
"""(game, state, key) -> (action int32[], rationale uint8[T]); can be traced by JAX."""

_TEACHERS: dict[str, Teacher] = {
    "game_2048": game_2048.teach,
    "shisen_sho": rows.teach,
    "shisen_sho_cifar10": rows.teach,
    "swap": rows.teach,
}


def teach(game: Game[Any], state: Any, key: Key) -> tuple[Array, Array]:
    """A game's teacher on a state: (int32[], uint8[T]). A game that has none of its own: the expert's move, no words.

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


def register_teacher(game_id: str, teacher: Teacher) -> None:
    """Makes a teacher known for a game, also a user's own."""
    _TEACHERS[game_id] = teacher


def _expert(game: Game[Any], state: Any, key: Key) -> tuple[Array, Array]:
    return game.expert(state, key), jnp.zeros(1, jnp.uint8)


# Teachers that answer on the host, such as a model behind an endpoint


@dataclass(frozen=True)
class Reply:
    """What a teacher says to one state; without an answer it says why not."""

    rationale: str = ""
    answer: str = ""
    problem: str = ""


@dataclass(frozen=True, eq=False)
class StateBatch:
    """States that a teacher is shown: one step of E environments, of which the first ones are asked about."""

    step: int
    states: Pytree  # leaves [E, …]
    frames: np.ndarray  # uint8[E, H, W, 3]
    boards: Sequence[str]  # of those that are asked about
    replies: Sequence[Reply]  # the built-in teacher's, to these


Respond = Callable[[StateBatch], Sequence[Reply]]
"""A reply to each of a batch's boards."""


def built_in(batch: StateBatch) -> Sequence[Reply]:
    """The built-in teacher's replies."""
    return batch.replies
