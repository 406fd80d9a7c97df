"""What goes through an endpoint, kept: a line of JSON each, appended the moment it is known, and read when resuming."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from g1jax.evaluation.endpoint import Client, GivenUpError, as_png
from g1jax.evaluation.protocol import EvaluationError
from g1jax.terminal import one_line
from g1jax.typing import HostImages

FORMAT = 1


class Journal:
    """An append-only file: first what all lines have in common, then one line of JSON after another.

    A line is one write, so a killed process leaves whole lines. What a full disk or a power cut leaves of a last line
    is dropped. One process at a time may have the journal open.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        """Opens the journal, or begins it.

        Raises:
            EvaluationError: another process has it open, it is of another setting, or damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            lines = self._read()
            setting = {"g1jax_exchanges": FORMAT, **setting}
            if not lines:
                self.append(setting)
            else:
                check_setting(path, lines[0], setting)
            self.lines = lines[1:]  # as they were when it was opened
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
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


class ExchangeLog(Journal):
    """The journal of an endpoint's exchanges, answered or failed."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        super().__init__(path, setting)
        self.answered = {(line["episode"], line["step"]): line for line in self.lines if "response" in line}


class Inquiry:
    """Questions to an endpoint, whose answers go to a log at once. What the log has is not asked again."""

    def __init__(self, client: Client, log: ExchangeLog) -> None:
        self.client, self.log = client, log
        self.problem = ""
        """Why no more is asked, once there is a reason."""

    async def line(
        self, place: tuple[int, int], board: str, prompt: str, draw: Callable[[], HostImages]
    ) -> dict[str, Any] | None:
        """The log's line with the answer at (episode, step); None if there is none to be had, and `problem` says why.

        `draw` gives the frame, uint8[H, W, 3], if it has to be asked. A question given up counts as an empty response
        where the endpoint's `on_failure` says so.

        Raises:
            EvaluationError: the log has an answer to another board.
        """
        line = self.log.answered.get(place)
        if line is not None:
            if line["board"] != board:
                raise EvaluationError(
                    f"{self.log.path}: episode {place[0]}, step {place[1]} shows another board than is played now: "
                    "the log is of another version of the game, use another --out"
                )
            return line
        if self.problem:
            return None
        endpoint = self.client.endpoint
        named: dict[str, Any] = {"episode": place[0], "step": place[1]}

        def tell(number: int, reason: str) -> None:
            self.log.append({**named, "try": number, "failed": reason})

        png = as_png(draw(), endpoint.image_side)
        try:
            reply, tries, seconds = await self.client.ask(prompt, png, tell, lambda: bool(self.problem))
        except GivenUpError as error:
            if error.stops_all or endpoint.on_failure == "stop":
                self.problem = self.problem or str(error)
                return None
            line = {**named, "board": board, "response": "", "gave_up": str(error)}
        else:
            line = {**named, "board": board, **vars(reply), "tries": tries, "seconds": round(seconds, 3)}
        self.log.append(line)
        return line


def check_setting(path: Path, found: dict[str, Any], setting: dict[str, Any]) -> None:
    """Raises EvaluationError unless the setting that a file was begun with is the one of now."""
    ours = json.loads(json.dumps(setting))
    for key in {**found, **ours}:
        if found.get(key) != ours.get(key):
            raise EvaluationError(
                f"{path} was begun with {one_line(key, 80)}={_short(found.get(key))}, "
                f"now it is {_short(ours.get(key))}: go on with the same, or use another --out"
            )


def _short(value: Any) -> str:
    told = json.dumps(value)
    return told if len(told) <= 80 else f"{told[:77]}…"
