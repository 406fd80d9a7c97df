"""Output files and folders: written whole or not at all, and checked to be writable before the work starts."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from g1jax.errors import G1Error

ROOM = 16 * 2**20
"""Bytes that must be free by default."""
_PROBE_SUFFIX = ".writable"


def home_folder() -> Path | None:
    """The user's home; None if there is none, as for a user id unknown to the system."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where this returns "~"
    return Path(home) if Path(home).is_absolute() else None


def require_writable(
    folder: Path,
    names: Iterable[str],
    error: type[G1Error],
    *,
    folders: Iterable[str] = (),
    room: int = ROOM,
    what: str = "",
) -> None:
    """Creates a folder if needed, and checks that files of these names can be written in it.

    Args:
        folder: The folder; missing parents are created too.
        names: Names of files that will be written in it.
        error: The class of the error to raise.
        folders: Names of subfolders that must be writable if they exist.
        room: Bytes that must be free.
        what: A prefix of the message, such as "the run folder ".

    Raises:
        error: The folder or a file cannot be written; folders created here are removed again.
    """
    missing = [path for path in (folder, *folder.parents) if not _exists(path)]
    try:
        reason = _why_not_writable(folder, names, room)
        for name in folders:
            if not reason and os.path.lexists(folder / name):
                reason = _why_not_writable(folder / name, (), room)
    except OSError as problem:
        reason = f"{folder} cannot be written: {problem.strerror or problem}"
        if problem.filename and Path(problem.filename) != folder and not str(problem.filename).endswith(_PROBE_SUFFIX):
            reason += f" ({problem.filename})"
    if reason:
        for path in missing:
            with contextlib.suppress(OSError):  # not created, or already in use
                path.rmdir()
        raise error(f"{what}{reason}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def _why_not_writable(folder: Path, names: Iterable[str], room: int) -> str:
    """Creates the folder; the reason why its files cannot be written, or an empty string."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=_PROBE_SUFFIX) as file:
        file.write(bytes(4096))  # a full disk still takes an empty file
        file.flush()
        os.fsync(file.fileno())
    for name in names:
        path = folder / name
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            return f"{path} cannot be written: it is not a regular file"
        if path.exists() and not os.access(path, os.W_OK):
            return f"{path} cannot be written: Permission denied"
    free = shutil.disk_usage(folder).free
    return f"{folder}: {_format_size(room)} of disk space needed, {_format_size(free)} free" if free < room else ""


def _format_size(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"


def write_atomically(path: Path, text: str) -> None:
    """Writes all of the text; if that fails, the previous file stays."""
    draft = path.with_suffix(path.suffix + ".part")
    draft.write_text(text, "utf-8")
    draft.replace(path)


def file_name(label: str) -> str:
    """A game's label as a file name: `swap:noisy` -> `swap-noisy`."""
    return label.replace(":", "-")
