"""Whatever keeps a run from loading its checkpoints, no byte that it wrote is lost."""

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from g1jax.errors import G1Error
from g1jax.training import ExperimentError, checksums, policy_of_run, run
from g1jax.training.config import Experiment
from g1jax.training.lock import LOCK
from g1jax.training.steps import RunState, template
from tests.training import tiny
from tests.training.conftest import experiment_in
from tests.training.test_run import Watch, stop_at

Change = Callable[[Path, pytest.MonkeyPatch], object]


@pytest.fixture
def folder(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stopped run's folder; plotting its curves, which is slow, is disabled."""
    monkeypatch.setattr("g1jax.training.run_evaluation.write_curves", lambda folder: None)
    return copy_run(stopped, tmp_path / "run")


def copy_run(folder: Path, copy: Path) -> Path:
    """Copies a run's folder, and sets `workdir` to the copy."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "workdir": str(copy)}, indent=1))
    return copy


def files_in(folder: Path) -> dict[str, bytes]:
    """All files in a run's folder except its lock and TensorBoard's."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK and "tensorboard" not in path.parts
    }


def assert_nothing_lost(before: dict[str, bytes], folder: Path) -> None:
    """Every earlier file is there unchanged, possibly moved; of metrics, every line. `workdir` may differ."""
    after = files_in(folder)
    contents = set(after.values())
    lines = {line for name, content in after.items() if ".jsonl" in name for line in content.splitlines()}
    for name, content in before.items():
        if name.endswith(".jsonl"):
            assert set(content.splitlines()) <= lines, name
        elif name == "config.json":
            assert {**json.loads(content), "workdir": ""} == {**json.loads(after[name]), "workdir": ""}
        else:
            assert content in contents, name


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


# Damage: the checkpoint is moved aside, the one before is used, and the metrics are those of an uninterrupted run


def truncate(folder: Path) -> None:
    file = largest(folder)
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(folder: Path) -> None:
    file = largest(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1 << 5
    file.write_bytes(content)


def put_a_folder_in_place_of_a_file(folder: Path) -> None:
    file = largest(folder)
    file.rename(file.with_name("original"))
    file.mkdir()


def make_metadata_unreadable(folder: Path) -> None:
    (folder / "_CHECKPOINT_METADATA").write_bytes(b"[]")


def cut_checksums(folder: Path) -> None:
    file = folder / checksums.CHECKSUMS
    os.truncate(file, file.stat().st_size // 2)


def truncate_without_checksums(folder: Path) -> None:
    """As an earlier version wrote it."""
    (folder / checksums.CHECKSUMS).unlink()
    truncate(folder)


@pytest.mark.filterwarnings(
    "ignore:(?s)Exception ignored in.*(_read_array_index_and_device_put|Event loop is closed)"
    ":pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    "damage",
    [
        truncate, flip_a_bit, put_a_folder_in_place_of_a_file, make_metadata_unreadable, cut_checksums,
        truncate_without_checksums,
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_moved_aside(
    damage: Callable[[Path], None], folder: Path, model: str, undisturbed: bytes
) -> None:
    damage(folder / "checkpoints" / "3")
    before, watch = files_in(folder), Watch()
    run(experiment_in(folder, model), progress=watch)
    moved = folder / "checkpoints_damaged" / "3-1"
    assert any(f"checkpoint 3 is damaged, and moved to {moved}: " in line for line in watch.lines)
    assert "resumed after step 2 of 4" in watch.lines
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"1", "2", "3", "4"}
    assert moved.is_dir()
    assert tiny.metrics_of(folder) == undisturbed
    assert any("removed 1 lines of steps that are repeated" in line for line in watch.lines)
    assert_nothing_lost(before, folder)


def test_two_damaged_checkpoints_and_a_name_that_is_taken(folder: Path, model: str) -> None:
    flip_a_bit(folder / "checkpoints" / "3")
    truncate(folder / "checkpoints" / "2")
    make_metadata_unreadable(folder / "checkpoints" / "1")
    shutil.copytree(folder / "checkpoints" / "3", folder / "checkpoints" / "10")  # not one of the run's
    (folder / "checkpoints" / "10" / "_CHECKPOINT_METADATA").unlink()
    shutil.copytree(folder / "checkpoints" / "3", folder / "checkpoints_damaged" / "3-1")
    (folder / "checkpoints" / "notes").mkdir()
    before = files_in(folder)
    with pytest.raises(
        ExperimentError, match=r"every checkpoint is damaged \(10, 3, 2, 1\), and nothing was changed: "
    ):
        run(experiment_in(folder, model))
    assert files_in(folder) == before
    with pytest.raises(ExperimentError, match="every checkpoint is damaged"):
        policy_of_run(folder)
    shutil.rmtree(folder / "checkpoints" / "2")
    whole = next(name for name in before if name.startswith("checkpoints/1/") and name.endswith("_CHECKPOINT_METADATA"))
    (folder / whole).write_text("{}")
    before = files_in(folder)
    run(experiment_in(folder, model), progress=stop_at(2))
    assert {path.name for path in (folder / "checkpoints_damaged").iterdir()} == {"3-1", "3-2", "10-1"}
    assert (folder / "checkpoints" / "notes").is_dir()
    assert_nothing_lost(before, folder)


def test_every_flipped_bit_is_found(stopped: Path) -> None:
    """In the largest file, at evenly spaced positions."""
    file = largest(stopped / "checkpoints" / "3")
    whole, known = file.read_bytes(), checksums.of_file(file)
    try:
        for place in range(0, 8 * len(whole), 8 * len(whole) // 80):
            content = bytearray(whole)
            content[place // 8] ^= 1 << place % 8
            file.write_bytes(content)
            assert checksums.of_file(file) != known
            with pytest.raises(checksums.DamagedError, match="its checksum has changed"):
                checksums.check(stopped / "checkpoints" / "3")
    finally:
        file.write_bytes(whole)
    assert checksums.check(stopped / "checkpoints" / "3")


# Everything else: the run stops with one line, and no byte has changed


def fail_with(error: BaseException) -> Change:
    def change(folder: Path, patch: pytest.MonkeyPatch) -> None:
        def load(*args: Any, **options: Any) -> RunState:
            try:
                raise error
            except Exception as inner:
                raise KeyError("incompatible handler") from inner  # as Orbax does

        patch.setattr("g1jax.training.checkpoints.ocp.load", load)

    return change


def give_it_no_rights(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who may read everything."""

    def deny(file: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    patch.setattr(checksums, "of_file", deny)


def rename_a_field(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """As another version may."""

    def renamed(*args: Any) -> Any:
        state: Any = template(*args)
        trained = {("vision" if key == "visual" else key): value for key, value in dict(state.trained).items()}
        return dataclasses.replace(state, trained=trained)

    patch.setattr("g1jax.training.loop.template", renamed)


def change_a_dtype(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def other(*args: Any) -> Any:
        state: Any = template(*args)
        step = jax.ShapeDtypeStruct((), jnp.float32, sharding=state.step.sharding)
        return dataclasses.replace(state, step=step)

    patch.setattr("g1jax.training.loop.template", other)


def use_two_devices(folder: Path, patch: pytest.MonkeyPatch) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"data": 0', '"data": 2'))


def rename_a_setting(folder: Path, patch: pytest.MonkeyPatch) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"max_new_tokens"', '"most_new_tokens"'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fail_with(MemoryError()), r"3 does not fit in memory: give it more devices"),
        (fail_with(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")), "does not fit in memory"),
        (fail_with(OSError(errno.EIO, "Input/output error")), "3 cannot be read: Input/output error. Nothing was"),
        (fail_with(KeyboardInterrupt()), None),
        (rename_a_field, r"match this run's state: \d+ missing: trained.vision.\S+, .*; \d+ unknown: trained.visual"),
        (change_a_dtype, r"match this run's state: 1 different: step is int32\[\], not float32\[\]\. Use the version"),
    ],
)  # fmt: skip
def test_what_is_no_damage(
    change: Change, message: str | None, folder: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checksums and without."""
    change(folder, monkeypatch)
    for _ in range(2):
        assert_refused(folder, experiment_in(folder, model), message)
        for file in (folder / "checkpoints").rglob(checksums.CHECKSUMS):
            file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (give_it_no_rights, r"checkpoints/3 cannot be read: Permission denied. Nothing was changed"),
        (fail_with(ValueError("a device is missing")), r"3 is intact, but cannot be loaded here: a device is missing"),
        (use_two_devices, r"is a run with another config: mesh.data \(was 2, is 0\)"),
        (rename_a_setting, r"another config: max_new_tokens \(was 0, is 48\); most_new_tokens \(was 48, is"),
    ],
)  # fmt: skip
def test_what_is_no_damage_where_there_are_checksums(
    change: Change, message: str, folder: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder, monkeypatch)
    assert_refused(folder, experiment_in(folder, model), message)


def test_another_number_of_devices(folder: Path, model: str) -> None:
    use_two_devices(folder, pytest.MonkeyPatch())
    experiment = experiment_in(folder, model, mesh__data=2)
    assert_refused(folder, experiment, r"a mesh of data=2 × fsdp=1 × tensor=1 is 2 devices, and there are 1")


def assert_refused(folder: Path, experiment: Experiment, message: str | None) -> None:
    before = files_in(folder)
    with pytest.raises(KeyboardInterrupt if message is None else G1Error, match=message) as caught:
        run(experiment)
    assert "\n" not in str(caught.value)
    assert files_in(folder) == before


# Metrics


CUT, OTHERS = b'{"step": 3, "pha', b'\xff\xfe\n\0\0\0\0\n[1]\n{"step": "3"}\n{"step": true}\n\n'


@pytest.mark.parametrize("rubbish", [CUT, OTHERS + CUT])
def test_metrics_that_cannot_be_read(rubbish: bytes, folder: Path, model: str, undisturbed: bytes) -> None:
    file = folder / "metrics.jsonl"
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second + third + rubbish)
    before, watch = files_in(folder), Watch()
    run(experiment_in(folder, model), progress=watch)
    lines = [line for line in watch.lines if "metrics.jsonl" in line]
    assert len(lines) == 1
    numbers = "4" if rubbish == CUT else "4, 5, 6, 7, 8, …"
    assert f"removed unreadable lines (number {numbers}); they are in metrics.jsonl.dropped-1" in lines[0]
    assert tiny.metrics_of(folder) == undisturbed
    assert (folder / "metrics.jsonl.dropped-1").read_bytes() == rubbish
    assert_nothing_lost(before, folder)


def test_a_line_in_the_middle_and_lines_dropped_before(folder: Path, model: str) -> None:
    file = folder / "metrics.jsonl"
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + b"\x80" + second + third)
    (folder / "metrics.jsonl.dropped-1").write_bytes(b"mine")
    shutil.rmtree(folder / "checkpoints" / "3")  # so that the third step is repeated
    before = files_in(folder)
    run(experiment_in(folder, model), progress=stop_at(3))
    assert file.read_bytes() == first + third
    assert (folder / "metrics.jsonl.dropped-2").read_bytes() == b"\x80" + second + third
    assert_nothing_lost(before, folder)
