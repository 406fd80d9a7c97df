"""Datasets as parquet, as Hugging Face's `datasets` writes them: the schema's metadata marks the images."""

import itertools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from g1jax.errors import ExperimentError
from g1jax.sft import parquet_child
from g1jax.untrusted import parse_json

_ROWS = 256  # per row group; readers load a whole group into memory
_MAX_TEXT, _MAX_IMAGES, _MAX_BLOBS = 2**22, 2**24, 16  # per row: bytes of text, bytes and number of images
_TEXT = {"dtype": "string", "_type": "Value"}
FEATURES: dict[str, Any] = {
    "messages": [{"role": _TEXT, "content": _TEXT}],
    "images": {"feature": {"_type": "Image"}, "_type": "Sequence"},
    "game": _TEXT,
    "board": _TEXT,
    "action": {"dtype": "int32", "_type": "Value"},
    "reward": {"dtype": "float32", "_type": "Value"},
    "level": _TEXT,
}
"""The column types in the notation of `datasets`; lists in the older of its two notations, which all versions read."""


def require_pyarrow() -> tuple[ModuleType, ModuleType]:
    """pyarrow and its parquet module.

    Raises:
        ExperimentError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ExperimentError("parquet needs a package: pip install pyarrow") from None
    return pyarrow, pyarrow.parquet


def write(file: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes all rows, atomically. `records` name their images relative to the file's folder."""
    arrow, parquet = require_pyarrow()
    schema = _schema(arrow)
    draft = file.with_suffix(".part")
    with parquet.ParquetWriter(draft, schema) as writer:
        for start in range(0, len(records), _ROWS):
            rows = [
                {**record, "images": [_embedded(file.parent, image) for image in record["images"]]}
                for record in itertools.islice(records, start, start + _ROWS)
            ]
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
    draft.replace(file)


def read(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows, with these columns, which hold strings and bytes in lists and structs.

    A parquet file can expand a million times, so rows and bytes are bounded by its size. Equal values of different rows
    are one object, as in the file. A child process reads the file, since pyarrow aborts on some damaged ones.

    Raises:
        ExperimentError: pyarrow is not installed, or the file is damaged, holds other types or expands too far.
    """
    require_pyarrow()
    size = file.stat().st_size
    max_rows, max_bytes = 10_000 + size // 32, 2**26 + 16 * size
    limits = [str(file.absolute()), json.dumps(list(columns)), str(max_rows), str(max_bytes)]
    shared = _Shared()
    with subprocess.Popen(
        [sys.executable, "-P", parquet_child.__file__, *limits],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
    ) as child:
        assert child.stdout is not None
        try:
            for row in _received(child.stdout, file):
                yield shared.of(row)
                is_bounded = shared.distinct_size <= max_bytes and shared.total_size <= 4 * max_bytes
                ExperimentError.require(is_bounded, f"{file}: more than {max_bytes} bytes, from {size}")
        finally:
            child.kill()


def _received(stream: IO[bytes], file: Path) -> Iterator[dict[str, Any]]:
    """The rows that the child process sends, up to its end message."""
    for number in itertools.count():
        where = f"{file}, row {number}"

        def take(count: int, where: str = where) -> bytes:
            raw = stream.read(count)
            ExperimentError.require(
                len(raw) == count, f"{where}: the file is damaged, or takes too much memory or time to read"
            )
            return raw

        is_end, length, num_blobs = struct.unpack("<III", take(12))
        ExperimentError.require(
            length <= _MAX_TEXT and num_blobs <= _MAX_BLOBS, f"{where}: a row of {length} bytes of text"
        )
        lengths = struct.unpack(f"<{num_blobs}I", take(4 * num_blobs))
        ExperimentError.require(sum(lengths) <= _MAX_IMAGES, f"{where}: images of {sum(lengths)} bytes")
        text = take(length)
        if is_end:
            problem = text.decode("utf-8", "replace")
            ExperimentError.require(not problem, f"{file} cannot be read: {problem}")
            return
        yield _with_bytes(parse_json(text, where, error=ExperimentError), [take(count) for count in lengths])


def _with_bytes(value: Any, blobs: Sequence[bytes]) -> Any:
    if isinstance(value, dict):
        return blobs[value[""]] if value.keys() == {""} else {key: _with_bytes(v, blobs) for key, v in value.items()}
    return [_with_bytes(item, blobs) for item in value] if isinstance(value, list) else value


class _Shared:
    """Makes equal strings and bytes one object; counts the size of the distinct values, and of all."""

    def __init__(self) -> None:
        self.distinct_size = self.total_size = 0
        self._values: dict[str | bytes, str | bytes] = {}

    def of(self, value: Any) -> Any:
        """The value, with shared strings and bytes."""
        if isinstance(value, dict):
            return {key: self.of(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.of(item) for item in value]
        if not isinstance(value, str | bytes):
            return value
        known = self._values.setdefault(value, value)
        self.distinct_size += len(value) if known is value else 0
        self.total_size += len(value)
        return known


def _schema(arrow: ModuleType) -> Any:
    text = arrow.string()
    columns = {
        "messages": arrow.list_(arrow.struct({"role": text, "content": text})),
        "images": arrow.list_(arrow.struct({"bytes": arrow.binary(), "path": text})),
        "game": text,
        "board": text,
        "action": arrow.int32(),
        "reward": arrow.float32(),
        "level": text,
    }
    return arrow.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})})


def _embedded(folder: Path, image: str) -> dict[str, Any]:
    return {"bytes": (folder / image).read_bytes(), "path": Path(image).name}
