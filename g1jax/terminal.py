"""Untrusted text on a terminal: escaped, so that it cannot control the terminal.

Escape sequences move the cursor, rename the window, write to the clipboard or send input as if the user typed it.
Bidirectional controls disguise text. All code that prints untrusted text, such as a name, an answer or an error that
quotes one, uses these functions.
"""

import codecs
import sys

_PLAIN = str.maketrans({"–": "-", "−": "-", "…": "...", "×": "x", "·": "-", "→": "->", "“": '"', "”": '"', "≥": ">="})


def printable(text: str) -> str:
    r"""The text on one line without control characters: white space becomes spaces, other characters `\x1b`.

    `str.isprintable` decides: no controls (C0, C1, DEL), no invisible or bidirectional formatting, no surrogates, no
    private or unassigned code points.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else _escaped(char) for char in text)


def printable_lines(text: str) -> str:
    r"""`printable`, line by line: each `\n` stays."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: str, max_length: int = 0) -> str:
    """The printable text with single spaces between its words, cut to `max_length` characters unless that is 0."""
    flat = " ".join(printable(text).split())
    return f"{flat[: max_length - 1]}…" if 0 < max_length < len(flat) else flat


def in_encoding(text: str, encoding: str) -> str:
    """The text with letters that the encoding lacks written as similar ones (`–` as `-`), else escaped.

    >>> in_encoding("4×4 …", "ascii")
    '4x4 ...'
    """
    return text.encode(encoding, PLAIN_LETTERS).decode(encoding)


def _plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(_PLAIN)
    return lacking.encode("ascii", "backslashreplace").decode(), error.end


PLAIN_LETTERS = "g1jax.plain_letters"
"""The name of an error handler for streams whose encoding lacks letters."""
codecs.register_error(PLAIN_LETTERS, _plain_letters)


def duration(seconds: float) -> str:
    """A duration in one or two units: `42 s`, `5 min`, `2 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def notice(text: str) -> None:
    """Prints a note to standard error, about something that was worked around."""
    print(f"note: {one_line(text)}", file=sys.stderr, flush=True)


def _escaped(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode() if not char.isascii() else f"\\x{ord(char):02x}"
