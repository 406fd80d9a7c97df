"""The games as Gymnasium environments. Importing this module registers them: `g1jax/Swap-v0` and the others.

>>> import gymnasium
>>> import g1jax.adapters.gymnasium
>>> env = gymnasium.make("g1jax/ShisenSho-v0", rows=4, cols=4)
>>> observation, info = env.reset(seed=0)
>>> observation.shape, int(info["action_mask"].sum()) > 0
((112, 112, 3), True)
>>> envs = gymnasium.make_vec("g1jax/Swap-v0", num_envs=8)
>>> envs.reset(seed=0)[0].shape
(8, 224, 224, 3)

`gymnasium.make("g1jax.adapters.gymnasium:g1jax/Swap-v0")` imports it by itself.
"""

from typing import Any

import gymnasium

from g1jax.adapters.gymnasium.env import GameEnv
from g1jax.adapters.gymnasium.text_actions import TextActions, VectorTextActions
from g1jax.adapters.gymnasium.vector_env import GameVectorEnv
from g1jax.envs import Game
from g1jax.envs.games.game_2048 import Game2048
from g1jax.envs.games.shisen_sho import ShisenSho
from g1jax.envs.games.shisen_sho_cifar10 import ShisenShoCifar10
from g1jax.envs.games.swap import Swap


def register(game_type: type[Game[Any]]) -> str:
    """Registers a game, which `g1jax.envs.register` knows already, with Gymnasium: returns `g1jax/<class name>-v0`."""
    name = f"g1jax/{game_type.__name__}-v0"
    gymnasium.register(
        name,
        entry_point=f"{__name__}:GameEnv",
        vector_entry_point=f"{__name__}:GameVectorEnv",
        disable_env_checker=True,  # tests do it; it knows no arrays of JAX, and takes time in every step
        kwargs={"game": game_type.id},
    )
    return name


for _game in (Game2048, ShisenSho, ShisenShoCifar10, Swap):
    register(_game)

__all__ = ["GameEnv", "GameVectorEnv", "TextActions", "VectorTextActions", "register"]
