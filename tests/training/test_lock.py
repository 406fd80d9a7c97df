"""One process writes a run's folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from g1jax.training import ExperimentError, run
from g1jax.training.lock import LOCK, FolderLock
from tests.training.conftest import experiment_in

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 77 on elsewhere")
file.flush()
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_that_another_process_writes(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / LOCK)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            ExperimentError, match=r"run is being written by process 77 on elsewhere: wait for it, stop"
        ):
            run(experiment_in(folder, model))
        assert [path.name for path in folder.iterdir()] == [LOCK]
    finally:
        holder.kill()
        holder.communicate()
    FolderLock(folder).release()  # a killed process holds no lock


def test_a_lock_is_released_when_collected(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(ExperimentError, match="is being written by process"):
        FolderLock(tmp_path)
    del lock
    lock = FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path)
