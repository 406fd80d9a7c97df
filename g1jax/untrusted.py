"""Reading untrusted files: bounded in size, nesting and time, with one-line errors that name the place.

    settings = read_json(folder / "config.json")                     # UntrustedError: config.json: line 3, column 7: …
    for number, row in read_json_lines(folder / "data.jsonl"): ...   # UntrustedError: data.jsonl:12: column 7: …

JSON is parsed more strictly than by Python's `json`, so that errors are found here and not later, far from the file:

- Size, nesting and the number of values are limited *before* the recursive parser reads the text.
- The text is UTF-8. A lone surrogate (raw or as `\\ud800`) is rejected, since no file or tokenizer accepts it.
- NaN and infinities are rejected, also as numbers that overflow (`1e999`), unless `allow_nan` is given.
- An integer has at most 300 digits, so that it can be compared with, and converted to, a float.
- A duplicate key in an object is rejected, since parsers disagree on which value counts.

A server's replies, and logs of them, are parsed with `lenient`, so that an irrelevant bad value does not invalidate the
rest: such numbers become None, lone surrogates become U+FFFD, and the last of duplicate keys wins. The limits stay.
"""

import contextlib
import functools
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from g1jax.errors import G1Error
from g1jax.terminal import one_line

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
MAX_VALUES = 2_000_000
MAX_CONTAINERS = 1_000_000  # lists and objects; each takes up to 240 bytes with one item, so 0.25 GB in all
MAX_DIGITS = 300

_CHUNK = 1 << 20
_LONGEST_PATH = 500  # shown whole in a message
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_DOTTED = re.compile(r"""(?<![A-Za-z0-9_-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){16}""")

_ESCAPED_TWICE_OR_SURROGATE = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# The longest prefix of a text in which every escaped surrogate is half of a pair. Escapes are consumed whole, so that
# an escaped backslash before a `u` is not read as an escape; possessive, so it never backtracks.
_PAIRED = re.compile(
    r"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+"
)


class UntrustedError(G1Error):
    """A untrusted file that is damaged, hostile or too large; the message names the file and the place in it."""


def excerpt(value: object, limit: int = 80) -> str:
    """A untrusted value for use in a message: on one line, printable, cut to `limit` characters."""
    text = ascii(value[: limit + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def name_of(path: str | Path) -> str:
    """A path for use in a message: unchanged if it is printable and not endless, else quoted, escaped and cut."""
    return str(path) if str(path).isprintable() and len(str(path)) <= _LONGEST_PATH else excerpt(str(path), 200)


# Files


def read_bytes(
    path: str | Path, *, max_bytes: int = MAX_BYTES, limit: int | None = None, error: type[G1Error] = UntrustedError
) -> bytes:
    """The bytes of a regular file. With a `limit`, its first `limit` bytes, whatever its size.

    Raises:
        error: The file cannot be read, has more than `max_bytes`, or is a pipe or device, which may never end.
    """
    with _open_regular(path, error) as file:
        count = max_bytes + 1 if limit is None else limit
        raw = file.read(min(count, os.fstat(file.fileno()).st_size + 1))  # `read` allocates all the bytes requested
    if len(raw) > max_bytes and limit is None:
        raise error(f"{name_of(path)}: more than {_format_size(max_bytes)}, the limit for such a file")
    return raw


def read_text(path: str | Path, *, max_bytes: int = MAX_BYTES, error: type[G1Error] = UntrustedError) -> str:
    """The UTF-8 text of a regular file; see `read_bytes`."""
    return _decode(read_bytes(path, max_bytes=max_bytes, error=error), name_of(path), error)


def file_inside(folder: Path, name: str, where: str, error: type[G1Error] = UntrustedError) -> Path:
    """The path of the file with a untrusted `name` in a folder.

    The path, with links resolved, must be inside the folder. The exception is the Hugging Face cache, whose
    `snapshots/<revision>` folders link to `blobs` of the same repository.

    Raises:
        error: The name is absolute, is outside the folder, or is not a regular file.
    """
    try:
        given = Path(name)
        is_inside = not given.is_absolute() and ".." not in given.parts
        path, root = (folder / given).resolve(), folder.resolve()
        is_there = path.is_file()
    except (OSError, ValueError, RuntimeError):  # a null byte, a surrogate, a name too long, a loop of links
        raise error(f"{where}: {name_of(name)} is not a valid file name") from None
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    is_inside &= path.is_relative_to(root) or path.is_relative_to(blobs)
    if not is_inside:
        raise error(f"{where}: {name_of(name)} is outside the folder {name_of(folder)}: move the file into it")
    if not is_there:
        raise error(f"{where}: there is no file {name_of(name)} in {name_of(folder)}")
    return folder / given


@contextlib.contextmanager
def _open_regular(path: str | Path, error: type[G1Error]) -> Iterator[BufferedReader]:
    """A regular file, open for reading. An OSError, here or in the block, is raised as `error`."""
    try:
        try:
            # Without O_NONBLOCK, opening a pipe waits for a writer. The check of the kind follows, on the open file.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except ValueError:  # a null byte or a surrogate in its name
            raise error(f"{name_of(path)}: not a valid file name") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise error(f"{name_of(path)}: not a regular file")
        with os.fdopen(handle, "rb") as file:
            yield file
    except OSError as reason:
        raise error(f"{name_of(path)}: cannot be read: {reason.strerror or reason}") from None


# TOML


def read_toml(
    path: str | Path, *, max_bytes: int = 2**16, max_depth: int = 8, error: type[G1Error] = UntrustedError
) -> dict[str, Any]:
    """The tables of a TOML file that users edit: small, shallow, with integers of 64 bits as TOML defines them.

    Raises:
        error: The file cannot be read, is not TOML, or is larger or deeper than allowed.
    """
    text, where = read_text(path, max_bytes=max_bytes, error=error), name_of(path)
    if found := _DOTTED.search(text):  # `tomllib` takes quadratic time for these
        raise error(f"{where}: {_place(text, found.start())}: a dotted key of too many parts")
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as reason:
        why = "nested too deeply" if isinstance(reason, RecursionError) else one_line(str(reason), 200)
        raise error(f"{where}: not TOML: {why}") from None
    _check_toml(tables, where, max_depth, error)
    return tables


def _check_toml(value: Any, where: str, depth: int, error: type[G1Error]) -> None:
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise error(f"{where}: an integer of more than 64 bits")
    if isinstance(value, dict | list):
        if depth == 0:
            raise error(f"{where}: nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            _check_toml(item, where, depth - 1, error)


# JSON


def read_json(
    path: str | Path,
    *,
    max_bytes: int = MAX_BYTES,
    max_values: int = MAX_VALUES,
    error: type[G1Error] = UntrustedError,
) -> Any:
    """The value in a JSON file; see `parse_json`. A missing or unreadable file raises `error` too."""
    raw = read_bytes(path, max_bytes=max_bytes, error=error)
    return parse_json(raw, name_of(path), max_bytes=max_bytes, max_values=max_values, error=error)


def read_object(
    path: str | Path, *, max_values: int = MAX_VALUES, error: type[G1Error] = UntrustedError
) -> dict[str, Any]:
    """The object in a JSON file; see `read_json`. Any other value raises `error` too."""
    content = read_json(path, max_values=max_values, error=error)
    if not isinstance(content, dict):
        raise error(f"{name_of(path)}: expected a JSON object")
    return content


def read_json_lines(
    path: str | Path,
    *,
    max_line_bytes: int = MAX_BYTES,
    allow_nan: bool = False,
    lenient: bool = False,
    error: type[G1Error] = UntrustedError,
    on_error: Callable[[G1Error], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """The line numbers, from 1, and values of a JSON Lines file; blank lines are skipped.

    Holds one line in memory at a time. With `on_error`, invalid lines are passed to it as errors and skipped.

    Raises:
        error: The file cannot be read or, without `on_error`, a line is not JSON or exceeds `max_line_bytes`.
    """
    number = 0
    with _open_regular(path, error) as file:
        while line := file.readline(max_line_bytes + 1):
            number += 1
            where = f"{name_of(path)}:{number}"
            try:
                if len(line) > max_line_bytes:
                    while line and not line.endswith(b"\n"):  # skip the rest of the line
                        line = file.readline(_CHUNK)
                    raise error(f"{where}: a line of more than {_format_size(max_line_bytes)}")
                if not line.strip():
                    continue
                raw = line.rstrip(b"\r\n")
                value = parse_json(
                    raw, where, max_bytes=max_line_bytes, allow_nan=allow_nan, lenient=lenient, error=error
                )
            except error as reason:
                if on_error is None:
                    raise
                on_error(reason)
                continue
            yield number, value


def parse_json(
    raw: bytes | str,
    where: str,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    max_values: int = MAX_VALUES,
    allow_nan: bool = False,
    lenient: bool = False,
    error: type[G1Error] = UntrustedError,
) -> Any:
    """The value of a untrusted JSON text; `where` names its source in messages, such as the file.

    Raises:
        error: The text is not JSON, is too large or too deep, or has too many values; the message names the place.
    """
    if isinstance(raw, str):
        try:
            raw = raw.encode()
        except UnicodeEncodeError as reason:
            raise error(f"{where}: a lone surrogate at character {reason.start + 1}") from None
    if len(raw) > max_bytes:
        raise error(f"{where}: {_format_size(len(raw))} of JSON; the limit is {_format_size(max_bytes)}")
    text = raw.decode("utf-8-sig", "replace") if lenient else _decode(raw, where, error)
    _check_structure(raw, where, max_depth, max_values, error)
    if lenient and _SURROGATE.search(text):
        text = _ESCAPED_TWICE_OR_SURROGATE.sub(lambda match: match[0] if len(match[0]) != 6 else "\ufffd", text)
    elif _SURROGATE.search(text) and (paired := _PAIRED.match(text)) and paired.end() < len(text):
        raise error(f"{where}: {_place(text, paired.end())}: a lone surrogate")
    try:
        return (_lenient_decoder() if lenient else _decoder(allow_nan)).decode(text)
    except json.JSONDecodeError as reason:
        # `reason.msg` quotes nothing of the text: "Expecting value".
        raise error(f"{where}: {_place(text, reason.pos)}: not JSON: {reason.msg}") from None
    except _RejectedError as reason:
        raise error(f"{where}: {reason}") from None


class _RejectedError(Exception):
    """JSON that Python accepts and this module does not."""


def _decode(raw: bytes, where: str, error: type[G1Error]) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        line = raw.count(b"\n", 0, reason.start) + 1
        raise error(f"{where}: line {line}, byte {reason.start + 1} of the file: not UTF-8") from None


def _check_structure(raw: bytes, where: str, max_depth: int, max_values: int, error: type[G1Error]) -> None:
    """Bounds the nesting and the number of values of a JSON text in one pass over its bytes, a chunk at a time.

    The pass agrees with the parser up to the first byte that is not JSON, where the parser stops anyway.
    """
    opening = raw.count(b"[") + raw.count(b"{")
    if opening <= min(max_depth, MAX_CONTAINERS) and opening + raw.count(b",") <= max_values:
        return  # the common case
    depth, values, containers, is_inside, is_escaped, line = 0, 0, 0, False, False, 1
    for start in range(0, len(raw), _CHUNK):
        chunk = raw[start : start + _CHUNK]
        if is_escaped:
            chunk = b"_" + chunk[1:]
        chunk = _ESCAPE.sub(b"__", chunk)
        is_escaped = chunk.endswith(b"\\")
        codes = np.frombuffer(chunk, np.uint8)
        quotes = np.cumsum(codes == ord('"'), dtype=np.int32) + is_inside
        codes = np.where(quotes % 2 == 1, 0, codes)
        is_inside = bool(quotes[-1] % 2)
        opens = (codes == ord("[")) | (codes == ord("{"))
        closes = (codes == ord("]")) | (codes == ord("}"))
        depths = depth + np.cumsum(opens.astype(np.int8) - closes.astype(np.int8), dtype=np.int32)
        if depths.max() > max_depth:
            at = int(np.argmax(depths > max_depth))
            line += chunk.count(b"\n", 0, at)
            raise error(
                f"{where}: line {line}, byte {start + at + 1} of the text: nested deeper than {max_depth} levels"
            )
        depth = int(depths[-1])
        containers += int(np.count_nonzero(opens))
        values += int(np.count_nonzero(opens)) + int(np.count_nonzero(codes == ord(",")))
        line += chunk.count(b"\n")
        if values > max_values:
            raise error(f"{where}: more than {max_values} values by line {line}")
        if containers > MAX_CONTAINERS:
            raise error(f"{where}: more than {MAX_CONTAINERS} lists and objects by line {line}")


@functools.cache
def _decoder(allow_nan: bool) -> json.JSONDecoder:
    def parse_float(digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")) and not allow_nan:
            raise _RejectedError(f"the number {excerpt(digits, 40)} is too large for a float")
        return value

    def parse_constant(name: str) -> float:
        if not allow_nan:
            raise _RejectedError(f"the number {name} is not allowed in JSON")
        return float(name)

    return json.JSONDecoder(
        parse_float=parse_float, parse_int=_parse_int, parse_constant=parse_constant, object_pairs_hook=_unique_keys
    )


@functools.cache
def _lenient_decoder() -> json.JSONDecoder:
    def parse_float(digits: str) -> float | None:
        return value if math.isfinite(value := float(digits)) else None

    def parse_int(digits: str) -> int | None:
        return int(digits) if len(digits) <= MAX_DIGITS else None

    return json.JSONDecoder(parse_float=parse_float, parse_int=parse_int, parse_constant=lambda name: None)


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _RejectedError(f"an integer of {len(digits)} digits; the limit is {MAX_DIGITS}")
    return int(digits)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise _RejectedError(f"the key {excerpt(key)} occurs twice in one object")
        content[key] = value
    return content


def _place(text: str, at: int) -> str:
    """The line and column of a character; in a single-line text, only the column."""
    column = at - text.rfind("\n", 0, at)
    return f"line {text.count(chr(10), 0, at) + 1}, column {column}" if "\n" in text else f"column {column}"


def _format_size(count: int) -> str:
    return f"{count / 2**20:.4g} MiB" if count >= 2**20 else f"{count} bytes"
