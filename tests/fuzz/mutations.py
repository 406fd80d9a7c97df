"""Seeded damage to files: bytes flipped, cut, spliced or repeated; JSON and TOML with values of other kinds."""

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


def mutate_bytes(raw: bytes, chance: random.Random) -> bytes:
    """One to three damages of any bytes."""
    for _ in range(chance.randint(1, 3)):
        raw = chance.choice(_OF_BYTES)(raw, chance)
    return raw


def mutate_json(raw: bytes, chance: random.Random) -> bytes:
    """Mostly one value, or key, of another kind; else bytes."""
    if chance.random() < 0.25:
        return mutate_bytes(raw, chance)
    return json_with(json.loads(raw), chance.choice(RAW_JSON), chance).encode("utf-8", "surrogatepass")


def mutate_json_lines(raw: bytes, chance: random.Random) -> bytes:
    """One line as `mutate_json` does it; else bytes, or lines that are cut, repeated or exchanged."""
    lines = raw.splitlines(keepends=True)
    kind, i = chance.random(), chance.randrange(len(lines))
    if kind < 0.15:
        return mutate_bytes(raw, chance)
    if kind < 0.25:
        lines[i] = chance.choice([lines[i] * 2, lines[i][:-1], b"\n", lines[chance.randrange(len(lines))]])
    else:
        lines[i] = mutate_json(lines[i], chance) + b"\n"
    return b"".join(lines)


def mutate_toml(raw: bytes, chance: random.Random) -> bytes:
    """One value of another kind; else bytes."""
    lines = raw.decode().splitlines()
    settings = [i for i, line in enumerate(lines) if "=" in line]
    if chance.random() < 0.25 or not settings:
        return mutate_bytes(raw, chance)
    i = chance.choice(settings)
    key = lines[i].split("=")[0]
    if chance.random() < 0.1:
        key = chance.choice(['""', "a." * 10_000 + "a", '"\\u0000"', "a"]) + " "
    lines[i] = f"{key}= {chance.choice(RAW_TOML)}"
    return "\n".join(lines).encode()


def json_with(content: Any, wrong: str, chance: random.Random) -> str:
    """Some JSON with a value, chosen by chance, removed, exchanged, doubled or replaced by the text `wrong`."""
    whole = [content]
    parent, key = chance.choice(_values_of(whole))
    kind = chance.random()
    if kind < 0.1 and isinstance(parent, dict):
        del parent[key]
    elif kind < 0.2:
        other, at = chance.choice(_values_of(whole))
        parent[key] = json.loads(json.dumps(other[at]))
    elif kind < 0.25 and isinstance(parent, dict):
        parent[chance.choice(["", "a" * 10_000, "\x1b[2J", "\ud800", "__class__"])] = parent.pop(key)
    elif kind < 0.3 and isinstance(parent, dict):
        parent[_PLACE] = parent[key]
        return json.dumps(whole[0]).replace(json.dumps(_PLACE), json.dumps(key))
    else:
        parent[key] = _PLACE
    return json.dumps(whole[0]).replace(json.dumps(_PLACE), wrong)


def _values_of(value: Any) -> list[tuple[Any, Any]]:
    """Every value inside of some JSON, by what holds it and its key there; of long lists the first ones."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value[:20]))
    found = [(value, key) for key, _ in items]
    for _, item in items:
        if isinstance(item, dict | list):
            found += _values_of(item)
    return found


# Of bytes


def _flip(raw: bytes, chance: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(chance.choice([1, 1, 1, 8])):
        if out:
            out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def _cut(raw: bytes, chance: random.Random) -> bytes:
    return raw[: chance.randrange(len(raw) + 1)]


def _remove(raw: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(raw) + 1)
    return raw[:start] + raw[start + chance.choice([1, 4, 100]) :]


def _splice(raw: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(raw) + 1) for _ in range(2))
    at = chance.randrange(len(raw) + 1)
    return raw[:at] + raw[start:end] + raw[at:]


def _insert(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(raw) + 1)
    part = chance.choice([b"\0", b"\xff" * 8, b"[" * DEEP, b'"', b"\xed\xa0\x80", b"\n", chance.randbytes(16)])
    return raw[:at] + part + raw[at:]


def _overwrite(raw: bytes, chance: random.Random) -> bytes:
    kind = chance.choice(["B", "<H", ">H", "<I", ">I", "<Q", ">Q"])
    part = struct.pack(kind, chance.choice(NUMBERS) % 256 ** struct.calcsize(kind))
    at = chance.randrange(min(len(raw), chance.choice([64, len(raw) + 1])) + 1)
    return raw[:at] + part + raw[at + len(part) :]


def _repeat(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(raw) + 1)
    part = raw[at : at + chance.choice([1, 10, 100])]
    return raw[:at] + part * chance.choice([2, 100, 1000]) + raw[at:]


_OF_BYTES: tuple[Mutation, ...] = (_flip, _flip, _cut, _remove, _splice, _insert, _overwrite, _overwrite, _repeat)
