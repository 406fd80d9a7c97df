"""The taught model, which `base` is trained from, on one GPU; name the pretrained model, `--model=FOLDER`."""

from g1jax.training import recipes
from g1jax.training.config import Experiment


def get_config() -> Experiment:
    return recipes.teaching()
