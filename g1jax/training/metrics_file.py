"""JSON lines by step: reads them, and truncates them when a run resumes. Removed lines are moved to another file."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g1jax.errors import ExperimentError
from g1jax.untrusted import UntrustedError, parse_json, read_json_lines


@dataclass(frozen=True)
class Cut:
    """The lines removed from a file."""

    file: Path
    later: int
    """The number of lines of later steps, which are repeated."""
    unreadable: tuple[int, ...]
    """The numbers, from 1, of truncated or damaged lines."""
    kept_in: Path
    """The file with all removed lines, unchanged."""

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.unreadable[:5])) + ", …" * (len(self.unreadable) > 5)
        parts = [f"{self.later} lines of steps that are repeated"] if self.later else []
        parts += [f"unreadable lines (number {numbers})"] if self.unreadable else []
        return f"{self.file}: removed {' and '.join(parts)}; they are in {self.kept_in.name}"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if it does not exist.

    Raises:
        ExperimentError: a line is not JSON; the message has its number.
    """
    return [line for _, line in read_json_lines(file, error=ExperimentError)] if file.exists() else []


def cut_after(file: Path, step: int) -> Cut | None:
    """Moves the lines of later steps, and those that cannot be read, from a file to a new one next to it.

    Returns None, and writes nothing, if there are none.
    """
    if not file.exists():
        return None
    keep, cut, later, unreadable = [], [], 0, []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        found = _step_of(line)
        if found is not None and found <= step:
            keep.append(line.rstrip(b"\r\n") + b"\n")
            continue
        cut.append(line)
        if found is None:
            unreadable.append(number)
        else:
            later += 1
    if not cut:
        return None
    kept_in = _write_aside(file, b"".join(cut))
    draft = file.with_name(f"{file.name}.part")
    draft.write_bytes(b"".join(keep))
    draft.replace(file)
    return Cut(file, later, tuple(unreadable), kept_in)


def _write_aside(file: Path, content: bytes) -> Path:
    """Writes to `<file>.dropped-<n>`, with the first unused n."""
    for n in itertools.count(1):
        target = file.with_name(f"{file.name}.dropped-{n}")
        try:
            with target.open("xb") as out:
                out.write(content)
        except FileExistsError:
            continue
        return target
    raise AssertionError("there is always a next number")


def _step_of(line: bytes) -> int | None:
    """The step of a line; None if it is not one of metrics, for example truncated by a kill or a full disk."""
    try:
        content = parse_json(line, "a line")
    except UntrustedError:
        return None
    step = content.get("step") if isinstance(content, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) else None
