"""`g1-nano` on all square boards from 4×4 to 10×10: the run that made `g1-nano-sizes`."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.all_sizes()
