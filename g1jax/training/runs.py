"""Runs that were: their policy and weights, from a folder."""

import functools
from pathlib import Path

import jax

from g1jax.rl.policy import Policy
from g1jax.training.checkpoints import Checkpoints
from g1jax.training.config import require
from g1jax.training.folder import read_config
from g1jax.training.setup import make_setup
from g1jax.training.steps import frozen_of, template
from g1jax.vlm import Params


def policy_of_run(folder: str | Path) -> tuple[Policy, Params]:
    """The policy of a run's newest checkpoint, and its weights, LoRA's merged.

    Raises:
        ExperimentError: it is no run's folder, or has no checkpoint that can be read.
    """
    folder = Path(folder)
    setup = make_setup(read_config(folder))
    path = folder / "checkpoints"
    require(path.is_dir(), f"{folder} has no checkpoints")
    checkpoints = Checkpoints(path, keep=setup.experiment.log.keep)
    try:
        state = checkpoints.restore(functools.partial(template, setup), lambda line: None, delete=False)
        require(state is not None, f"{folder} has no checkpoint that can be read")
        assert state is not None
        return setup.policy, jax.jit(setup.complete)(state.trained, frozen_of(setup).frozen)
    finally:
        checkpoints.close(is_quiet=True)
