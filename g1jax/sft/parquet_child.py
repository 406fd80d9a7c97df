"""Reads a parquet file in a process of its own: a script, which `dataset_parquet` runs.

pyarrow is C++, and some damaged files end the process that reads them, or take all its memory. Here that is the end of
this process alone, which may take a gigabyte, and seconds that follow from the file's size.

    python parquet_child.py FILE COLUMNS MAX_ROWS MAX_BYTES

On standard output, for each row: the lengths of a text and of the bytes in it, the text, which is JSON with `{"": i}`
for the i-th bytes, and the bytes. Then one such message more, whose text is what went wrong, or nothing.
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

_ROWS = 16  # at a time: each may hold the largest image
_MAX_MEMORY = 2**30


def send(out: BinaryIO, text: str, blobs: Sequence[bytes] = (), is_end: bool = False) -> None:
    """A message: a row, or the end."""
    raw = text.encode()
    out.write(struct.pack(f"<III{len(blobs)}I", is_end, len(raw), len(blobs), *map(len, blobs)))
    out.writelines([raw, *blobs])


def main(file: str, columns: Sequence[str], max_rows: int, max_bytes: int) -> None:
    """Sends the rows of a file, and whether that went well."""
    out = sys.stdout.buffer
    try:
        _limit(os.path.getsize(file))  # noqa: PTH202  (a script without imports of its own)
        import pyarrow
        import pyarrow.parquet

        pyarrow.set_cpu_count(1)
        _check_and_send(out, pyarrow, file, columns, max_rows, max_bytes)
    except Exception as error:  # pyarrow raises ten kinds
        send(out, " ".join(str(error).split())[:300] or type(error).__name__, is_end=True)
    else:
        send(out, "", is_end=True)


def _limit(size: int) -> None:
    seconds = 20 + size // 2**20
    for kind, most in ((resource.RLIMIT_DATA, _MAX_MEMORY), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))


def _check_and_send(
    out: BinaryIO, arrow: ModuleType, file: str, columns: Sequence[str], max_rows: int, max_bytes: int
) -> None:
    with arrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as source:
        if source.metadata.num_rows > max_rows:
            raise ValueError(f"{source.metadata.num_rows} rows, and at most {max_rows} are read of so many bytes")
        for column in source.schema_arrow:
            if column.name in columns and not _is_plain(arrow, column.type, depth=4):
                raise ValueError(f"the column {column.name} holds no texts or bytes: {str(column.type)[:80]}")
        unpacked = _unpacked_size(source.metadata, columns)
        if unpacked > max_bytes:
            raise ValueError(f"{unpacked} bytes unpacked, and at most {max_bytes} are read of so many bytes")
        for batch in source.iter_batches(_ROWS, columns=list(columns), use_threads=False):
            for row in batch.to_pylist():
                blobs: list[bytes] = []
                text = json.dumps(_without_bytes(row, blobs))
                send(out, text, blobs)


def _unpacked_size(metadata: Any, columns: Sequence[str]) -> int:
    """Of these columns, as the file says."""
    total = 0
    for group in range(metadata.num_row_groups):
        of_group = metadata.row_group(group)
        for i in range(of_group.num_columns):
            column = of_group.column(i)
            if column.path_in_schema.split(".")[0] in columns:
                total += column.total_uncompressed_size
    return total


def _is_plain(arrow: ModuleType, kind: Any, depth: int) -> bool:
    """Whether a column's type is text, bytes, or lists and structs of them."""
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
