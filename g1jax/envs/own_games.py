"""A user's own games: modules and files that register them, and the entry points of installed packages."""

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from g1jax.envs.core import Game
from g1jax.envs.registry import extend, register
from g1jax.errors import LevelError
from g1jax.terminal import notice, one_line

GROUP = "g1jax.games"
"""The group of entry points that are modules or classes of games; loaded when the ids of games are first needed."""


def import_games(names: Iterable[str]) -> None:
    """Imports modules (`my_games`, `my.games`) and files (`path/to/my_games.py`) that register games.

    A file is imported once, whatever its path is written as. A module must be importable, such as an installed one:
    the working directory is not searched.

    Raises:
        LevelError: there is no such module or file, or importing it fails; the message has the line.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name).resolve())
            else:
                importlib.import_module(name)
        except Exception as error:  # the module may raise anything
            is_absent = isinstance(error, ModuleNotFoundError) and error.name == name
            hint = f"; for a file give its path: --import={name}.py" if is_absent else ""
            raise LevelError(f"--import={name}: {type(error).__name__}: {one_line(str(error))}{hint}") from error


def _import_file(path: Path) -> None:
    if any(getattr(module, "__file__", None) == str(path) for module in list(sys.modules.values())):
        return
    name = f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # hides no other module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


@extend
def import_entry_points() -> None:
    """Imports the games of installed packages. One that fails is a notice, since others do not need it."""
    for point in metadata.entry_points(group=GROUP):
        try:
            found = point.load()
        except Exception as error:  # it may raise anything
            notice(f"the games of {point.value} cannot be used: {type(error).__name__}: {error}")
            continue
        if isinstance(found, type) and issubclass(found, Game):
            register(found)
