"""The safetensors format: eight bytes of length, a JSON header, raw numbers. Read and written one tensor at a time.

Written here because the `safetensors` package reads bfloat16 into NumPy only by way of torch, and so that a damaged
file is an error which names the file and the tensor.
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

from g1jax.errors import G1Error

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
_MAX_HEADER = 100_000_000  # bytes, as in the format's own reader
_CHUNK = 1 << 24  # numbers looked at together


class WeightsError(G1Error):
    """Weights that are damaged or belong to another model; the message names files and tensors."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte in the file

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a file, by name; reads no weights.

    Raises:
        WeightsError: the file is cut short, or no safetensors file.
    """
    length = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 0 < size <= min(length - 8, _MAX_HEADER):
            raise WeightsError(f"{file}: cut short or no safetensors file: {length} bytes, a header of {size}")
        try:
            header = json.loads(stream.read(size))
            entries = {
                name: _entry(file, name, fields, 8 + size) for name, fields in header.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{file}: the header is no safetensors header: {error!r}") from None
    ends = {name: entry.start + entry.size * DTYPES[entry.dtype].itemsize for name, entry in entries.items()}
    cut = [name for name, end in ends.items() if end > length]
    if cut:
        wanted = max(ends.values())
        raise WeightsError(f"{file}: cut short: {length} bytes of {wanted}; without {join_names(cut)}")
    return entries


def _entry(file: Path, name: str, fields: dict[str, Any], base: int) -> Entry:
    dtype, shape, (start, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    if dtype not in DTYPES:
        raise WeightsError(f"{file}: {name} has type {dtype}; known are {', '.join(DTYPES)}")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
        raise WeightsError(f"{file}: {name} has shape {shape} at {start}:{end}")
    if end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise WeightsError(f"{file}: {name}: {end - start} bytes do not hold {dtype}{list(shape)}")
    return Entry(file, dtype, shape, base + start)


def read_tensor(entry: Entry, name: str) -> np.ndarray:
    """A tensor, in memory of its own.

    Raises:
        WeightsError: the file has been cut short, or the tensor holds an infinity or NaN.
    """
    numbers = np.fromfile(entry.file, DTYPES[entry.dtype], entry.size, offset=entry.start)
    if numbers.size != entry.size:
        raise WeightsError(f"{entry.file}: cut short in {name}")
    bits, exponent = _EXPONENT[entry.dtype]
    for start in range(0, numbers.size, _CHUNK):
        part = numbers[start : start + _CHUNK].view(bits)
        if np.any((part & bits(exponent)) == bits(exponent)):
            raise WeightsError(f"{entry.file}: {name} holds an infinity or NaN")
    return numbers.reshape(entry.shape)


def write(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, tensor: Callable[[str], np.ndarray]) -> None:
    """Writes a file; `tensor(name)` is asked for one tensor after another, in the order of `shapes`."""
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
            numbers = np.ascontiguousarray(tensor(name), DTYPES[dtype])
            assert numbers.shape == shape, (name, numbers.shape, shape)
            stream.write(numbers.reshape(-1).view(np.uint8).data)
    unfinished.replace(file)


def join_names(names: list[str], limit: int = 8) -> str:
    """The first of some names, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
