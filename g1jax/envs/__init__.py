"""g1jax.envs: visual games as pure JAX functions, thousands at a time, with pixels and text on the device."""

from g1jax.envs.checks import InputError
from g1jax.envs.core import Game, State, StepResult, TracedLevel
from g1jax.envs.game_2048 import Game2048
from g1jax.envs.level import Level, LevelError
from g1jax.envs.registry import game_ids, make, presets, register
from g1jax.envs.shisen_sho import ShisenSho
from g1jax.envs.shisen_sho_cifar10 import ShisenShoCifar10
from g1jax.envs.swap import Swap
from g1jax.envs.vector import AutoReset, VecEnv, VecResult, VecState, make_vec

for _game in (Game2048, ShisenSho, ShisenShoCifar10, Swap):
    register(_game)

__all__ = [
    "AutoReset",
    "Game",
    "InputError",
    "Level",
    "LevelError",
    "State",
    "StepResult",
    "TracedLevel",
    "VecEnv",
    "VecResult",
    "VecState",
    "game_ids",
    "make",
    "make_vec",
    "presets",
    "register",
]
