"""Unwritable outputs are reported before the work starts, and leave nothing behind."""

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from g1jax import envs, files
from g1jax.errors import EvaluationError, G1Error
from g1jax.programs import analyze as analyze_program
from g1jax.programs import dataset as dataset_program
from g1jax.programs import evaluate as evaluate_program
from g1jax.training import ExperimentError
from g1jax.training.run_folder import RunFolder
from tests.training import tiny

FOLDERS = [
    ("file", "file cannot be written: File exists"),
    ("file/run", "file/run cannot be written: Not a directory"),
    ("/proc/run", "/proc/run cannot be written: No such file or directory"),
    ("long" * 100, "cannot be written: File name too long"),
]


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in folder.rglob("*")}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("mine")
    return tmp_path


def never(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("work has started")


def evaluate(out: Path) -> None:
    evaluate_program.evaluate(evaluate_program.Options(games="game_2048", episodes=1, steps=1, film="gif", out=out))


def analyze(out: Path) -> None:
    analyze_program.analyze(analyze_program.Options(runs=(Path("run"),), out=out))


def make_dataset(out: Path) -> None:
    dataset_program.make_dataset(dataset_program.Options(games="game_2048", states=1, out=out))


def train(out: Path) -> None:
    RunFolder(dataclasses.replace(tiny.make_experiment("nano", out))).create()


@pytest.mark.parametrize("begin", [evaluate, analyze, make_dataset, train])
@pytest.mark.parametrize(("name", "message"), FOLDERS)
def test_a_folder_that_cannot_be_written(
    begin: Callable[[Path], None], name: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimpleNamespace(setup=SimpleNamespace(games=(envs.make("game_2048"),)), steps=(1,), folder=Path("run"))
    monkeypatch.setattr(analyze_program, "_open", lambda folders: {"run": run})
    monkeypatch.setattr(analyze_program, "_play_checkpoints", never)
    monkeypatch.setattr(evaluate_program, "play", never)
    monkeypatch.setattr(dataset_program, "make_examples", never)
    before = tree(place)
    with pytest.raises((G1Error, OSError)) as caught:
        begin(place / name)
    assert message.rpartition(": ")[2] in str(caught.value) or (begin is train and name == "file")
    assert place.name in str(caught.value) or name.startswith("/")
    assert "\n" not in str(caught.value)
    assert tree(place) == before


def test_every_file_of_an_evaluation_is_checked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_program, "play", never)
    for name in ("results.json", "results.md", "replays.json", "report.html", "game_2048.gif"):
        (place / "out" / name).mkdir(parents=True)
        with pytest.raises(EvaluationError, match=f"{name} cannot be written: it is not a regular file"):
            evaluate(place / "out")
        (place / "out" / name).rmdir()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "samples", "evaluation"])
def test_every_folder_of_a_run_is_checked(name: str, place: Path) -> None:
    (place / name).write_text("mine")
    with pytest.raises(
        ExperimentError, match=rf"^the run folder {place} cannot be written: File exists \({place}/{name}\)$"
    ):
        train(place)
    assert tree(place) == {"file": "mine", name: "mine"}


def test_a_film_without_a_writer(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_program, "play", never)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match="films need two packages"):
        evaluate(place / "out")
    assert not (place / "out").exists()


def test_a_file_without_permission(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "file")  # root may write anything
    files.require_writable(place, ["other"], ExperimentError)
    with pytest.raises(ExperimentError, match="file cannot be written: Permission denied"):
        files.require_writable(place, ["file"], ExperimentError)


def test_a_full_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(
            ExperimentError, match=r"^the run folder .*/a/b cannot be written: No space left on device$"
        ):
            files.require_writable(place / "a" / "b", [], ExperimentError, what="the run folder ")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(ExperimentError, match=r"a/b: 3\.0 GB of disk space needed, 1 MB free"):
        files.require_writable(place / "a" / "b", [], ExperimentError, room=3 * 2**30)
    assert tree(place) == {"file": "mine"}


def test_a_writable_folder(place: Path) -> None:
    files.require_writable(place / "a" / "b", ["c"], ExperimentError)
    assert tree(place) == {"file": "mine", "a": "", "a/b": ""}
    files.require_writable(place, ["file"], ExperimentError)
    assert (place / "file").read_text() == "mine"
