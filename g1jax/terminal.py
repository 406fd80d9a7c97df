"""Foreign text on a terminal: what a server, a model or a file says is shown, and never obeyed.

A terminal obeys what it is sent: escape sequences move the cursor, rename the window, write to the clipboard or answer
as if the user typed; bidirectional controls show one text for another. All that prints a text from outside, such as a
name, an answer or an error that quotes one, sends it through here.
"""

import sys


def printable(text: str) -> str:
    r"""A text on one line without control characters: white space as spaces, what else does not print as `\x1b`.

    Printable is what `str.isprintable` calls so: no controls (C0, C1, DEL), no invisible or bidirectional formatting,
    no surrogates, no private or unassigned code points.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else _escaped(char) for char in text)


def printable_lines(text: str) -> str:
    r"""The same for a text of several lines: each `\n` stays."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: str, most: int = 0) -> str:
    """A printable text with single spaces between its words; cut to `most` characters if that is not 0."""
    flat = " ".join(printable(text).split())
    return f"{flat[: most - 1]}…" if 0 < most < len(flat) else flat


def notice(text: str) -> None:
    """Tells on standard error of something that was worked around."""
    print(f"note: {one_line(text)}", file=sys.stderr, flush=True)


def _escaped(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode() if not char.isascii() else f"\\x{ord(char):02x}"
