"""Errors that a user can cause: a program prints the message on one line and exits with status 1."""

import difflib
from collections.abc import Iterable

from g1jax.terminal import one_line, printable


class G1Error(ValueError):
    """Invalid user input; the message is one line that names the setting or file and the reason.

    Messages may quote text from outside. Control characters in it are escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))

    @classmethod
    def require(cls, condition: bool, message: str) -> None:
        """Raises this error unless the condition holds."""
        if not condition:
            raise cls(message)


class LevelError(G1Error):
    """An invalid level or an unknown level key; the message names the key and the reason."""


class InputError(G1Error):
    """An argument of the wrong shape or type, for a game or a batch; the message says what is expected."""


class ConfigError(G1Error):
    """An invalid or unsupported model config; the message names the key and the reason."""


class WeightsError(G1Error):
    """Weights that are damaged or belong to another model; the message names files and tensors."""


class AlgorithmError(G1Error):
    """An unknown or invalid algorithm; the message names the key and the reason."""


class ExperimentError(G1Error):
    """An invalid experiment, run or dataset; the message says what is wrong and how to fix it."""


class EvaluationError(G1Error):
    """Something that cannot be evaluated, compared or shown; the message says why."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The message for an unknown name: the name, cut if it is long, close matches, and all known names.

    >>> unknown("game", "swop", ["swap", "game_2048"])
    "unknown game 'swop'; did you mean 'swap'? Available: swap, game_2048"
    """
    known = list(known)
    return f"unknown {what} {one_line(repr(name), 80)}{near_names(name, known) or '.'} Available: {', '.join(known)}"


def near_names(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'swap'?`, or nothing if no known name is near."""
    near = difflib.get_close_matches(str(name)[:80], list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
