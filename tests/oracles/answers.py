"""Reading a response's bytes in plain Python. Written from the definition, not from the implementation.

Whitespace is space, tab, carriage return and newline only; digits are ASCII 0-9 only; a NUL is an ordinary byte.
"""

import re

Cell = tuple[int, int]

WHITESPACE = b" \t\r\n"
_GAP = rb"[ \t\r\n]*"
_INT = rb"([0-9]+)"
_NUMBER = re.compile(_GAP.join([b"", _INT, b""]))
_ONE_CELL = [rb"\(", _INT, rb",", _INT, rb"\)"]
_PAIR = re.compile(_GAP.join([b"", *_ONE_CELL, *_ONE_CELL, b""]))


def find_tag(response: bytes, name: str) -> tuple[int, int] | None:
    """The span of the content of the first <name>, up to the first </name> after it; None if either is missing.

    b"x<a>12</a>", "a" -> (4, 6). Tags are matched byte for byte: no capitals, no spaces inside.
    """
    tag = re.escape(name.encode())
    opening = re.search(b"<" + tag + b">", response)
    if opening is None:
        return None
    closing = re.compile(b"</" + tag + b">").search(response, opening.end())
    if closing is None:
        return None
    return opening.end(), closing.start()


def parse_number(response: bytes) -> int | None:
    """The one unsigned decimal integer that is the answer, else None.

    b"<answer> 03 </answer>" -> 3; b"<answer>+3</answer>", b"<answer>1 2</answer>", b"3" -> None.
    """
    match = _match_answer(_NUMBER, response)
    return None if match is None else _to_int(match[1])


def parse_pair(response: bytes) -> tuple[Cell, Cell] | None:
    """The two cells of the answer, else None, as for negative numbers or missing brackets; huge numbers are valid.

    b"<answer>(0, 1) (2, 3)</answer>" -> ((0, 1), (2, 3)); b"<answer>(0,1),(2,3)</answer>" -> None.
    """
    match = _match_answer(_PAIR, response)
    if match is None:
        return None
    return (_to_int(match[1]), _to_int(match[2])), (_to_int(match[3]), _to_int(match[4]))


def action_of_pair(pair: tuple[Cell, Cell], rows: int, cols: int) -> int | None:
    """((r1*C + c1)*R + r2)*C + c2, or None if a cell is off the board. 2x3: ((0,1), (1,2)) -> 11."""
    (r1, c1), (r2, c2) = pair
    if not all(0 <= r < rows and 0 <= c < cols for r, c in pair):
        return None
    return ((r1 * cols + c1) * rows + r2) * cols + c2


def perception_cells(response: bytes, truth_rows: list[list[str]]) -> tuple[bool, float]:
    """Whether the perceived board is the true text exactly (except outer whitespace), and the share of correct cells.

    Truth [[2 -] [4 8]]: b"<perception>2 | -\\n4 | 8</perception>" -> (True, 1.0); with b"2|-|9\\n4": (False, 0.75).
    Cells beyond the true board are ignored, missing ones are wrong; without the tag: (False, 0.0).
    """
    span = find_tag(response, "perception")
    if span is None:
        return False, 0.0
    content = response[span[0] : span[1]].strip(WHITESPACE)
    truth_text = "\n".join(" | ".join(row) for row in truth_rows).encode()

    guessed_rows = [[cell.strip(WHITESPACE) for cell in row.split(b"|")] for row in content.split(b"\n")]
    guessed = {(r, c): cell for r, row in enumerate(guessed_rows) for c, cell in enumerate(row)}
    truth = {(r, c): cell.encode() for r, row in enumerate(truth_rows) for c, cell in enumerate(row)}
    num_right = sum(guessed.get(position) == cell for position, cell in truth.items())
    return content == truth_text, num_right / len(truth)


def _match_answer(pattern: re.Pattern[bytes], response: bytes) -> re.Match[bytes] | None:
    span = find_tag(response, "answer")
    return None if span is None else pattern.fullmatch(response, *span)


def _to_int(digits: bytes) -> int:
    """b"0012" -> 12. Digit by digit, because int() refuses more than 4300 digits."""
    value = 0
    for digit in digits:
        value = value * 10 + (digit - ord("0"))
    return value
