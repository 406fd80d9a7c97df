"""Whatever a file contains, reading it succeeds or fails with one line that names it, in bounded time and memory."""

import mmap
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from g1jax.errors import G1Error
from tests.conftest import REPOSITORY
from tests.fuzz import fuzzer
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_json_lines, mutate_toml
from tests.fuzz.readers import READERS, Reader
from tests.training import tiny

SECONDS = float(os.environ.get("G1JAX_FUZZ_SECONDS", "120"))
"""How long each reader is fuzzed by the slow test."""


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_rejected(name: str, tmp_path: Path) -> None:
    """The same cases every time, for half a second; `-m slow` runs others for longer."""
    fuzzer.fuzz(name, tmp_path, seed=0, cases=8 if READERS[name].is_slow else 30, max_seconds=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_rejected_for_long(name: str, tmp_path: Path) -> None:
    """In a separate process, so that a crash fails only this test."""
    seed = random.SystemRandom().randrange(2**32)
    command = [sys.executable, "-m", "tests.fuzz.fuzzer", name, "--cases", "1000000", "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--seconds", str(SECONDS), "--folder", str(tmp_path)],
        cwd=REPOSITORY,
        env=tiny.environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    print(done.stdout)


# The fuzzer itself


def reader_that(read: Callable[[Path], object]) -> Reader:
    return Reader(lambda folder: (folder / "a.json").write_text('{"a": [1]}'), read, {"a.json": mutate_json})


def raises(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda folder: raises(ValueError("a.json")), "ValueError: a.json"),
        (lambda folder: raises(RecursionError()), "RecursionError"),
        (lambda folder: raises(G1Error(f"{folder}/b.json: wrong")), ""),
        (lambda folder: raises(G1Error("wrong")), "not one line that names the file: 'wrong'"),
        (lambda folder: raises(G1Error(f"{folder}: " + "a" * 3000)), "not one line that names the file"),
        (lambda folder: (folder / "a.json").write_text("{}"), "reading changed the file"),
    ],
)
def test_bad_outcomes_are_detected(
    read: Callable[[Path], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_that(lambda folder: None if folder.name == "valid" else read(folder))
    monkeypatch.setitem(READERS, "a", reader)
    if message:
        with pytest.raises(fuzzer.FuzzError, match=f"a, case 0-\\d+.*{re.escape(message)}"):
            fuzzer.fuzz("a", tmp_path, 0, 30)
    else:
        assert fuzzer.fuzz("a", tmp_path, 0, 30).rejected == 30


def fill_new_pages(size: int) -> None:
    """Not `bytes`: malloc may hand out memory that earlier tests left resident."""
    with mmap.mmap(-1, size) as pages:
        for start in range(0, size, mmap.PAGESIZE):
            pages[start] = 1


def test_memory_and_time_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "a", reader_that(lambda folder: fill_new_pages(50_000_000)))
    summary = fuzzer.fuzz("a", tmp_path, 0, 3)
    assert 40_000_000 < summary.bytes < 120_000_000 or sys.platform != "linux"
    monkeypatch.setattr(fuzzer, "MAX_BYTES", 10_000_000)
    monkeypatch.setattr(fuzzer, "MAX_SECONDS", 0.0)
    with pytest.raises(fuzzer.FuzzError, match=r"of CPU time in [\d.]+ s, \d+ MiB; was read"):
        fuzzer.fuzz("a", tmp_path / "again", 0, 3)


def test_mutations_follow_from_their_seed_and_differ() -> None:
    json, toml = b'{"a": [1, {"b": "c"}], "d": null}', b"[a]\nb = 1\nc = [2]\n"
    for mutate, raw in ((mutate_bytes, json), (mutate_json, json), (mutate_json_lines, json * 2), (mutate_toml, toml)):
        raw = raw.replace(b"}{", b"}\n{")
        made = [mutate(raw, random.Random(seed)) for seed in range(300)]
        assert made == [mutate(raw, random.Random(seed)) for seed in range(300)]
        assert len(set(made)) > 100
