"""The policy that ships: RL from the base model in all four games, on one GPU."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.nano()
