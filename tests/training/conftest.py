"""What the tests of runs share: a model, programs compiled once, a run that nothing disturbed."""

import dataclasses
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from g1jax.training import loop, run
from g1jax.training.config import Experiment
from g1jax.training.progress import Progress
from g1jax.training.setup import Setup, make_setup
from tests.training import tiny


@pytest.fixture(scope="package", autouse=True)
def quick_programs() -> Iterator[None]:
    """Compiles in half the time, and shares programs among runs that differ by their folder alone."""
    made: dict[str, Setup] = {}
    jax.devices()  # one: before a test of the command line asks for one a core, if it comes first

    def make_once(experiment: Experiment, run_folder: Path | None = None) -> Setup:
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


def experiment_in(folder: Path, model: str, **changes: Any) -> Experiment:
    """Four steps of one small game, a checkpoint each."""
    steps = {"cold_start__steps": 4, "cold_start__states": 1, "rl__iterations": 0, "evaluation__episodes": 0}
    logged = {"log__checkpoint_every": 1, "log__keep": 10}
    return tiny.make_experiment(model, folder, games=("game_2048",), **{**steps, **logged, **changes})


class StopAt(Progress):
    """Asks this process to end after a step, as a scheduler does."""

    def __init__(self, at: int) -> None:
        self._at = at

    def step(self, step: int, phase: str, figures: Mapping[str, float], timings: Mapping[str, float]) -> None:
        if step == self._at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="package")
def stopped(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after 3 of 4 steps."""
    return run(experiment_in(tmp_path_factory.mktemp("stopped") / "run", model), progress=StopAt(3))


@pytest.fixture(scope="package")
def undisturbed(model: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The metrics of that run if it is not stopped."""
    return tiny.metrics_of(run(experiment_in(tmp_path_factory.mktemp("undisturbed") / "run", model)))
