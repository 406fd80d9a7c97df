"""Reads the policy and weights of a finished or running run from its folder."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from g1jax.errors import ExperimentError
from g1jax.rl.policy import Policy
from g1jax.sft.fact_loss import without_heads
from g1jax.terminal import notice
from g1jax.training.bucket import checkpoints_of, local_copy
from g1jax.training.checkpoints import METADATA, Checkpoints
from g1jax.training.run_folder import read_config
from g1jax.training.setup import Setup, make_setup
from g1jax.training.steps import frozen_of, template, trained_template
from g1jax.vlm import Params, lora, master_weights
from g1jax.vlm.config import DType


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A run's folder, opened for reading."""

    folder: Path
    setup: Setup
    steps: tuple[int, ...]
    """The steps with a checkpoint, ascending; at least one."""

    def params(self, step: int) -> Params:
        """The weights after a step, with LoRA merged.

        Raises:
            ExperimentError: the checkpoint is missing or cannot be read.
        """
        with _reading(self.folder, self.setup) as checkpoints:
            part = checkpoints.load(step, trained_template(self.setup))
        return _complete(self.setup, part["trained"], self.setup.policy.config.param_dtype)

    def mark(self, step: int) -> str:
        """A fingerprint that differs for every checkpoint written, of this run or another; a copy has the same."""
        file = checkpoints_of(self.folder) / str(step) / METADATA
        ExperimentError.require(file.is_file(), f"{self.folder} no longer has checkpoint {step}")
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def open_run(folder: str | Path) -> SavedRun:
    """Opens a run by its folder, which may be a URL such as `gs://bucket/run`.

    Raises:
        ExperimentError: it is not a run's folder, or has no checkpoint.
    """
    folder = local_copy(folder)
    setup = open_setup(folder)
    with _reading(folder, setup) as checkpoints:
        steps = tuple(checkpoints.steps)
    ExperimentError.require(len(steps) > 0, f"{folder} has no checkpoint yet")
    return SavedRun(folder, setup, steps)


def open_setup(folder: Path) -> Setup:
    """The setup of a run, by its folder.

    Raises:
        ExperimentError: it is not a run's folder, or its files are damaged.
    """
    return make_setup(read_config(folder), folder)


def policy_of_run(
    folder: str | Path, *, param_dtype: DType | None = None, warn: Callable[[str], None] = notice
) -> tuple[Policy, Params]:
    """The policy of a run's newest checkpoint, and its weights with LoRA merged. The folder may be a URL.

    The weights have the run's own type, or `param_dtype`: float32 gives the master weights of a bfloat16 run. A damaged
    checkpoint is reported by `warn` and the one before it is used.

    Raises:
        ExperimentError: it is not a run's folder, or has no checkpoint that can be read.
    """
    folder = local_copy(folder)
    setup = open_setup(folder)
    policy = setup.policy
    with _reading(folder, setup) as checkpoints:
        if param_dtype in (None, policy.config.param_dtype):
            part = checkpoints.restore(lambda _: trained_template(setup), warn)
            trained = None if part is None else part["trained"]
        else:
            state = checkpoints.restore(functools.partial(template, setup), warn)
            trained = None if state is None else master_weights.weights_of(state.trained, state.opt_state)
    if trained is None:
        raise ExperimentError(f"{folder} has no checkpoint that can be read")
    if param_dtype:
        policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, param_dtype=param_dtype))
    return policy, _complete(setup, trained, policy.config.param_dtype)


@contextmanager
def _reading(folder: Path, setup: Setup) -> Iterator[Checkpoints]:
    path = checkpoints_of(folder)
    ExperimentError.require(path.is_dir(), f"{folder} has no checkpoint yet")
    checkpoints = Checkpoints(path, keep=setup.experiment.log.keep, is_reader=True)
    try:
        yield checkpoints
    finally:
        checkpoints.close(is_quiet=True)


def _complete(setup: Setup, trained: Params, dtype: str) -> Params:
    """The weights of the plain model, cast to a type."""
    trained, frozen = without_heads(trained), frozen_of(setup).frozen

    def cast(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), params)

    if setup.lora is None or frozen is None:
        return cast(trained)
    return lora.merge(cast(frozen), trained, setup.lora)
