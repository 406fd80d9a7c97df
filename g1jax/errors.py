"""The one family of errors that a user can cause: a program prints their message in one line and exits with 1."""

from g1jax.terminal import printable


class G1Error(ValueError):
    """Something a user gave cannot be used; the message is one line that names the setting or file and the reason.

    Messages quote names and answers from outside, so whatever is in them, a terminal can show it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))
