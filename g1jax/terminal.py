"""Foreign text on a terminal: escaped, so that it cannot control the terminal.

Escape sequences move the cursor, rename the window, write to the clipboard or send input as if the user typed it.
Bidirectional controls disguise text. All code that prints foreign text, such as a name, an answer or an error that
quotes one, uses these functions.
"""

import sys


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


def notice(text: str) -> None:
    """Prints a note to standard error, about something that was worked around."""
    print(f"note: {one_line(text)}", file=sys.stderr, flush=True)


def _escaped(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode() if not char.isascii() else f"\\x{ord(char):02x}"
