"""The one family of errors that a user can cause: a program prints their message in one line and exits with 1."""

import difflib
from collections.abc import Iterable

from g1jax.terminal import printable


class G1Error(ValueError):
    """Something a user gave cannot be used; the message is one line that names the setting or file and the reason.

    Messages quote names and answers from outside, so whatever is in them, a terminal can show it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))

    @classmethod
    def require(cls, condition: bool, message: str) -> None:
        """Raises this error unless the condition holds."""
        if not condition:
            raise cls(message)


class LevelError(G1Error):
    """A level that cannot be played, or a key that does not exist; the message names the key and says why."""


class InputError(G1Error):
    """Something of a wrong shape or type was given to a game or a batch; the message says what is wanted."""


class ConfigError(G1Error):
    """A config that no model can have, or one this package does not know; the message names the key and says why."""


class WeightsError(G1Error):
    """Weights that are damaged or belong to another model; the message names files and tensors."""


class AlgorithmError(G1Error):
    """An algorithm that does not exist or cannot be computed; the message names the key and says why."""


class ExperimentError(G1Error):
    """A run or dataset that cannot be; the message says what is wrong and what to do, in one line."""


class EvaluationError(G1Error):
    """What cannot be evaluated, compared or shown, and why, in one line."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The message for an unknown name: it, the near ones, and all there are.

    >>> unknown("game", "swop", ["swap", "game_2048"])
    "unknown game 'swop'; did you mean 'swap'? There are: swap, game_2048"
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return f"unknown {what} {name!r}{hint} There are: {', '.join(known)}"
