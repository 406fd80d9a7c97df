"""Files and folders that a program writes: whole or not at all, and found unusable before the work, not after it."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from g1jax.errors import G1Error

ROOM = 16 * 2**20
"""Bytes that must be free for a program's files, where it does not know better."""
_DRAFT = ".writable"


def home_folder() -> Path | None:
    """The user's home; None without one, as for a user id that the system does not know."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where this gives "~"
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
    """Makes a folder, if it is not there, and refuses one in which files of these names cannot be written.

    `folders`: names of folders in it that are written too, if they are there already. `what` stands before messages:
    "the run folder ".

    Raises:
        error: why they cannot be, in one line; what was made of the folder is gone again.
    """
    missing = [path for path in (folder, *folder.parents) if not _is_there(path)]
    try:
        reason = _reason(folder, names, room)
        for name in folders:
            if not reason and os.path.lexists(folder / name):
                reason = _reason(folder / name, (), room)
    except OSError as problem:
        reason = f"{folder} cannot be written: {problem.strerror or problem}"
        if problem.filename and Path(problem.filename) != folder and not str(problem.filename).endswith(_DRAFT):
            reason += f" ({problem.filename})"
    if reason:
        for path in missing:
            with contextlib.suppress(OSError):  # it was not made, or somebody uses it already
                path.rmdir()
        raise error(f"{what}{reason}")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def _reason(folder: Path, names: Iterable[str], room: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=_DRAFT) as file:
        file.write(bytes(4096))  # a full disk takes an empty file
        file.flush()
        os.fsync(file.fileno())
    for name in names:
        path = folder / name
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            return f"{path} cannot be written: it is no file"
        if path.exists() and not os.access(path, os.W_OK):
            return f"{path} cannot be written: Permission denied"
    free = shutil.disk_usage(folder).free
    return f"{folder}: {_spell(room)} are needed there and {_spell(free)} are free" if free < room else ""


def _spell(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"


def write_atomically(path: Path, text: str) -> None:
    """All of the text or, if that fails, what was there before."""
    draft = path.with_suffix(path.suffix + ".part")
    draft.write_text(text, "utf-8")
    draft.replace(path)


def file_name(label: str) -> str:
    """A game's label as the name of a file: `swap:noisy` -> `swap-noisy`."""
    return label.replace(":", "-")
