"""Writes a dataset row by row; an interrupted program resumes where it stopped."""

import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from PIL import Image

from g1jax.endpoint.exchanges import Journal, check_setting
from g1jax.errors import ExperimentError
from g1jax.files import require_writable, write_atomically
from g1jax.sft import dataset_parquet
from g1jax.sft.dataset import IMAGES, JSONL, PARQUET, Example, Record
from g1jax.untrusted import UntrustedError, read_json

Form = Literal["jsonl", "parquet"]
ABOUT, LLAMA_FACTORY, JOURNAL = "about.json", "dataset_info.json", "rows.jsonl.part"
METADATA = "metadata.jsonl"
"""The rows as the `imagefolder` of Hugging Face's `datasets` reads them, which resolves the names of the images."""
NAME = "g1jax"
"""The dataset's name in LLaMA-Factory, with the folder as `dataset_dir`."""


class DatasetWriter:
    """The files of one dataset. `data.jsonl` or `data.parquet` exists once the dataset is complete."""

    def __init__(self, folder: Path, form: Form, setting: dict[str, Any]) -> None:
        """Starts or resumes a dataset. `setting` is everything that determines the rows.

        Raises:
            ExperimentError: pyarrow is needed and not installed, or the folder cannot be written.
            EvaluationError: the folder has a dataset with another setting, or another process is writing to it.
        """
        if form == "parquet":
            dataset_parquet.require_pyarrow()
        setting = {**setting, "format": form}
        self.folder, self._form, self._setting = folder, form, setting
        self.is_done = any((folder / name).exists() for name in (JSONL, PARQUET))
        self._records: list[Record] = []
        self._counts: dict[str, int] = {}
        self._journal: Journal | None = None
        if self.is_done:
            check_setting(folder / ABOUT, _about(folder), setting)
            return
        require_writable(folder, (JSONL, PARQUET, ABOUT, LLAMA_FACTORY, METADATA, JOURNAL), ExperimentError)
        self._journal = Journal(folder / JOURNAL, setting)
        self._known = self._journal.lines
        (folder / IMAGES).mkdir(exist_ok=True)

    @property
    def file(self) -> Path:
        """The file of the complete dataset."""
        return self.folder / (JSONL if self._form == "jsonl" else PARQUET)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.__exit__(kind, error, trace)

    def add(self, row: Example) -> None:
        """Writes the next row, unless it was written before.

        Raises:
            ExperimentError: the row written before is a different one.
        """
        assert self._journal is not None
        number = self._counts[row.game] = self._counts.get(row.game, -1) + 1
        record = row.record(f"{IMAGES}/{row.game}_{number:06d}.png")
        self._records.append(record)
        if len(self._records) <= len(self._known):
            known = self._known[len(self._records) - 1]
            ExperimentError.require(
                known == record,
                f"{self._journal.path}: row {len(self._records)} differs from the one generated now: another version "
                "of the game or the teacher wrote it; use another --out",
            )
            return
        Image.fromarray(row.frame).save(self.folder / record["images"][0])
        self._journal.append(record)

    def finish(self) -> Path:
        """Writes the dataset from the rows; returns its file."""
        ExperimentError.require(len(self._records) > 0, f"{self.folder}: there are no rows to write")
        write_atomically(self.folder / ABOUT, json.dumps(self._setting, indent=1) + "\n")
        file = self.file
        write_atomically(self.folder / LLAMA_FACTORY, json.dumps(llama_factory(file.name), indent=1) + "\n")
        if self._form == "jsonl":
            write_atomically(self.folder / METADATA, "".join(map(_image_folder_line, self._records)))
            write_atomically(file, "".join(json.dumps(record) + "\n" for record in self._records))
        else:
            dataset_parquet.write(file, self._records)
            for record in self._records:
                (self.folder / record["images"][0]).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: it has files of others
                (self.folder / IMAGES).rmdir()
        (self.folder / JOURNAL).unlink()
        self.is_done = True
        return file


def llama_factory(file_name: str) -> dict[str, Any]:
    """The description of the rows for LLaMA-Factory."""
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images"}
    return {NAME: {"file_name": file_name, "formatting": "sharegpt", "columns": columns, "tags": tags}}


def _image_folder_line(record: Record) -> str:
    """A row whose images `datasets` loads into a column `images`."""
    return (
        json.dumps({("images_file_names" if key == "images" else key): value for key, value in record.items()}) + "\n"
    )


def _about(folder: Path) -> dict[str, Any]:
    message = f"{folder} holds a dataset that this program did not make: use another --out"
    try:
        about = read_json(folder / ABOUT)
    except UntrustedError as error:
        raise ExperimentError(f"{message} ({error})") from None
    ExperimentError.require(isinstance(about, dict), message)
    return dict(about)
