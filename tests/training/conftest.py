"""Shared by the tests of runs: an uninterrupted run, and a stopped one."""

import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from g1jax.training import run
from g1jax.training.config import Experiment
from g1jax.training.progress import Progress
from tests.training import tiny


@pytest.fixture(scope="package")
def whole(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return run(tiny.make_experiment(model, tmp_path_factory.mktemp("runs") / "whole"))


def experiment_in(folder: Path, model: str, **changes: Any) -> Experiment:
    """Four steps of one small game, with a checkpoint after each."""
    steps = {"cold_start__steps": 4, "cold_start__states": 1, "rl__iterations": 0, "evaluation__episodes": 0}
    logged = {"log__checkpoint_every": 1, "log__keep": 10}
    return tiny.make_experiment(model, folder, games=("game_2048",), **{**steps, **logged, **changes})


class StopAt(Progress):
    """Sends SIGTERM to this process after a step, as a scheduler does."""

    def __init__(self, at: int) -> None:
        self._at = at

    def step(self, step: int, phase: str, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        if step == self._at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="package")
def stopped(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after 3 of 4 steps."""
    return run(experiment_in(tmp_path_factory.mktemp("stopped") / "run", model), progress=StopAt(3))


@pytest.fixture(scope="package")
def undisturbed(model: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The metrics of the same run without a stop."""
    return tiny.metrics_of(run(experiment_in(tmp_path_factory.mktemp("undisturbed") / "run", model)))


@pytest.fixture(scope="package")
def url() -> Iterator[str]:
    """An empty bucket."""
    server_module = pytest.importorskip("gcp_storage_emulator.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)  # gcsfs
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)  # TensorStore, by which Orbax writes arrays
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("NO_GCE_CHECK", "true")  # Google's authentication looks for no machine in the cloud
        logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it looks for credentials to ask for the bucket's type
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        server = server_module.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
        server.start()
        yield "gs://bucket"
        server.stop()
