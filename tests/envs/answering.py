"""Shared by the tests of texts: games, states and responses, and the action in a response by the definition."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax import envs
from g1jax.envs import text
from tests.oracles import answers

LENGTH = 256
NUMBER_GAME, PAIR_GAME = "game_2048", "shisen_sho"
GAMES = ("game_2048", "shisen_sho", "shisen_sho_cifar10", "swap")


@functools.cache
def make(game_id: str, **keys: Any) -> Any:
    if game_id == "shisen_sho_cifar10":
        keys["images"] = "digits"
    return envs.make(game_id, **keys)


@functools.cache
def batched(game: Any, method: str) -> Any:
    return jax.jit(jax.vmap(getattr(game, method)))


@functools.cache
def states_of(game: Any) -> Any:
    """The function from boards, int32[n, R, C], to states."""
    level = game.traced_level()
    return jax.jit(jax.vmap(lambda cells: game.from_cells(cells, jnp.uint32(0), level)))


def expected_action(game: Any, response: bytes) -> int:
    """The action in a response by the definition."""
    if len(game.action_shape) == 1:
        number = answers.parse_number(response)
        return number if number is not None and number < game.num_actions else int(game.invalid_action)
    pair = answers.parse_pair(response)
    action = None if pair is None else answers.action_of_pair(pair, game.rows, game.cols)
    return int(game.invalid_action) if action is None else action


def on_device(responses: list[bytes], length: int = LENGTH) -> np.ndarray:
    return np.stack([text.encode(response, length) for response in responses])
