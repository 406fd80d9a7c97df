"""Reads a parquet file in a process of its own: the script that `dataset_parquet` runs.

pyarrow is C++, and some damaged files crash the process that reads them, or exhaust its memory. This process is limited
to a gigabyte of memory, and to seconds in proportion to the file's size.

    python parquet_child.py FILE COLUMNS MAX_ROWS MAX_BYTES

Standard output has one message per row: the lengths of a text and of its blobs, the text, which is JSON with `{"": i}`
in place of the i-th blob, and the blobs. The end message's text is the error, or empty.
"""

import contextlib
import json
import os
import resource
import struct
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, BinaryIO

_ROWS = 16  # per batch: each may hold an image of the largest size
_MAX_MEMORY = 2**30


def send(out: BinaryIO, text: str, blobs: Sequence[bytes] = (), is_end: bool = False) -> None:
    """Sends a message: a row, or the end."""
    raw = text.encode()
    out.write(struct.pack(f"<III{len(blobs)}I", is_end, len(raw), len(blobs), *map(len, blobs)))
    out.writelines([raw, *blobs])


def main(file: str, columns: Sequence[str], max_rows: int, max_bytes: int) -> None:
    """Sends the rows of a file, then the end message."""
    out = sys.stdout.buffer
    try:
        _limit_resources(os.path.getsize(file))  # noqa: PTH202
        import pyarrow
        import pyarrow.parquet

        pyarrow.set_cpu_count(1)
        _check_and_send(out, pyarrow, file, columns, max_rows, max_bytes)
    except Exception as error:  # pyarrow raises ten kinds
        send(out, " ".join(str(error).split())[:300] or type(error).__name__, is_end=True)
    else:
        send(out, "", is_end=True)


def _limit_resources(size: int) -> None:
    seconds = 20 + size // 2**20
    for kind, limit in ((resource.RLIMIT_DATA, _MAX_MEMORY), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (limit, limit))


def _check_and_send(
    out: BinaryIO, arrow: ModuleType, file: str, columns: Sequence[str], max_rows: int, max_bytes: int
) -> None:
    with arrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as source:
        if source.metadata.num_rows > max_rows:
            raise ValueError(f"{source.metadata.num_rows} rows; the limit for a file of this size is {max_rows}")
        for column in source.schema_arrow:
            if column.name in columns and not _is_plain(arrow, column.type, depth=4):
                raise ValueError(f"column {column.name} does not hold strings or bytes: {str(column.type)[:80]}")
        unpacked = _unpacked_size(source.metadata, columns)
        if unpacked > max_bytes:
            raise ValueError(f"{unpacked} bytes unpacked; the limit for a file of this size is {max_bytes}")
        for batch in source.iter_batches(_ROWS, columns=list(columns), use_threads=False):
            for row in batch.to_pylist():
                blobs: list[bytes] = []
                text = json.dumps(_without_bytes(row, blobs))
                send(out, text, blobs)


def _unpacked_size(metadata: Any, columns: Sequence[str]) -> int:
    """Bytes of these columns, as declared by the file."""
    total = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for i in range(row_group.num_columns):
            column = row_group.column(i)
            if column.path_in_schema.split(".")[0] in columns:
                total += column.total_uncompressed_size
    return total


def _is_plain(arrow: ModuleType, kind: Any, depth: int) -> bool:
    """Whether a column's type is string, bytes, or lists and structs of them."""
    types = arrow.types
    if types.is_dictionary(kind):
        return _is_plain(arrow, kind.value_type, 0)
    if any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)):
        return True
    if depth == 0:
        return False
    if types.is_struct(kind):
        return all(_is_plain(arrow, kind.field(i).type, depth - 1) for i in range(kind.num_fields))
    is_list = types.is_list(kind) or types.is_large_list(kind)
    return is_list and _is_plain(arrow, kind.value_type, depth - 1)


def _without_bytes(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, dict):
        return {key: _without_bytes(item, blobs) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_bytes(item, blobs) for item in value]
    if isinstance(value, bytes):
        blobs.append(value)
        return {"": len(blobs) - 1}
    return value


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
