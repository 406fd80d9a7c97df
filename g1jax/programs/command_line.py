"""What the command lines share: typed arguments, errors in one line, and what a process of ours is told meanwhile."""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from g1jax import terminal
from g1jax.errors import G1Error

T = TypeVar("T")


class UsageError(G1Error):
    """Arguments that a program does not understand; the message says which, in one line."""


def main(
    name: str,
    kind: type[T],
    work: Callable[[T], Any],
    arguments: Sequence[str],
    description: str,
    *,
    interrupted: str = "interrupted",
) -> int:
    """Runs a program on its arguments; gives the exit status: 0, or 1 after a line that says what is wrong.

    An error that is neither of the family nor the system's is a fault of ours, and shows where it is.
    """
    with own_process():
        try:
            work(parse(kind, arguments, description))
        except (G1Error, OSError) as error:
            print(f"{name}: {one_line(error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"{name}: {interrupted}", file=sys.stderr)
            return 130
    return 0


def parse(kind: type[T], arguments: Sequence[str], description: str, default: T | None = None) -> T:
    """An instance of a dataclass from `--key=value` arguments, on top of `default` if there is one.

    Raises:
        UsageError: an argument is unknown, missing, or of the wrong type.
        SystemExit: `--help`.
    """
    try:
        Path.cwd()
    except OSError:
        raise UsageError("the working directory is gone: change to one that is there") from None
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # how Python passes on bytes it cannot decode
            raise UsageError(f"{argument!a} is not text in this terminal's encoding")
    given: dict[str, Any] = {} if default is None else {"default": default}
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # with frames as in a terminal
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=list(arguments), description=description, **given)
    except SystemExit as end:
        if end.code in (None, 0):
            raise
        said.seek(0)
        raise UsageError(f"{_first_part(said.read())} (--help lists every setting)") from None


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks and what else does not print."""
    return terminal.one_line(str(error)) or type(error).__name__


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """For the time of a program: text that the output's encoding lacks is escaped, not an error, and the libraries
    below us report errors alone. Afterwards both are as they were.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    handling = [stream.errors for stream in streams]
    loggers = [logging.getLogger(name) for name in ("absl", "matplotlib")]  # the first is Orbax's
    levels = [logger.level for logger in loggers]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for stream, errors in zip(streams, handling, strict=True):
            stream.reconfigure(errors=errors)


def _first_part(box: str) -> str:
    """What is wrong, out of tyro's page, framed or plain: the lines between its title and the next rule."""
    lines = [line.strip("│ ") for line in box.strip().splitlines()[1:]]
    is_rule = [not line.strip("─-╰╯") for line in lines]
    start = next((i for i, rule in enumerate(is_rule) if not rule), 0)
    end = next((i for i in range(start, len(lines)) if is_rule[i]), len(lines))
    return " ".join(lines[start:end]) or " ".join(box.split())
