"""What goes through an endpoint, kept: a line of JSON each, appended the moment it is known, and read when resuming."""

import fcntl
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from g1jax.endpoint.client import Client, GivenUpError, as_png, num_tokens
from g1jax.errors import EvaluationError
from g1jax.foreign import read_json_lines
from g1jax.terminal import notice, one_line
from g1jax.typing import HostImages

FORMAT = 1


class Journal:
    """An append-only file: first what all lines have in common, then one line of JSON after another.

    A line is one write, so a killed process leaves whole lines. A line that cannot be read, such as what a full disk
    or a power cut leaves of the last one, is passed over with a notice and stays: nothing is ever removed. One process
    at a time may have the journal open.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        """Opens the journal, or begins it.

        Raises:
            EvaluationError: another process has it open, it is of another setting, or of none that can be read.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise EvaluationError(f"{path}: not a regular file")
            self._lock()
            self._unreadable: list[str] = []
            lines = self._read()
            setting = {"g1jax_exchanges": FORMAT, **setting}
            if lines and "g1jax_exchanges" not in lines[0]:
                raise EvaluationError(
                    f"{path}: its first line, which says what it is of, cannot be read: use another --out"
                )
            if lines:
                check_setting(path, lines[0], setting)
            self._end_last_line()
            if not lines:
                self.append(setting)
            self.lines = lines[1:]  # as they were when it was opened
            self._tell_unreadable()
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
        """The lines that can be read."""
        lines = []
        unreadable = self._unreadable
        for number, line in read_json_lines(
            self.path, lenient=True, error=EvaluationError, on_error=lambda error: unreadable.append(str(error))
        ):
            if isinstance(line, dict) and self._is_readable(line):
                lines.append(line)
            else:
                unreadable.append(f"{self.path}:{number}: not a line of this file")
        return lines

    def _is_readable(self, line: dict[str, Any]) -> bool:
        """Whether a line is what it should be, not only JSON."""
        return True

    def _end_last_line(self) -> None:
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def _tell_unreadable(self) -> None:
        if self._unreadable:
            count = len(self._unreadable)
            notice(f"{self._unreadable[0]}; {count} such line{'s are' if count > 1 else ' is'} passed over and kept")


class ExchangeLog(Journal):
    """The journal of an endpoint's exchanges, answered or failed."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        super().__init__(path, setting)
        self.answered = {(line["episode"], line["step"]): line for line in self.lines if "response" in line}

    def _is_readable(self, line: dict[str, Any]) -> bool:
        """An answer has the types that replaying it needs; numbers of tokens are believed as those of a server are."""
        if "response" not in line:
            return True
        if "completion_tokens" in line:
            line["completion_tokens"] = num_tokens(line["completion_tokens"])
        is_placed = all(type(line.get(key)) is int for key in ("episode", "step"))
        texts = [line.get("board"), line["response"], line.get("reasoning", "")]
        return is_placed and all(isinstance(text, str) for text in texts)


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
