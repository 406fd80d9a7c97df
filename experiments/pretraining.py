"""From random weights to a policy that sees and describes boards, on one GPU."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.pretraining()
