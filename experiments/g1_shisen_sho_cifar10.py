"""G1 on Shisen-Sho with pictures, at a size for a laptop."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.small("g1_shisen_sho_cifar10", ("shisen_sho_cifar10",))
