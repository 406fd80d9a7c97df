"""Seeded mutations of files: bytes flipped, cut, spliced or repeated; JSON and TOML values of other kinds."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
DEEP = 100_000
RAW_JSON = (
    *("null", "true", "false", "0", "-1", "1", "2.5", "1e308", "1e-320", "9" * 17, "9" * 120, "9" * 5000, "-0.0"),
    *("NaN", "-Infinity", "1e999", "[]", "{}", "[[]]", '""', '"a"', "[0, 0]", "[null]", '{"a": 1}', '{"a": 1, "a": 2}'),
    *(
        r'"\ud800"',
        r'"\udc00\ud800"',
        r'"\u0000"',
        r'"\u001b]0;x\u0007"',
        r'"\u202e"',
        '"\\',
        '"' + "a" * 100_000 + '"',
    ),
    *('"../../../etc/passwd"', '"/etc/passwd"', '"."', '"<|im_end|>"', '"<|image_pad|>"', "[" + "0, " * 50_000 + "0]"),
    *(
        "[" * DEEP,
        "[" * DEEP + "]" * DEEP,
        '{"a":' * DEEP + "1" + "}" * DEEP,
        '"' + "\\\\" * 50_000,
        "[" + '"",' * 50_000,
    ),
)
RAW_TOML = (
    *("true", "0", "-1", "2.5", "nan", "inf", "9223372036854775808", "9" * 5000, "''", "'a'", "[]", "{}", "[[1]]"),
    *(
        '"\\u0000"',
        '"\\u001b[2J"',
        "1979-05-27",
        "[1, 'a']",
        "'@/dev/zero'",
        "'@.'",
        "'@\x07'",
        "'" + "a" * 50_000 + "'",
    ),
    *("[" * DEEP, "{a = " * DEEP, "{" + "a." * 5000 + "a = 1}", "[" + "0, " * 5000 + "0]"),
)
_PLACE = "\x7fplace\x7f"


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Damages the bytes one to three times."""
    for _ in range(rng.randint(1, 3)):
        raw = rng.choice(_BYTE_MUTATIONS)(raw, rng)
    return raw


def mutate_json(raw: bytes, rng: random.Random) -> bytes:
    """Replaces a value or key by another kind; sometimes damages bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(raw, rng)
    return json_with(json.loads(raw), rng.choice(RAW_JSON), rng).encode("utf-8", "surrogatepass")


def mutate_json_lines(raw: bytes, rng: random.Random) -> bytes:
    """Applies `mutate_json` to one line; sometimes damages bytes, or cuts, repeats or exchanges lines."""
    lines = raw.splitlines(keepends=True)
    kind, i = rng.random(), rng.randrange(len(lines))
    if kind < 0.15:
        return mutate_bytes(raw, rng)
    if kind < 0.25:
        lines[i] = rng.choice([lines[i] * 2, lines[i][:-1], b"\n", lines[rng.randrange(len(lines))]])
    else:
        lines[i] = mutate_json(lines[i], rng) + b"\n"
    return b"".join(lines)


def mutate_toml(raw: bytes, rng: random.Random) -> bytes:
    """Replaces a value by another kind; sometimes damages bytes."""
    lines = raw.decode().splitlines()
    settings = [i for i, line in enumerate(lines) if "=" in line]
    if rng.random() < 0.25 or not settings:
        return mutate_bytes(raw, rng)
    i = rng.choice(settings)
    key = lines[i].split("=")[0]
    if rng.random() < 0.1:
        key = rng.choice(['""', "a." * 10_000 + "a", '"\\u0000"', "a"]) + " "
    lines[i] = f"{key}= {rng.choice(RAW_TOML)}"
    return "\n".join(lines).encode()


def json_with(content: Any, wrong: str, rng: random.Random) -> str:
    """JSON with a random value removed, exchanged, duplicated or replaced by the text `wrong`."""
    whole = [content]
    parent, key = rng.choice(_values_of(whole))
    kind = rng.random()
    if kind < 0.1 and isinstance(parent, dict):
        del parent[key]
    elif kind < 0.2:
        other, at = rng.choice(_values_of(whole))
        parent[key] = json.loads(json.dumps(other[at]))
    elif kind < 0.25 and isinstance(parent, dict):
        parent[rng.choice(["", "a" * 10_000, "\x1b[2J", "\ud800", "__class__"])] = parent.pop(key)
    elif kind < 0.3 and isinstance(parent, dict):
        parent[_PLACE] = parent[key]
        return json.dumps(whole[0]).replace(json.dumps(_PLACE), json.dumps(key))
    else:
        parent[key] = _PLACE
    return json.dumps(whole[0]).replace(json.dumps(_PLACE), wrong)


def _values_of(value: Any) -> list[tuple[Any, Any]]:
    """Every value in the JSON as its container and key; only the first 20 of long lists."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value[:20]))
    found = [(value, key) for key, _ in items]
    for _, item in items:
        if isinstance(item, dict | list):
            found += _values_of(item)
    return found


# Mutations of bytes


def _flip(raw: bytes, rng: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 8])):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)]


def _remove(raw: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(raw) + 1)
    return raw[:start] + raw[start + rng.choice([1, 4, 100]) :]


def _splice(raw: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + raw[start:end] + raw[at:]


def _insert(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    part = rng.choice([b"\0", b"\xff" * 8, b"[" * DEEP, b'"', b"\xed\xa0\x80", b"\n", rng.randbytes(16)])
    return raw[:at] + part + raw[at:]


def _overwrite(raw: bytes, rng: random.Random) -> bytes:
    kind = rng.choice(["B", "<H", ">H", "<I", ">I", "<Q", ">Q"])
    part = struct.pack(kind, rng.choice(NUMBERS) % 256 ** struct.calcsize(kind))
    at = rng.randrange(min(len(raw), rng.choice([64, len(raw) + 1])) + 1)
    return raw[:at] + part + raw[at + len(part) :]


def _repeat(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw) + 1)
    part = raw[at : at + rng.choice([1, 10, 100])]
    return raw[:at] + part * rng.choice([2, 100, 1000]) + raw[at:]


_BYTE_MUTATIONS: tuple[Mutation, ...] = (_flip, _flip, _cut, _remove, _splice, _insert, _overwrite, _overwrite, _repeat)
