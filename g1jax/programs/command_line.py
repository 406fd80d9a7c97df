"""What all command lines share: typed arguments, one-line errors, and settings of the process."""

import contextlib
import io
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from g1jax import envs, terminal
from g1jax.errors import G1Error, near_names

T = TypeVar("T")


class UsageError(G1Error):
    """Invalid arguments; the message names them, in one line."""


def main(
    name: str,
    kind: type[T],
    work: Callable[[T], Any],
    arguments: Sequence[str],
    description: str,
    command: str | None = None,
    *,
    interrupted: str = "interrupted",
) -> int:
    """Runs a program; returns the exit status: 0, 1 after printing an error in one line, or 130 after Ctrl-C.

    An exception other than G1Error and OSError is a bug, and keeps its traceback.
    """
    with own_process():
        try:
            _, rest = import_games(arguments)
            work(parse(kind, rest, description, command=command))
        except (G1Error, OSError) as error:
            print(f"{name}: {one_line(error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"{name}: {interrupted}", file=sys.stderr)
            return 130
    return 0


IMPORT = """

--import=FILE.py or --import=MODULE (several with commas) adds games of your own, for every setting that names games.
"""


def import_games(arguments: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Imports the modules and files of `--import=…`; returns their names, and the other arguments.

    Raises:
        UsageError: the name is missing.
        LevelError: one cannot be imported.
    """
    names, rest = pop_option("--import", list(arguments))
    imports = absolute(name.strip() for name in names.split(",") if name.strip())
    envs.import_games(imports)
    return imports, rest


def absolute(names: Iterable[str]) -> tuple[str, ...]:
    """Names of modules as they are, and absolute paths of files."""
    return tuple(str(Path(name).resolve()) if name.endswith(".py") else name for name in names)


def pop_option(key: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The value of one option, empty if it is not given, and the other arguments.

    Raises:
        UsageError: the value is missing.
    """
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{key}="):
            return argument.split("=", 1)[1], arguments[:i] + arguments[i + 1 :]
        if argument == key:
            if i + 1 == len(arguments) or arguments[i + 1].startswith("--"):
                raise UsageError(f"{key}: a name is missing")
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
    return "", arguments


def parse(
    kind: type[T],
    arguments: Sequence[str],
    description: str,
    default: T | None = None,
    also: Sequence[str] = (),
    command: str | None = None,
) -> T:
    """An instance of a dataclass from `--key=value` arguments, which override `default` if given.

    `also`: other options, to name where an unknown one is near them. `command`: the program, as the help names it.

    Raises:
        UsageError: an argument is unknown, missing, or of the wrong type.
        SystemExit: `--help`.
    """
    try:
        Path.cwd()
    except OSError:
        raise UsageError("the working directory no longer exists: change to another one") from None
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # how Python represents undecodable bytes
            raise UsageError(f"{argument!a} is not text in this terminal's encoding")
    options: dict[str, Any] = {} if default is None else {"default": default}
    captured = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # with box characters, as in a terminal
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(kind, args=list(arguments), description=description + IMPORT, prog=command, **options)
    except SystemExit as end:
        if end.code in (None, 0):
            raise
        captured.seek(0)
        message = _error_in(captured.read())
        if bad := re.match(r"Unrecognized options: (--?[^\s=]+)", message):
            near = near_names(bad[1].replace("_", "-"), [*options_of(kind, default), *also])
            message = f"unknown option {terminal.one_line(bad[1], 80)}{near}"
        raise UsageError(f"{message} (--help lists every setting)") from None


def options_of(kind: type[T], default: T | None = None) -> list[str]:
    """The names of all options, such as `--rl.num-samples`, in the order of the help."""
    rows = [line for line in help_of(kind, default).splitlines() if line.startswith("│ --")]
    return [name for row in rows for name in re.findall(r"--[\w.-]+", row)]


def help_of(kind: type[T], default: T | None = None) -> str:
    """The text of `--help`."""
    options: dict[str, Any] = {} if default is None else {"default": default}
    captured = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(captured), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], description="", **options)
    captured.seek(0)
    return captured.read()


def one_line(error: BaseException) -> str:
    """An error's message on one printable line."""
    return terminal.one_line(str(error)) or type(error).__name__


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """While a program runs: escapes text that the output's encoding lacks, and limits libraries to logging errors.

    Restores both afterwards.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    error_handlers = [stream.errors for stream in streams]
    loggers = [logging.getLogger(name) for name in ("absl", "matplotlib")]  # absl: Orbax
    levels = [logger.level for logger in loggers]
    for stream in streams:
        stream.reconfigure(errors=terminal.PLAIN_LETTERS)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for stream, errors in zip(streams, error_handlers, strict=True):
            stream.reconfigure(errors=errors)


def _error_in(box: str) -> str:
    """The error in tyro's output, framed or plain: the lines between its title and the next rule."""
    lines = [line.strip("│ ") for line in box.strip().splitlines()[1:]]
    is_rule = [not line.strip("─-╰╯") for line in lines]
    start = next((i for i, rule in enumerate(is_rule) if not rule), 0)
    end = next((i for i in range(start, len(lines)) if is_rule[i]), len(lines))
    return " ".join(lines[start:end]) or " ".join(box.split())
