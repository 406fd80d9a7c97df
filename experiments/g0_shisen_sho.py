"""G0 on Shisen-Sho, at a size for a laptop: RL alone."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.small("g0_shisen_sho", ("shisen_sho",), has_cold_start=False)
