"""Redacts keys and passwords in untrusted text, in the encodings in which servers, proxies and libraries return them.

A secret is found verbatim; escaped as in JSON, Python, URLs or HTML, up to several levels deep; in base64 of either
alphabet, alone or within a longer text such as `user:password`; and in hexadecimal. The beginning of a long secret is
enough, since a quote may be truncated. So redact before the text is truncated, escaped or written.
"""

import base64
import re
from collections.abc import Iterable, Iterator
from html.entities import name2codepoint
from urllib.parse import parse_qsl, unquote, urlsplit

REDACTED = "[key]"

_LONG = 8  # shorter secrets could be words or numbers: they are redacted only as whole words
_SHORT = 4  # still shorter ones only within `user:password` and `Bearer key`
_HEAD = 12  # characters of a long secret that identify it
_LEVELS = 4  # of nested escapes

Span = tuple[int, int]

_ESCAPE = re.compile(
    rb"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([\s\S]))|%([0-9a-fA-F]{2})"
    rb"|&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(\w{2,8}));?"
)
_CONTROLS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
_BREAKS = b" \t\r\n:"  # within base64 and hexadecimal
_PLUS_AND_SLASH = bytes.maketrans(b"-_", b"+/")
_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_BASE64 = frozenset(base64.b64encode(bytes(range(256)))) | frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789+/-_")


class Redactor:
    """Redacts secrets in texts."""

    def __init__(self, secrets: Iterable[str], phrases: Iterable[str] = ()) -> None:
        """`phrases` contain secrets, and are redacted whatever their length."""
        unique = list(dict.fromkeys(secrets))
        long = [_raw(text) for text in dict.fromkeys((*(text for text in unique if len(text) >= _LONG), *phrases))]
        self._long = list(dict.fromkeys(part for raw in long for part in _chain(raw)))
        self._heads = [_raw(text[:_HEAD]) for text in unique if len(text) >= _HEAD + _SHORT]
        self._short = [_raw(text) for text in unique if _SHORT <= len(text) < _LONG and not text.isdecimal()]
        self._base64 = [(before, raw, _core(raw, before)) for raw in long for before in range(3)]

    def __call__(self, text: str) -> str:
        """The text without the secrets."""
        raw = _raw(text)
        out, end = b"", 0
        for start, stop in sorted(set(self._spans(raw))):
            if stop > end:
                out += (raw[end:start] + REDACTED.encode()) if start >= end else b""
                end = stop
        return text if not end else (out + raw[end:]).decode("utf-8", "surrogatepass")

    def _spans(self, raw: bytes, level: int = 0) -> Iterator[Span]:
        """The spans of secrets, verbatim or escaped."""
        yield from self._unescaped_spans(raw)
        if level < _LEVELS and (inner := _ESCAPE.sub(_unescape, raw)) != raw:
            origins: list[int] = []
            for start, stop in self._spans(inner, level + 1):
                origins = origins or _origins(raw)
                yield origins[start], origins[stop]

    def _unescaped_spans(self, raw: bytes) -> Iterator[Span]:
        for secret in self._long:
            yield from _occurrences(raw, secret)
        for head in self._heads:
            start = raw.find(head)
            while start >= 0:
                stop = _skip(raw, start + len(head), _WORD)
                yield start, stop
                start = raw.find(head, stop)
        for secret in self._short:
            yield from (span for span in _occurrences(raw, secret) if _is_alone(raw, span))
        squeezed = raw.translate(_PLUS_AND_SLASH, _BREAKS)
        origins: list[int] = []
        for start, stop in (*self._in_base64(squeezed), *self._in_hexadecimal(raw.translate(None, _BREAKS))):
            origins = origins or [i for i, byte in enumerate(raw) if byte not in _BREAKS]
            yield origins[start], origins[stop - 1] + 1

    def _in_base64(self, squeezed: bytes) -> Iterator[Span]:
        for before, secret, core in self._base64:
            for start, stop in _occurrences(squeezed, core):  # and the characters it shares with its neighbors
                start -= bool(before and start and squeezed[start - 1] in _BASE64)
                stop += bool((before + len(secret)) % 3 and stop < len(squeezed) and squeezed[stop] in _BASE64)
                yield start, _skip(squeezed, stop, frozenset(b"="))

    def _in_hexadecimal(self, squeezed: bytes) -> Iterator[Span]:
        lower = squeezed.lower()
        for secret in {raw for _, raw, _ in self._base64}:
            yield from _occurrences(lower, secret.hex().encode())


def redactor_for(key: str, url: str, headers: str = "") -> Redactor:
    """Redacts the secrets of an endpoint: its key, the user, password and query of its URL, and values of `headers`.

    Short keys without a digit, such as `none` or `EMPTY`, are placeholders for servers that need no key.
    """
    parts = urlsplit(url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    is_placeholder = len(key) < _LONG and not any(char.isdecimal() for char in key)
    secrets = [password, *(value for _, value in parse_qsl(parts.query)), *[parts.query] * (len(parts.query) >= _LONG)]
    secrets += [user] if len(user) >= _LONG else []
    secrets += [line.partition(":")[2].strip() for line in headers.splitlines()]
    secrets += [] if is_placeholder else [key]
    phrases = [f"{user}:{password}"] if password else []
    phrases += [f"Bearer {key}"] if len(key) < _LONG and not is_placeholder else []
    return Redactor(secrets, phrases)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _chain(raw: bytes) -> Iterator[bytes]:
    """A secret, and what remains of it when its own characters, such as a backslash, are read as escapes."""
    yield raw
    for _ in range(_LEVELS):
        raw = _ESCAPE.sub(_unescape, raw)
        if len(raw) >= _SHORT:
            yield raw


def _core(raw: bytes, before: int) -> bytes:
    """The base64 characters that depend only on these bytes, when `before` others (modulo 3) precede them."""
    encoded = base64.b64encode(bytes(before) + raw)
    return encoded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]


def _unescape(escape: re.Match[bytes]) -> bytes:
    """The character of an escape, in UTF-8; an invalid escape is unchanged."""
    unicode, byte, plain, percent, decimal, hexadecimal, name = escape.groups()
    if plain is not None:
        return _CONTROLS.get(plain, plain)
    if percent is not None:
        return bytes([int(percent, 16)])
    if name is not None:
        code = name2codepoint.get(name.decode("latin-1"), -1)
    elif decimal is not None:
        code = int(decimal)
    else:
        code = int(unicode or byte or hexadecimal, 16)
    return chr(code).encode("utf-8", "surrogatepass") if 0 <= code < 0x110000 else escape[0]


def _origins(raw: bytes) -> list[int]:
    """For each byte of the unescaped text, and for its end, the offset in `raw`."""
    out, end = [], 0
    for escape in _ESCAPE.finditer(raw):
        out += [*range(end, escape.start()), *[escape.start()] * len(_unescape(escape))]
        end = escape.end()
    return [*out, *range(end, len(raw) + 1)]


def _occurrences(raw: bytes, part: bytes) -> Iterator[Span]:
    start = raw.find(part) if part else -1
    while start >= 0:
        yield start, start + len(part)
        start = raw.find(part, start + 1)


def _skip(raw: bytes, at: int, chars: frozenset[int]) -> int:
    while at < len(raw) and raw[at] in chars:
        at += 1
    return at


def _is_alone(raw: bytes, span: Span) -> bool:
    """Whether no letter or digit precedes or follows."""
    neighbors = raw[max(span[0] - 1, 0) : span[0]], raw[span[1] : span[1] + 1]
    return not any(byte.isalnum() for byte in neighbors)
