"""Text on the device: boards, answers and tags as `uint8` arrays, so that writing, reading and scoring run in a jit.

There are two primitives: `join` concatenates names, and a `Span` is the part of a text that a reader (`find_tag`,
`read_numbers`, `BoardText.read_span`) reads. Texts are zero-padded. A zero byte inside a text is an ordinary byte that
matches nothing. White space is the four ASCII bytes ` \\t\\r\\n`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from g1jax.envs.checks import check_bytes
from g1jax.envs.response import ANSWER, PERCEPTION
from g1jax.typing import Array, ArrayLike

CELL_SEPARATOR = " | "
EMPTY_CELL = "-"
_MIN_BUCKET = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Span:
    """The bytes `start <= i < end` of a text; empty, with `is_found` False, if there is no such part."""

    start: Int32[Array, "*B"]
    end: Int32[Array, "*B"]
    is_found: Bool[Array, "*B"]


@dataclasses.dataclass(frozen=True, eq=False)
class NameTable:
    """Names by index, as bytes, for `join` and `BoardText`."""

    names: UInt8[np.ndarray, "K M"]
    lengths: Int32[np.ndarray, "K"]

    @staticmethod
    def of(names: Sequence[str]) -> "NameTable":
        """The table of these names."""
        encoded = [name.encode() for name in names]
        width = max(map(len, encoded))
        rows = [np.frombuffer(name.ljust(width, b"\0"), np.uint8) for name in encoded]
        return NameTable(np.stack(rows), np.array([len(name) for name in encoded], np.int32))


# Conversion between host strings and device bytes


def encode(text: str | bytes, length: int | None = None) -> UInt8[np.ndarray, "N"]:
    """Bytes of a string, zero-padded to `length` or to a power of two, so that few lengths are compiled.

    >>> encode("4 | 2", 8).tolist()
    [52, 32, 124, 32, 50, 0, 0, 0]

    Raises:
        ValueError: the text is longer than `length` bytes.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if length is None:
        length = max(_MIN_BUCKET, 1 << max(len(raw) - 1, 0).bit_length())
    if len(raw) > length:
        raise ValueError(f"a text of {len(raw)} bytes does not fit in {length}")
    return np.frombuffer(raw.ljust(length, b"\0"), np.uint8)


def as_bytes(text: ArrayLike) -> UInt8[Array, "N"]:
    """Bytes on the device; an empty text becomes one zero byte.

    Raises:
        InputError: the array is not uint8[N].
    """
    check_bytes("text", text, None)
    text = jnp.asarray(text)
    return text if text.shape[0] else jnp.zeros(1, jnp.uint8)


def decode(text: ArrayLike) -> str:
    """The string of zero-padded bytes; invalid UTF-8 becomes the replacement character.

    >>> decode(encode("- | Red circle"))
    '- | Red circle'
    """
    return np.asarray(text, np.uint8).tobytes().rstrip(b"\0").decode("utf-8", "replace")


# Writing


def join(pieces: Int32[Array, "T"], table: NameTable, length: int) -> UInt8[Array, "{length}"]:
    """Concatenates the names of `pieces`, zero-padded or truncated."""
    lengths = jnp.asarray(table.lengths)[pieces]
    starts = jnp.minimum(jnp.cumsum(lengths, dtype=jnp.int32) - lengths, length)
    # Names are scattered with their padding. Where padding overlaps the next name, the larger byte is the name's.
    text = jnp.zeros(length + table.names.shape[1], jnp.uint8)
    rows = jax.lax.ScatterDimensionNumbers((1,), (), (0,))
    names = jnp.asarray(table.names)[pieces]
    return jax.lax.scatter_max(text, starts[:, None], names, rows, mode="promise_in_bounds")[:length]


class BoardText:
    """Writes, reads and scores board texts of one size and one set of cell names."""

    def __init__(self, names: Sequence[str], rows: int, cols: int) -> None:
        self.rows, self.cols = rows, cols
        self.names = NameTable.of(names)
        # A cell is written with its suffix: before another cell of the row, before another row, or at the end.
        self._cells = NameTable.of([name + suffix for suffix in (CELL_SEPARATOR, "\n", "") for name in names])
        suffix_index = np.zeros((rows, cols), np.int32)
        suffix_index[:, -1] = 1
        suffix_index[-1, -1] = 2
        self._offset = suffix_index * len(names)
        longest = max(len(name.encode()) for name in names)
        self.length = rows * cols * longest + rows * (cols - 1) * len(CELL_SEPARATOR) + rows - 1

    def write(self, board: Int[Array, "R C"]) -> UInt8[Array, "L"]:
        """The text of a board of cell kinds."""
        return join((board.astype(jnp.int32) + self._offset).reshape(-1), self._cells, self.length)

    def read(self, text: UInt8[Array, "N"]) -> Int32[Array, "R C"]:
        """The cell kinds in a text; -1 where unreadable. Inverse of `write`."""
        return self.read_span(text, whole(text))

    def read_span(self, text: UInt8[Array, "N"], span: Span) -> Int32[Array, "R C"]:
        """Like `read`, for a span of a text."""
        span = strip(text, span)
        starts, ends, is_there = self._split(text, span)
        longest = self.names.names.shape[1]
        # One byte more than the longest name, so that longer cells match no name.
        inside = starts[..., None] + np.arange(longest + 1, dtype=np.int32)[None, None]
        cell = jnp.where(inside < ends[..., None], take(text, inside), jnp.uint8(0))
        known = jnp.asarray(np.pad(self.names.names, ((0, 0), (0, 1))))
        is_kind = jnp.all(cell[:, :, None, :] == known[None, None], axis=-1)  # [R, C, K]
        is_kind &= (ends - starts)[..., None] == jnp.asarray(self.names.lengths)[None, None]
        kinds = np.arange(is_kind.shape[-1], dtype=np.int32)[None, None]
        kind = jnp.max(jnp.where(is_kind, kinds, -1), axis=-1)
        return jnp.where(is_there, kind, -1)

    def _split(self, text: Array, span: Span) -> tuple[Array, Array, Array]:
        """The start and end of each cell's stripped bytes, and whether it exists: three arrays [R, C]."""
        position = jnp.arange(text.shape[0], dtype=jnp.int32)
        inside = (position >= span.start) & (position < span.end)
        is_row_end = inside & (text == ord("\n"))
        is_cell_end = inside & (text == ord("|"))
        row = _count_before(is_row_end)
        bars = _count_before(is_cell_end)
        bars_before_row = jax.lax.cummax(jnp.where(is_row_end, bars, 0))
        col = bars - bars_before_row
        is_ink = inside & ~is_space(text) & ~is_row_end & ~is_cell_end
        on_board = (row < self.rows) & (col < self.cols)
        cell = jnp.where(on_board, row * self.cols + col, self.rows * self.cols)
        count, shape, n = self.rows * self.cols, (self.rows, self.cols), text.shape[0]
        to_cell = jnp.where(is_ink, cell, count)
        starts = jnp.full(count + 1, n, jnp.int32).at[to_cell].min(position)
        ends = jnp.zeros(count + 1, jnp.int32).at[to_cell].max(position + 1)
        is_there = jnp.zeros(count + 1, bool).at[to_cell].set(True)
        return starts[:-1].reshape(shape), ends[:-1].reshape(shape), is_there[:-1].reshape(shape)

    def exact_score(self, response: UInt8[Array, "N"], board: Int[Array, "R C"]) -> Bool[Array, ""]:
        """Whether the stripped content of the response's first perception tag is the true board text."""
        span = strip(response, find_tag(response, PERCEPTION))
        truth = self.write(board)
        length = jnp.sum((truth != 0).astype(jnp.int32), dtype=jnp.int32)
        position = jnp.arange(self.length, dtype=jnp.int32)
        same = (take(response, span.start + position) == truth) | (position >= length)
        return span.is_found & (span.end - span.start == length) & jnp.all(same)

    def cell_score(self, response: UInt8[Array, "N"], board: Int[Array, "R C"]) -> Float32[Array, ""]:
        """The fraction of cells that the response's first perception tag names correctly: from 0 to 1."""
        span = find_tag(response, PERCEPTION)
        is_right = self.read_span(response, span) == board.astype(jnp.int32)
        return jnp.where(span.is_found, jnp.mean(is_right.astype(jnp.float32)), 0.0)


class AnswerText:
    """Writes and reads actions as numbers in a form, such as `(#, #) (#, #)`, within an answer tag."""

    def __init__(self, form: str, bounds: Sequence[int]) -> None:
        self.form, self.bounds = form, tuple(bounds)
        between = form.split("#")
        start, end = f"<{ANSWER}>", f"</{ANSWER}>"
        between[0], between[-1] = start + between[0], between[-1] + end
        numbers = [str(i) for i in range(max(bounds))]
        self._pieces = NameTable.of([*numbers, *between, start, end, ""])
        first = len(numbers)
        self._between = np.arange(first, first + len(between), dtype=np.int32)
        opening, closing, nothing = range(first + len(between), first + len(between) + 3)
        self._no_answer = np.full(2 * len(between) - 1, nothing, np.int32)
        self._no_answer[0], self._no_answer[-1] = opening, closing
        self.length = sum(map(len, between)) + len(bounds) * len(numbers[-1])

    def write(self, numbers: Int32[Array, "n"], is_valid: Bool[Array, ""]) -> UInt8[Array, "A"]:
        """The answer of these numbers; an empty answer if not `is_valid`."""
        pieces = jnp.zeros(self._no_answer.shape, jnp.int32)
        pieces = pieces.at[0::2].set(self._between).at[1::2].set(numbers)
        return join(jnp.where(is_valid, pieces, self._no_answer), self._pieces, self.length)

    def read(self, response: UInt8[Array, "N"]) -> tuple[Int32[Array, "n"], Bool[Array, ""]]:
        """The numbers of a response's first answer, and whether they are valid; 0 where not."""
        span = find_tag(response, ANSWER)
        numbers, is_valid = read_numbers(response, span, self.form.replace(" ", ""), max(self.bounds))
        is_valid &= jnp.all(numbers < np.array(self.bounds, np.int32))
        return jnp.where(is_valid, numbers, 0), is_valid


# Reading


def is_space(text: UInt8[Array, "*N"]) -> Bool[Array, "*N"]:
    """Which bytes are white space."""
    return (text == ord(" ")) | (text == ord("\n")) | (text == ord("\t")) | (text == ord("\r"))


def take(text: UInt8[Array, "N"], index: Int32[Array, "*n"]) -> UInt8[Array, "*n"]:
    """The bytes of a text at these indices; zero outside of it."""
    n = text.shape[0]
    return jnp.where((index >= 0) & (index < n), text[jnp.clip(index, 0, n - 1)], jnp.uint8(0))


def whole(text: UInt8[Array, "N"]) -> Span:
    """A text without its zero padding."""
    position = jnp.arange(text.shape[0], dtype=jnp.int32)
    end = jnp.max(jnp.where(text != 0, position + 1, 0))
    return Span(jnp.int32(0), end, jnp.bool_(True))


def strip(text: UInt8[Array, "N"], span: Span) -> Span:
    """A span without white space at its ends."""
    position = jnp.arange(text.shape[0], dtype=jnp.int32)
    is_ink = (position >= span.start) & (position < span.end) & ~is_space(text)
    start = _first(is_ink, span.end)
    end = jnp.max(jnp.where(is_ink, position + 1, start))
    return Span(start, end, span.is_found)


def find(text: UInt8[Array, "N"], what: str, after: Int32[Array, ""] | int = 0) -> Int32[Array, ""]:
    """The index of the first `what` at or after `after`; N if there is none."""
    n = text.shape[0]
    padded = jnp.pad(text, (0, len(what) - 1))
    is_match = jnp.arange(n, dtype=jnp.int32) >= after
    for i, byte in enumerate(what.encode()):
        is_match &= padded[i : i + n] == byte
    return _first(is_match, n)


def find_tag(text: UInt8[Array, "N"], name: str) -> Span:
    """The content of the first `<name>…</name>`: from the first opening tag to the first closing one after it.

    >>> text = jnp.asarray(encode("<answer>2</answer>"))
    >>> span = find_tag(text, "answer"); (int(span.start), int(span.end), bool(span.is_found))
    (8, 9, True)
    """
    n = text.shape[0]
    start = find(text, f"<{name}>") + len(name) + 2
    end = find(text, f"</{name}>", start)
    is_found = end < n
    return Span(jnp.where(is_found, start, 0), jnp.where(is_found, end, 0), is_found)


def read_numbers(
    text: UInt8[Array, "N"], span: Span, form: str, limit: int
) -> tuple[Int32[Array, "n"], Bool[Array, ""]]:
    """The numbers in a span of a given form, and whether they are valid.

    In the form, such as `(#,#)(#,#)`, each `#` is an unsigned decimal integer and every other byte is literal; no two
    `#` are adjacent. White space is allowed anywhere except within a number. Numbers above `limit`, of any length, are
    returned as some number above it.
    """
    position = jnp.arange(text.shape[0], dtype=jnp.int32)
    inside = (position >= span.start) & (position < span.end)
    is_digit = inside & (text >= ord("0")) & (text <= ord("9"))
    is_mark = inside & ~is_digit & ~is_space(text)
    marks = form.replace("#", "").encode()
    is_valid = span.is_found & (jnp.sum(is_mark.astype(jnp.int32), dtype=jnp.int32) == len(marks))
    # The gap before each mark, and after the last one, has a number or nothing.
    here, numbers = span.start, []
    for i, gap_has_number in enumerate(_gaps(form)):
        until = _first(is_mark & (position >= here), span.end)
        if i < len(marks):
            is_valid &= take(text, until) == marks[i]
        is_gap_digit = is_digit & (position >= here) & (position < until)
        if gap_has_number:
            number, is_number = _read_number(text, position, is_gap_digit, limit)
            numbers.append(number)
            is_valid &= is_number
        else:
            is_valid &= ~jnp.any(is_gap_digit)
        here = until + 1
    return jnp.stack(numbers), is_valid


def _gaps(form: str) -> list[bool]:
    """Whether there is a number before each mark of a form, and after the last: `(#,#)` -> F T T F."""
    gaps = [False]
    for char in form:
        if char == "#":
            gaps[-1] = True
        else:
            gaps.append(False)
    return gaps


def _read_number(text: Array, position: Array, is_digit: Array, limit: int) -> tuple[Array, Array]:
    """The value of the marked digits, and whether they are one number: at least one, and contiguous."""
    n = text.shape[0]
    first, last = _first(is_digit, n), jnp.max(jnp.where(is_digit, position, -1))
    count = jnp.sum(is_digit.astype(jnp.int32), dtype=jnp.int32)
    places = len(str(limit)) + 1
    value = jnp.int32(0)
    for place in range(places):
        digit = take(text, last - place).astype(jnp.int32) - ord("0")
        value += jnp.where(last - place >= first, digit, 0) * 10**place
    is_beyond = jnp.any(is_digit & (position <= last - places) & (text != ord("0")))
    return jnp.where(is_beyond, limit + 1, value), (count > 0) & (count == last - first + 1)


def _count_before(mask: Array) -> Array:
    """The number of True entries before each one: bool[n] -> int32[n]."""
    ones = mask.astype(jnp.int32)
    return jnp.cumsum(ones, dtype=jnp.int32) - ones


def _first(mask: Array, otherwise: Array | int) -> Array:
    """The index of the first True entry, int32[]. (By a minimum: XLA does not vectorize argmax on CPU.)"""
    n = mask.shape[0]
    first = jnp.min(jnp.where(mask, jnp.arange(n, dtype=jnp.int32), n))
    return jnp.where(first < n, first, jnp.asarray(otherwise, jnp.int32))
