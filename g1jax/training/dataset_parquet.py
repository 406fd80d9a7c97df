"""Datasets as parquet, the way Hugging Face's `datasets` writes them: it finds the images by what the schema says."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from g1jax.training.config import ExperimentError, require

_ROWS = 256  # of a group; a reader takes a whole group into memory
_ROWS_READ = 2  # at a time: each may hold the largest text of the file
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
"""The columns, as `datasets` names their kinds; lists in the older of its two ways, which all its versions read."""


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
    """All rows, or what was there before. `records` name their images relative to the file's folder."""
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
    """The rows, with these columns, which are texts and bytes in lists and structs.

    A parquet file may be a millionth of what it holds, so what is read of it is bounded by its own size. Equal bytes of
    different rows are one object, as in the file.

    Raises:
        ExperimentError: pyarrow is not installed, or the file is damaged, holds something else or expands too far.
    """
    arrow, parquet = require_pyarrow()
    size = file.stat().st_size
    most_rows, most_bytes = 10_000 + size // 32, 2**26 + 16 * size
    shared = _Shared()
    try:
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as source:
            require(
                source.metadata.num_rows <= most_rows,
                f"{file}: {source.metadata.num_rows} rows in {size} bytes: at most {most_rows} are read",
            )
            for column in source.schema_arrow:
                is_known = column.name not in columns or _is_plain(arrow, column.type, depth=4)
                require(is_known, f"{file}: the column {column.name} holds no texts or bytes: {str(column.type)[:80]}")
            unpacked = sum(_unpacked_sizes(source.metadata, columns))
            require(unpacked <= most_bytes, f"{file}: {unpacked} bytes in {size}, and at most {most_bytes} are read")
            for batch in source.iter_batches(_ROWS_READ, columns=list(columns), use_threads=False):
                for i in range(len(batch)):
                    yield shared.of(batch.slice(i, 1).to_pylist()[0])
                    is_bounded = shared.size <= most_bytes and shared.seen <= 4 * most_bytes
                    require(is_bounded, f"{file}: more than {most_bytes} bytes in {size}")
    except (arrow.ArrowException, OSError, ValueError, RecursionError) as error:
        if isinstance(error, ExperimentError):
            raise
        raise ExperimentError(f"{file} cannot be read: {' '.join(str(error).split())[:300]}") from None


def _unpacked_sizes(metadata: Any, columns: Sequence[str]) -> Iterator[int]:
    """Of each part of these columns, as the file has it."""
    for group in range(metadata.num_row_groups):
        of_group = metadata.row_group(group)
        for i in range(of_group.num_columns):
            column = of_group.column(i)
            if column.path_in_schema.split(".")[0] in columns:
                yield column.total_uncompressed_size


class _Shared:
    """Equal texts and equal bytes as one object; the size of the different ones, and of all that was seen."""

    def __init__(self) -> None:
        self.size = self.seen = 0
        self._values: dict[str | bytes, str | bytes] = {}

    def of(self, value: Any) -> Any:
        """A value whose texts and bytes are shared."""
        if isinstance(value, dict):
            return {key: self.of(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.of(item) for item in value]
        if not isinstance(value, str | bytes):
            return value
        known = self._values.setdefault(value, value)
        self.size += len(value) if known is value else 0
        self.seen += len(value)
        return known


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
