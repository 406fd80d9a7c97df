"""benchmarks/device.py: parts end in time, are kept, and are not repeated."""

import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY, load_script


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = load_script("benchmarks/device.py")
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    (tmp_path / "quick.py").write_text("import sys; print(sys.argv[1:])")
    (tmp_path / "slow.py").write_text("import time; print('begun', flush=True); time.sleep(60)")
    return module


def test_a_part_is_kept_and_not_repeated(
    device: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = device.Part("quick", "quick.py", ("--large",), ("--tiny",), 60)
    end = time.monotonic() + 600
    assert device.run_part(part, tmp_path, end, True) == 0
    kept = (tmp_path / "quick.txt").read_text("utf-8")
    assert "['--tiny']" in kept
    assert kept in capsys.readouterr().out
    assert device.run_part(part, tmp_path, end, False) == 0
    assert "done before" in capsys.readouterr().out
    assert (tmp_path / "quick.txt").read_text("utf-8") == kept


def test_a_part_that_takes_too_long_is_stopped_and_its_output_kept(device: ModuleType, tmp_path: Path) -> None:
    part = device.Part("slow", "slow.py", (), (), 3)
    start = time.monotonic()
    assert device.run_part(part, tmp_path, start + 600, False) == 1
    assert time.monotonic() - start < 30
    kept = (tmp_path / "slow.txt").read_text("utf-8")
    assert "begun" in kept
    assert "status -9" in kept


def test_no_part_starts_without_time(device: ModuleType, tmp_path: Path) -> None:
    part = device.Part("quick", "quick.py", (), (), 60)
    assert device.run_part(part, tmp_path, time.monotonic() + 10, False) == 1
    assert not (tmp_path / "quick.txt").exists()


@pytest.mark.slow
def test_every_part_runs_at_tiny_size(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/device.py", f"--out={tmp_path}", "--tiny"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert {path.name for path in tmp_path.iterdir()} >= {
        f"{name}.txt" for name in ("iteration", "large", "large-update", "frames")
    }
