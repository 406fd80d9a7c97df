"""A check that every teacher must pass, for authors of teachers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.envs.core import Game
from g1jax.teachers.core import teach


def check_teacher(game: Game[Any], *, num_games: int = 16, num_steps: int = 20, seed: int = 0) -> None:
    """Plays a game with its teacher's moves and random ones, and checks the teacher's actions and rationales.

    Raises:
        AssertionError: an action is not legal, or a rationale cannot be part of a response.
    """

    def take_step(state: Any, key: Any) -> Any:
        teach_key, move_key, coin_key, step_key = jax.random.split(key, 4)
        action, rationale = teach(game, state, teach_key)
        mask = game.legal_actions(state)
        is_allowed = jnp.where(jnp.any(mask), jnp.pad(mask, (0, 1))[action], action == game.invalid_action)
        move = jnp.where(jax.random.bernoulli(coin_key), action, game.sample_action(state, move_key))
        return game.step(state, move, step_key)[0], (is_allowed, rationale)

    def play(key: Any) -> Any:
        reset_key, move_key = jax.random.split(key)
        return jax.lax.scan(take_step, game.reset(reset_key), jax.random.split(move_key, num_steps))[1]

    played = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(seed), num_games))
    is_allowed, rationales = map(np.asarray, played)
    _require(bool(is_allowed.all()), "the teacher chose an illegal action, or one in a finished game")
    has_ended = rationales[..., :-1] == 0
    _require(not (has_ended & (rationales[..., 1:] != 0)).any(), "a rationale has a zero byte before its end")
    _require(not (rationales == ord("<")).any(), "a rationale has a `<`, which would be read as a tag")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
