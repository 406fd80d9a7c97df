"""The log of exchanges with an endpoint: JSON lines, appended immediately and read when resuming."""

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
from g1jax.terminal import notice, one_line
from g1jax.typing import HostImages
from g1jax.untrusted import read_json_lines

FORMAT = 1


class Journal:
    """An append-only file of JSON lines. The first line is the setting, common to all others.

    A line is one write, so a killed process leaves whole lines. An unreadable line, such as one cut off by a full disk,
    is skipped with a notice and kept: nothing is ever removed. Only one process at a time can open a journal.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        """Opens or creates the journal.

        Raises:
            EvaluationError: another process has it open, it has another setting, or its setting cannot be read.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            EvaluationError.require(stat.S_ISREG(os.fstat(self._file).st_mode), f"{path}: not a regular file")
            self._lock()
            self._unreadable: list[str] = []
            lines = self._read()
            setting = {"g1jax_exchanges": FORMAT, **setting}
            if lines and "g1jax_exchanges" not in lines[0]:
                raise EvaluationError(f"{path}: its first line, the setting, cannot be read: use another --out")
            if lines:
                check_setting(path, lines[0], setting)
            self._end_last_line()
            if not lines:
                self.append(setting)
            self.lines = lines[1:]  # when it was opened
            self._report_unreadable()
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
        """Writes a line immediately."""
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
        """The readable lines."""
        lines, unreadable = [], self._unreadable
        for number, line in read_json_lines(
            self.path, lenient=True, error=EvaluationError, on_error=lambda error: unreadable.append(str(error))
        ):
            if isinstance(line, dict) and self._is_readable(line):
                lines.append(line)
            else:
                unreadable.append(f"{self.path}:{number}: not a line of this file")
        return lines

    def _is_readable(self, line: dict[str, Any]) -> bool:
        """Whether a line, a JSON object, has the expected fields."""
        return True

    def _end_last_line(self) -> None:
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def _report_unreadable(self) -> None:
        if self._unreadable:
            count = len(self._unreadable)
            notice(f"{self._unreadable[0]}; {count} such line{'s are' if count > 1 else ' is'} skipped and kept")


class ExchangeLog(Journal):
    """The journal of an endpoint's exchanges, answered or failed."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        super().__init__(path, setting)
        self.answered = {(line["episode"], line["step"]): line for line in self.lines if "response" in line}

    def _is_readable(self, line: dict[str, Any]) -> bool:
        """Whether an answer has the types that a replay needs; implausible token counts become -1."""
        if "response" not in line:
            return True
        if "completion_tokens" in line:
            line["completion_tokens"] = num_tokens(line["completion_tokens"])
        is_placed = all(type(line.get(key)) is int for key in ("episode", "step"))
        texts = [line.get("board"), line["response"], line.get("reasoning", "")]
        return is_placed and all(isinstance(text, str) for text in texts)


class Inquiry:
    """Asks an endpoint questions and logs the exchanges immediately. Logged answers are not asked for again."""

    def __init__(self, client: Client, log: ExchangeLog) -> None:
        self.client, self.log = client, log
        self.problem = ""
        """Why no further question is asked; empty while there is no reason."""

    async def line(
        self, place: tuple[int, int], board: str, prompt: str, draw: Callable[[], HostImages] | None
    ) -> dict[str, Any] | None:
        """The log's line with the answer at (episode, step); None if there is no answer, for the reason in `problem`.

        `draw` renders the frame, uint8[H, W, 3], for a new question; None: a question of text alone. With
        `on_failure="unreadable"`, a question given up counts as an empty response.

        Raises:
            EvaluationError: the log has an answer to another board.
        """
        line = self.log.answered.get(place)
        if line is not None:
            if line["board"] != board:
                raise EvaluationError(
                    f"{self.log.path}: episode {place[0]}, step {place[1]} shows another board than this run: the "
                    "log is from another version of the game; use another --out"
                )
            return line
        if self.problem:
            return None
        endpoint = self.client.endpoint
        position: dict[str, Any] = {"episode": place[0], "step": place[1]}

        def log_failed_try(number: int, reason: str) -> None:
            self.log.append({**position, "try": number, "failed": reason})

        png = as_png(draw(), endpoint.image_side) if draw else None
        try:
            reply, tries, seconds = await self.client.ask(prompt, png, log_failed_try, lambda: bool(self.problem))
        except GivenUpError as error:
            if error.stops_all or endpoint.on_failure == "stop":
                self.problem = self.problem or str(error)
                return None
            line = {**position, "board": board, "response": "", "gave_up": str(error)}
        else:
            line = {**position, "board": board, **vars(reply), "tries": tries, "seconds": round(seconds, 3)}
        self.log.append(line)
        return line


def check_setting(path: Path, found: dict[str, Any], setting: dict[str, Any]) -> None:
    """Raises EvaluationError unless a file was started with this setting."""
    wanted = json.loads(json.dumps(setting))
    for key in {**found, **wanted}:
        if found.get(key) != wanted.get(key):
            raise EvaluationError(
                f"{path} was started with {one_line(key, 80)}={_short(found.get(key))}, "
                f"now it is {_short(wanted.get(key))}: resume with the same value, or use another --out"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
