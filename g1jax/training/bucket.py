"""Runs in a bucket, `--workdir=gs://bucket/folder`.

Orbax writes checkpoints to the bucket itself, each process its shards. The other files of a run are small, and need
what a bucket lacks: to be appended to and renamed. So they are written to a copy on this machine, which is uploaded
before each checkpoint becomes visible and when the run ends. What is lost with the machine is what is computed again
from the newest checkpoint.
"""

import atexit
import functools
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import fsspec
from etils import epath

from g1jax.errors import ExperimentError
from g1jax.terminal import one_line

CHECKPOINTS, DAMAGED = "checkpoints", "checkpoints_damaged"
_LINK = "checkpoints_at.txt"
"""In the copy of a run: the URL of its checkpoints."""


def is_url(path: str | Path) -> bool:
    """Whether a path is in a bucket; also as a `Path`, which makes one slash of two.

    >>> is_url("gs://bucket/run"), is_url(Path("gs://bucket/run")), is_url("runs/gs")
    (True, True, False)
    """
    return str(path).startswith("gs:/")


def at(path: str | Path) -> Path:
    """A path with the methods of `Path`, on this machine or in a bucket.

    Raises:
        ExperimentError: it is in a bucket, and gcsfs is missing.
    """
    if not is_url(path):
        return Path(path)
    has_gcsfs = importlib.util.find_spec("gcsfs") is not None
    ExperimentError.require(has_gcsfs, f"{path}: for a bucket of Google Cloud Storage run: pip install gcsfs")
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False  # other machines write there too
    return cast("Path", epath.Path("gs://" + str(path).removeprefix("gs:").lstrip("/")))


def has_file(path: Path) -> bool:
    """Whether a file exists, on this machine or in a bucket.

    Raises:
        ExperimentError: the bucket cannot be read.
    """
    if not is_url(path):
        return path.is_file()
    try:
        return path.is_file()
    except Exception as error:  # gcsfs and Google's authentication have no common class
        raise _unreadable(path, error) from error


def checkpoints_of(folder: Path) -> Path:
    """The folder of a run's checkpoints, by the run's folder or its copy."""
    link = folder / _LINK
    return at(link.read_text("utf-8").strip()) if link.is_file() else folder / CHECKPOINTS


@functools.cache
def local_copy(path: str | Path) -> Path:
    """A run's folder, to read: itself, or for a URL a copy without its checkpoints, made once in this process.

    Raises:
        ExperimentError: the bucket cannot be read.
    """
    return download(path) if is_url(path) else Path(path)


def download(url: str | Path) -> Path:
    """Copies a run, without its checkpoints, to a temporary folder of the same name, which is removed at exit.

    Raises:
        ExperimentError: the bucket cannot be read.
    """
    remote = at(url)
    parent = Path(tempfile.mkdtemp(prefix="g1jax-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    local = parent / remote.name
    local.mkdir()
    (local / _LINK).write_text(f"{remote / CHECKPOINTS}\n", "utf-8")
    try:
        for file in _files(remote):
            target = local / file.relative_to(remote)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    except Exception as error:  # see `has_file`
        raise _unreadable(remote, error) from error
    return local


def remove_copy(local: Path) -> None:
    """Removes what `download` has made. A program that ends at once runs no functions at exit."""
    shutil.rmtree(local.parent, ignore_errors=True)


class Upload:
    """Uploads the files of a run's copy that are new or have changed."""

    def __init__(self, local: Path, url: str | Path) -> None:
        """`local`: as downloaded."""
        self._local, self._remote = local, at(url)
        self._sent = dict(self._marks())

    def __call__(self) -> None:
        """Uploads, and removes what has been renamed.

        Raises:
            OSError: the bucket cannot be written; the message says where the files are.
        """
        found = dict(self._marks())
        try:
            for name, mark in found.items():
                if self._sent.get(name) != mark:
                    (self._remote / name).write_bytes((self._local / name).read_bytes())
                    self._sent[name] = mark
            for name in self._sent.keys() - found.keys():
                (self._remote / name).unlink(missing_ok=True)
                del self._sent[name]
        except Exception as error:  # see `has_file`
            kept = self._local.parent.with_name(f"{self._local.parent.name}-kept")
            shutil.copytree(self._local.parent, kept, dirs_exist_ok=True)
            raise OSError(f"{self._remote} cannot be written: {_reason(error)}. The files are in {kept}") from error

    def _marks(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The size and time of change of each file, by its name in the run's folder."""
        for file in sorted(self._local.rglob("*")):
            if file.is_file() and file.name != _LINK and not file.name.endswith(".lock"):
                status = file.stat()
                yield file.relative_to(self._local).as_posix(), (status.st_size, status.st_mtime_ns)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            yield from () if path.name in (CHECKPOINTS, DAMAGED) else _files(path)
        else:
            yield path


def _unreadable(path: Path, error: Exception) -> ExperimentError:
    return ExperimentError(f"{path} cannot be read: {_reason(error)}")


def _reason(error: Exception) -> str:
    return one_line(str(error) or type(error).__name__, 200)
