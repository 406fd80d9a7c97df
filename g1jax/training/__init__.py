"""Training: from an experiment to a run folder with a trained policy."""

from g1jax.errors import ExperimentError
from g1jax.training.config import Experiment
from g1jax.training.experiments import experiment_names, load_experiment
from g1jax.training.loop import TrainingError, run
from g1jax.training.saved_run import policy_of_run

__all__ = [
    "Experiment",
    "ExperimentError",
    "TrainingError",
    "experiment_names",
    "load_experiment",
    "policy_of_run",
    "run",
]
