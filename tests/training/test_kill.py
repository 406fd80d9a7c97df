"""The program as a subprocess: signals, kills at random moments, its output."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from g1jax.training.run_folder import read_metrics
from tests.training import tiny
from tests.training.test_run import ALL


def wait_for(process: "subprocess.Popen[str]", workdir: Path, step: int) -> None:
    """Waits until the metrics have this step's line."""
    file = workdir / "metrics.jsonl"
    while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < step):
        time.sleep(0.002)


def finish(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """The output of a process, which must succeed."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.slow
def test_stopped_and_then_killed(model: str, whole: Path, tmp_path: Path) -> None:
    """After SIGTERM and two kill -9, the metrics are those of an uninterrupted run."""
    rng, workdir = random.Random(0), tmp_path / "run"
    experiment = "--experiment=" + tiny.write_experiment(tmp_path / "tiny.py", model, workdir)
    process = tiny.start(experiment)
    wait_for(process, workdir, 5)
    process.send_signal(signal.SIGTERM)
    out, err = finish(process)
    assert "run the same command to resume" in out
    assert "rror" not in err
    stopped = len(read_metrics(workdir))
    assert 5 <= stopped < 60
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    for _ in range(2):
        kill_at_random(experiment, workdir, rng)
    out, err = finish(tiny.start(experiment))
    assert err == ""
    assert "resumed after step" in out
    assert tiny.metrics_of(workdir) == tiny.metrics_of(whole)


def kill_at_random(experiment: str, workdir: Path, rng: random.Random) -> None:
    """Kills a run at a random time after a random step, or before it has started."""
    process = tiny.start(experiment)
    wait_for(process, workdir, rng.randrange(ALL))
    time.sleep(rng.random() * 0.5)
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_killed_ten_times(model: str, whole: Path, tmp_path: Path) -> None:
    rng, workdir = random.Random(1), tmp_path / "run"
    experiment = "--experiment=" + tiny.write_experiment(tmp_path / "tiny.py", model, workdir)
    for _ in range(10):
        kill_at_random(experiment, workdir, rng)
    finish(tiny.start(experiment))
    assert tiny.metrics_of(workdir) == tiny.metrics_of(whole)
