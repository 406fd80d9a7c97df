"""The last steps of the base model that ships; name the model of its cold start, `--model=FOLDER`."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.base()
