"""Reading parquet files that expand too far or crash the child process."""

import time
from pathlib import Path
from typing import Any

import pytest

from g1jax.sft import dataset_parquet, parquet_child
from g1jax.sft.dataset import PARQUET
from g1jax.training import ExperimentError


@pytest.mark.parametrize("kind", ["rows", "bytes", "same bytes", "types"])
def test_parquet_that_expands_too_far(kind: str, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "rows": ["swap"] * 50_000,
        "bytes": [chr(i) + " " * 10_000_000 for i in range(8)],
        "same bytes": [" " * 4_000_000] * 80,
        "types": [[[[[["swap"]]]]]],
    }
    file = tmp_path / PARQUET
    parquet.write_table(arrow.table({"game": columns[kind]}), file, compression="zstd", dictionary_pagesize_limit=2**28)
    assert file.stat().st_size < 100_000
    messages = {"rows": "50000 rows; the limit", "types": "column game does not hold strings or bytes"}
    start = time.process_time()
    with pytest.raises(ExperimentError, match=messages.get(kind, "the limit|more than")) as caught:
        list(dataset_parquet.read(file, ["game"]))
    assert str(caught.value).startswith(str(file))
    assert str(caught.value).isprintable()
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os.abort()", "row 0: the file is damaged, or takes too much memory or time to read"),
        ("bytearray(2**40)", "cannot be read: MemoryError"),
        ("sys.stdout.buffer.write(b'a' * 100)", "row 0: a row of 1633771873 bytes of text"),
        ("parquet_child.send(sys.stdout.buffer, '[' * 5000)", "row 0: line 1, byte 65 of the text: nested deeper"),
        ("parquet_child.send(sys.stdout.buffer, '{}', [b'a' * 2**25])", "row 0: images of 33554432 bytes"),
    ],
)
def test_the_end_of_the_process_that_reads_parquet_is_one_line(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit of a parquet file makes pyarrow 26 abort its process."""
    pytest.importorskip("pyarrow")
    script = tmp_path / "child.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(Path(parquet_child.__file__).parent)!r})\nimport parquet_child\n"
        f"try:\n    {body}\nexcept MemoryError:\n"
        "    parquet_child.send(sys.stdout.buffer, 'MemoryError', is_end=True)\n"
    )
    monkeypatch.setattr(parquet_child, "__file__", str(script))
    (tmp_path / PARQUET).write_bytes(b"PAR1")
    with pytest.raises(ExperimentError, match=message) as caught:
        list(dataset_parquet.read(tmp_path / PARQUET, ["game"]))
    assert str(caught.value).startswith(str(tmp_path / PARQUET))
