"""G0 on 2048, at a size for a laptop: RL alone."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.small("g0_game_2048", ("game_2048",), has_cold_start=False)
