"""The one family of errors that a user can cause: a program prints their message in one line and exits with 1."""


class G1Error(ValueError):
    """Something a user gave cannot be used; the message is one line that names the setting or file and the reason."""
