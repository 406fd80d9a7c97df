"""What the tests of runs share: a model, programs compiled once, a run that nothing disturbed."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from g1jax.training import loop, run
from g1jax.training.config import Experiment
from g1jax.training.setup import Setup, make_setup
from tests.training import tiny


@pytest.fixture(scope="package", autouse=True)
def quick_programs() -> Iterator[None]:
    """Compiles in half the time, and shares programs among runs that differ by their folder alone."""
    made: dict[str, Setup] = {}
    jax.devices()  # one: before a test of the command line asks for one a core, if it comes first

    def make_once(experiment: Experiment) -> Setup:
        key = repr(dataclasses.replace(experiment, workdir=""))
        if key not in made:
            made[key] = make_setup(experiment)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_setup", make_once)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the tiny model."""
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="package")
def whole(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    return run(tiny.make_experiment(model, tmp_path_factory.mktemp("runs") / "whole"))
