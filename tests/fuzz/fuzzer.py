"""Damages files, reads them, and judges what comes of it. As a program it fuzzes one reader in a process of its own.

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
"""Seconds by the clock, for what waits and computes nothing; on a busy machine they are several times the others."""


@dataclass(frozen=True)
class Summary:
    """What came of all cases of a reader."""

    cases: int
    refused: int
    seconds: float
    """That the slowest case computed."""
    bytes: int
    """By which memory grew in the case that took most."""


class FuzzError(AssertionError):
    """A case that ended in neither success nor one line; the message says how to run it again."""


def fuzz(name: str, folder: Path, seed: int, cases: int, max_seconds: float = float("inf")) -> Summary:
    """Reads damaged files, each damaged by its own seed, until all cases are done or the time is over."""
    reader = READERS[name]
    sound = folder / "sound"
    sound.mkdir(parents=True)
    reader.make(sound)
    reader.read(sound)
    slowest, largest, refused, number = 0.0, 0, 0, 0
    end = time.monotonic() + max_seconds
    for number in range(cases):
        if time.monotonic() > end:
            break
        told, seconds, grown = _case(name, reader, sound, folder / "damaged", f"{seed}-{number}")
        slowest, largest, refused = max(slowest, seconds), max(largest, grown), refused + bool(told)
    return Summary(number + 1, refused, slowest, largest)


def _case(name: str, reader: Reader, sound: Path, damaged: Path, case: str) -> tuple[str, float, int]:
    """One case's message, or nothing if it could be read; its seconds, and the bytes by which memory grew."""
    chance = random.Random(zlib.crc32(f"{name} {case}".encode()))
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(sound, damaged)
    file = damaged / chance.choice(sorted(reader.mutations))
    file.write_bytes(reader.mutations[file.relative_to(damaged).as_posix()](file.read_bytes(), chance))
    kept = file.read_bytes()
    told, before, start, waited = "", _forget_peak(), _computed(), time.monotonic()
    try:
        reader.read(damaged)
    except G1Error as error:
        told = str(error)
        if not told or not told.isprintable() or len(told) > MAX_MESSAGE or str(damaged) not in told:
            raise FuzzError(f"{name}, case {case}: not one line that names the file: {told[:MAX_MESSAGE]!r}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        raise FuzzError(f"{name}, case {case}, {file.name}: {type(error).__name__}: {str(error)[:500]}") from error
    seconds, grown, waited = _computed() - start, _memory("VmHWM") - before, time.monotonic() - waited
    if seconds > MAX_SECONDS or waited > MAX_WAIT or grown > MAX_BYTES:
        took = f"{seconds:.1f} s computed in {waited:.1f} s, {grown / 2**20:.0f} MiB"
        raise FuzzError(f"{name}, case {case}: {took}; {told or 'was read'}")
    if file.exists() and file.suffix != ".jsonl" and file.read_bytes() != kept:
        raise FuzzError(f"{name}, case {case}: reading changed the file")
    return told, seconds, grown


def _computed() -> float:
    """Seconds that this process, and those it waited for, have computed."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _forget_peak() -> int:
    """Lets the system count this process's peak of memory anew; gives the bytes it has now."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(key: str) -> int:
    """Bytes of memory: `VmRSS`, now; `VmHWM`, at the peak."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return 0
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) * 1024


def main() -> None:
    """Prints a line of what came of it, or fails with the case that went wrong."""
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
        f"{options.reader}: {summary.cases} cases, {summary.refused} refused, the slowest {summary.seconds:.2f} s, "
        f"the largest {summary.bytes / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    main()
