"""The program in a process of its own: signals, kills at random moments, what it prints."""

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
    """Until the metrics have this step's line."""
    file = workdir / "metrics.jsonl"
    while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < step):
        time.sleep(0.002)


def finish(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """What a process that ends well printed."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.slow
def test_a_process_that_is_told_to_stop_and_then_killed(model: str, whole: Path, tmp_path: Path) -> None:
    """SIGTERM, then kill -9 twice, and in the end the metrics of a run that nothing disturbed."""
    chance, workdir = random.Random(0), tmp_path / "run"
    experiment = "--experiment=" + tiny.write_experiment(tmp_path / "tiny.py", model, workdir)
    process = tiny.start(experiment)
    wait_for(process, workdir, 5)
    process.send_signal(signal.SIGTERM)
    out, err = finish(process)
    assert "the same command goes on from here" in out
    assert "rror" not in err
    stopped = len(read_metrics(workdir))
    assert 5 <= stopped < 60
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    for _ in range(2):
        kill_in_the_midst(experiment, workdir, chance)
    out, err = finish(tiny.start(experiment))
    assert err == ""
    assert "goes on after step" in out
    assert tiny.metrics_of(workdir) == tiny.metrics_of(whole)


def kill_in_the_midst(experiment: str, workdir: Path, chance: random.Random) -> None:
    """Kills a run some time after it has gone beyond a random step, or before it has begun."""
    process = tiny.start(experiment)
    wait_for(process, workdir, chance.randrange(ALL))
    time.sleep(chance.random() * 0.5)
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_killed_ten_times(model: str, whole: Path, tmp_path: Path) -> None:
    chance, workdir = random.Random(1), tmp_path / "run"
    experiment = "--experiment=" + tiny.write_experiment(tmp_path / "tiny.py", model, workdir)
    for _ in range(10):
        kill_in_the_midst(experiment, workdir, chance)
    finish(tiny.start(experiment))
    assert tiny.metrics_of(workdir) == tiny.metrics_of(whole)
