"""Datasets as parquet, the way Hugging Face's `datasets` writes them: it finds the images by what the schema says."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from g1jax.training.config import ExperimentError

_ROWS = 256  # of a group; a reader takes a whole group into memory
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


def read(file: Path) -> Iterator[dict[str, Any]]:
    """The rows.

    Raises:
        ExperimentError: pyarrow is not installed, or the file is damaged.
    """
    arrow, parquet = require_pyarrow()
    try:
        with parquet.ParquetFile(file) as source:
            for batch in source.iter_batches(_ROWS):
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ExperimentError(f"{file} cannot be read: {' '.join(str(error).split())}") from None


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
