"""Damages files, reads them, and checks the outcome. As a program it fuzzes one reader in a separate process.

python -m tests.fuzz.fuzzer "model config" --cases 1000 --seed 0 --folder /tmp/fuzz
"""

import argparse
import contextlib
import faulthandler
import os
import random
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from g1jax.errors import G1Error
from tests.fuzz.readers import READERS, Reader

MAX_SECONDS, MAX_BYTES, MAX_MESSAGE = 10.0, 2**30, 2000
MAX_WAIT = 120.0
"""Wall-clock seconds, to catch readers that wait; on a busy machine they are several times the CPU seconds."""


@dataclass(frozen=True)
class Summary:
    """The outcome of all cases of a reader."""

    cases: int
    rejected: int
    seconds: float
    """CPU seconds of the slowest case."""
    bytes: int
    """The largest growth of memory in a case."""


class FuzzError(AssertionError):
    """A case that neither succeeded nor failed with a valid message; the error names the case."""


def fuzz(name: str, folder: Path, seed: int, cases: int, max_seconds: float = float("inf")) -> Summary:
    """Reads damaged files, each damaged by its own seed, until all cases are done or the time is up."""
    reader = READERS[name]
    valid = folder / "valid"
    valid.mkdir(parents=True)
    reader.make(valid)
    reader.read(valid)
    slowest, largest, rejected, number = 0.0, 0, 0, 0
    end = time.monotonic() + max_seconds
    for number in range(cases):
        if time.monotonic() > end:
            break
        message, seconds, grown = _case(name, reader, valid, folder / "damaged", f"{seed}-{number}")
        slowest, largest, rejected = max(slowest, seconds), max(largest, grown), rejected + bool(message)
    return Summary(number + 1, rejected, slowest, largest)


def _case(name: str, reader: Reader, valid: Path, damaged: Path, case: str) -> tuple[str, float, int]:
    """Runs one case: the error message, empty on success; CPU seconds; bytes by which memory grew."""
    rng = random.Random(zlib.crc32(f"{name} {case}".encode()))
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(valid, damaged)
    file = damaged / rng.choice(sorted(reader.mutations))
    file.write_bytes(reader.mutations[file.relative_to(damaged).as_posix()](file.read_bytes(), rng))
    kept = file.read_bytes()
    message, before, start, waited = "", _reset_peak(), _cpu_seconds(), time.monotonic()
    try:
        reader.read(damaged)
    except G1Error as error:
        message = str(error)
        if not message or not message.isprintable() or len(message) > MAX_MESSAGE or str(damaged) not in message:
            raise FuzzError(
                f"{name}, case {case}: not one line that names the file: {message[:MAX_MESSAGE]!r}"
            ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in a Rust library is not an Exception
        raise FuzzError(f"{name}, case {case}, {file.name}: {type(error).__name__}: {str(error)[:500]}") from error
    seconds, grown, waited = _cpu_seconds() - start, _memory("VmHWM") - before, time.monotonic() - waited
    if seconds > MAX_SECONDS or waited > MAX_WAIT or grown > MAX_BYTES:
        took = f"{seconds:.1f} s of CPU time in {waited:.1f} s, {grown / 2**20:.0f} MiB"
        raise FuzzError(f"{name}, case {case}: {took}; {message or 'was read'}")
    if file.exists() and file.suffix != ".jsonl" and file.read_bytes() != kept:
        raise FuzzError(f"{name}, case {case}: reading changed the file")
    return message, seconds, grown


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _reset_peak() -> int:
    """Resets the system's peak of this process's memory; returns the bytes in use."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(key: str) -> int:
    """Bytes of memory: `VmRSS`, current; `VmHWM`, peak."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return 0
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) * 1024


def main() -> None:
    """Prints a summary line, or fails with the case that went wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    faulthandler.enable()
    summary = fuzz(options.reader, options.folder, options.seed, options.cases, options.seconds)
    print(
        f"{options.reader}: {summary.cases} cases, {summary.rejected} rejected, the slowest {summary.seconds:.2f} s, "
        f"the largest {summary.bytes / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    main()
