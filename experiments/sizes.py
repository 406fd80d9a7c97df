"""The taught model on boards of several sizes, on one GPU; name the taught model, `--model=FOLDER`."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.sizes()
