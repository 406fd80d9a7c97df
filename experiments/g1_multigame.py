"""G1 on all four games, at a size for a laptop: the main job."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.small("g1_multigame")
