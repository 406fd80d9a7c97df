"""g1jax.envs: visual games as pure JAX functions, thousands at a time, with pixels and text on the device."""

from g1jax.envs.batch import AutoReset
from g1jax.envs.core import Game, State, StepResult
from g1jax.envs.games.game_2048 import Game2048
from g1jax.envs.games.shisen_sho import ShisenSho
from g1jax.envs.games.shisen_sho_cifar10 import ShisenShoCifar10
from g1jax.envs.games.swap import Swap
from g1jax.envs.level import Appearance, Level, TracedLevel
from g1jax.envs.mixed import VecEnv, VecResult, VecState, make_vec
from g1jax.envs.own_games import import_games
from g1jax.envs.registry import GameInfo, game_ids, info, make, presets, register, setting_of
from g1jax.errors import InputError, LevelError

for _game in (Game2048, ShisenSho, ShisenShoCifar10, Swap):
    register(_game)

__all__ = [
    "Appearance",
    "AutoReset",
    "Game",
    "GameInfo",
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
    "import_games",
    "info",
    "make",
    "make_vec",
    "presets",
    "register",
    "setting_of",
]
