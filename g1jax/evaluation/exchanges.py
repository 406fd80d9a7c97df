"""The log of an endpoint's exchanges: a line of JSON each, appended the moment it is known, and read when resuming."""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from g1jax.evaluation.protocol import EvaluationError

FORMAT = 1


class ExchangeLog:
    """An append-only file: first what the exchanges have in common, then one a line, answered or failed.

    A line is one write, so a killed process leaves whole lines. What a full disk or a power cut leaves of a last line
    is dropped. One process at a time may have the log open.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        """Opens the log, or begins it.

        Raises:
            EvaluationError: another process has it open, it is of another setting, or damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            lines = self._read()
            if not lines:
                self.append({"g1jax_exchanges": FORMAT, **setting})
            else:
                _check_setting(path, lines[0], setting)
            self.answered = {(line["episode"], line["step"]): line for line in lines[1:] if "response" in line}
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "ExchangeLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def append(self, line: dict[str, Any]) -> None:
        """Writes a line at once."""
        raw = json.dumps(line).encode() + b"\n"
        if os.write(self._file, raw) != len(raw):
            raise EvaluationError(f"{self.path}: the disk is full")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EvaluationError(
                f"{self.path}: another process is writing to it; wait, or use another --out"
            ) from None

    def _read(self) -> list[dict[str, Any]]:
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            os.ftruncate(self._file, whole)
        lines = []
        for number, line in enumerate(raw[:whole].splitlines(), 1):
            try:
                lines.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                raise EvaluationError(f"{self.path}:{number}: not a line of JSON; remove it to go on") from None
        return lines


def _check_setting(path: Path, found: dict[str, Any], setting: dict[str, Any]) -> None:
    """Raises EvaluationError unless a log's first line says the same as ours would."""
    ours = json.loads(json.dumps({"g1jax_exchanges": FORMAT, **setting}))
    for key in {**found, **ours}:
        if found.get(key) != ours.get(key):
            raise EvaluationError(
                f"{path} was begun with {key}={_short(found.get(key))}, now it is {_short(ours.get(key))}: "
                "go on with the same, or use another --out"
            )


def _short(value: Any) -> str:
    told = json.dumps(value)
    return told if len(told) <= 80 else f"{told[:77]}…"
