"""The policy that ships: RL from its cold start in all four games, on one GPU; name the model, `--model=FOLDER`."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.nano()
