"""The safetensors format: eight bytes of length, a JSON header, raw data. Read and written one tensor at a time.

The `safetensors` package reads bfloat16 into NumPy only through torch; and here, errors name the damaged file and
tensor.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from g1jax.errors import WeightsError
from g1jax.untrusted import excerpt, parse_json, read_bytes

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_EXPONENT: dict[str, tuple[Any, int]] = {
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
_MAX_HEADER = 2**24  # bytes; a tensor takes about a hundred
_MAX_RANK = 8
_CHUNK = 1 << 24  # elements checked at a time


@dataclass(frozen=True)
class Entry:
    """The location of a tensor in a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte in the file

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The size in bytes."""
        return self.size * DTYPES[self.dtype].itemsize


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a file, by name; reads no weights.

    As the format demands, the tensors must fill the rest of the file without gaps or overlaps.

    Raises:
        WeightsError: the file cannot be read, is truncated, or is not a safetensors file.
    """
    head = read_bytes(file, limit=8, error=WeightsError)
    length = file.stat().st_size
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
    if not 0 < size <= min(length - 8, _MAX_HEADER):
        raise WeightsError(f"{file}: truncated or not a safetensors file: {length} bytes, a header of {size}")
    raw = read_bytes(file, limit=8 + size, error=WeightsError)[8:]
    header = parse_json(raw, f"{file}: not a safetensors header", max_depth=4, error=WeightsError)
    if not isinstance(header, dict):
        raise WeightsError(f"{file}: not a safetensors header: not an object")
    header.pop("__metadata__", None)
    entries = {name: _entry(file, name, fields, 8 + size) for name, fields in header.items()}
    _check_offsets(file, entries, 8 + size, length)
    return entries


def _check_offsets(file: Path, entries: dict[str, Entry], start: int, length: int) -> None:
    """Raises `WeightsError` if tensors overlap or leave gaps."""
    ends = {name: entry.start + entry.num_bytes for name, entry in entries.items()}
    missing = [name for name, end in ends.items() if end > length]
    if missing:
        raise WeightsError(f"{file}: truncated: {length} of {max(ends.values())} bytes; without {join_names(missing)}")
    before, end = "the header", start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].num_bytes)):
        if entry.start != end:
            kind = "overlaps" if entry.start < end else "leaves a gap after"
            raise WeightsError(f"{file}: {join_names([name])} at byte {entry.start} {kind} {before}, to byte {end}")
        before, end = join_names([name]), ends[name]
    WeightsError.require(end == length, f"{file}: {length - end} bytes after {before} belong to no tensor")


def _entry(file: Path, name: str, fields: Any, base: int) -> Entry:
    where = f"{file}: {join_names([name])}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{where}: expected exactly a dtype, a shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WeightsError(f"{where} has type {excerpt(dtype)}: expected one of {', '.join(DTYPES)}")
    lists = [part for part in (shape, offsets) if isinstance(part, list) and len(part) <= _MAX_RANK]
    if len(lists) < 2 or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise WeightsError(f"{where} has shape {excerpt(shape)} at {excerpt(offsets)}")
    entry = Entry(file, dtype, tuple(shape), base + offsets[0])
    if offsets[1] - offsets[0] != entry.num_bytes:
        raise WeightsError(f"{where}: {excerpt(offsets[1] - offsets[0])} bytes do not hold {dtype}{excerpt(shape)}")
    return entry


def read_tensor(entry: Entry, name: str) -> np.ndarray:
    """A copy of a tensor.

    Raises:
        WeightsError: the file is truncated, or the tensor has an infinity or NaN.
    """
    values = np.fromfile(entry.file, DTYPES[entry.dtype], entry.size, offset=entry.start)
    WeightsError.require(values.size == entry.size, f"{entry.file}: truncated in {name}")
    bits, exponent = _EXPONENT[entry.dtype]
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK].view(bits)
        if np.any((part & bits(exponent)) == bits(exponent)):
            raise WeightsError(f"{entry.file}: {name} has an infinity or NaN")
    return values.reshape(entry.shape)


def write(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, tensor: Callable[[str], np.ndarray]) -> None:
    """Writes a file; `tensor(name)` is called for one tensor at a time, in the order of `shapes`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    unfinished = file.with_name(file.name + ".part")
    with unfinished.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            values = np.ascontiguousarray(tensor(name), DTYPES[dtype])
            assert values.shape == shape, (name, values.shape, shape)
            stream.write(values.reshape(-1).view(np.uint8).data)
    unfinished.replace(file)


def join_names(names: list[str], limit: int = 8) -> str:
    """The first names, and the number of others."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (
        ", ".join(name if name.isprintable() and len(name) <= 120 else excerpt(name) for name in names[:limit]) + rest
    )
