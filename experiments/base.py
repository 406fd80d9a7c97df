"""The base model that ships, on one GPU; name the model of `sizes`, `--model=FOLDER`."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.base()
