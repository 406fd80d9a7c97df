"""G0 on Swap, at a size for a laptop: RL alone."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.small("g0_swap", ("swap",), has_cold_start=False)
