"""`make`: a game by id, at a level from presets and keys; `info`: what there is to choose from."""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import g1jax
from g1jax.envs.core import Game
from g1jax.envs.level import base_id_of, keys_of, make_level
from g1jax.errors import LevelError, unknown
from g1jax.untrusted import name_of, read_toml

T = TypeVar("T")
_GAMES: dict[str, type[Game[Any]]] = {}
_EXTENSIONS: list[Callable[[], None]] = []
PRESETS_VARIABLE = "G1JAX_ENVS"
"""Environment variable: the folder of `<game>.toml` preset files."""


def register(game_type: type[Game[Any]]) -> type[Game[Any]]:
    """Class decorator: registers a game, built-in or a user's own, by its `id`."""
    _GAMES[game_type.id] = game_type
    return game_type


def extend(find: Callable[[], None]) -> Callable[[], None]:
    """Decorator: a function that registers further games, called once, when the ids are first needed."""
    _EXTENSIONS.append(find)
    return find


def game_ids() -> list[str]:
    """The registered ids, with those of installed packages."""
    while _EXTENSIONS:
        _EXTENSIONS.pop()()
    return list(_GAMES)


@dataclass(frozen=True)
class GameInfo:
    """A game at the paper's level, or its own default, and its presets."""

    id: str
    about: str
    """The first line of the game's docstring."""
    rows: int
    cols: int
    num_actions: int
    presets: Mapping[str, str]
    """What each preset is about, by name; empty without a file of presets."""


def info(game_id: str) -> GameInfo:
    """What there is to know about a game before it is made.

    >>> info("swap").num_actions
    4096

    Raises:
        LevelError: the game is unknown, or its presets are damaged.
    """
    game = make(game_id)
    tables = _preset_tables(game_id) if _preset_path(game_id).is_file() else {}
    abouts = {name: str(table.get("about", "")) for name, table in tables.items()}
    first, *_ = (type(game).__doc__ or "").strip().splitlines() or [""]
    return GameInfo(game_id, first, game.rows, game.cols, game.num_actions, abouts)


def make(game_id: str, preset: str | None = None, **keys: Any) -> Game[Any]:
    """A game at a level: the paper's settings, updated by presets from left to right, then by keys.

    >>> make("shisen_sho", rows=8, cols=8, colors=8)
    make('shisen_sho', rows=8, cols=8, colors=8)

    Args:
        game_id: one of `game_ids()`. Or `id:preset`: that level under a name of its own, so that one run can train on
            several levels of a game.
        preset: names from the game's preset file joined by `+`, such as `"base+more_tiles+noisy"`.
        **keys: level keys, see the game's Level.

    Raises:
        LevelError: a game, preset or key is unknown (the message has similar ones), or the level cannot be played.
    """
    own_id, _, own_preset = game_id.partition(":")
    preset = "+".join(filter(None, [own_preset, preset]))
    _type_of(game_id)
    level: dict[str, Any] = {}
    for name in preset.split("+") if preset else []:
        known = presets(own_id)
        LevelError.require(name in known, f"{own_id}: {unknown('preset', name, known)}")
        level.update(known[name])
    try:
        return make_plain(game_id, {**level, **keys})
    except LevelError as error:
        if not level:
            raise
        raise LevelError(f"{error} (with preset {preset!r} of {name_of(_preset_file(own_id))})") from None


def make_plain(game_id: str, keys: Mapping[str, Any]) -> Game[Any]:
    """A game at the level of these keys alone: the preset in `id:preset` is only a part of its name.

    Raises:
        LevelError: the game is unknown, or the level cannot be played.
    """
    game_type = _type_of(game_id)
    return game_type(make_level(game_type.Level, game_id, keys))


def setting_of(table: Mapping[str, T], game_id: str, default: T) -> T:
    """A game's entry in a table by id; for `id:preset` without one that of `id`."""
    return table.get(game_id, table.get(base_id_of(game_id), default))


def _type_of(game_id: str) -> type[Game[Any]]:
    own_id = base_id_of(game_id)
    LevelError.require(own_id in _GAMES or own_id in game_ids(), unknown("game", own_id, _GAMES))
    game_type: Any = _GAMES[own_id]
    return game_type if game_id == own_id else _named(game_type, game_id)


@functools.cache
def _named(game_type: Any, game_id: str) -> type[Game[Any]]:
    """The same game, a class, under another id, `id:preset`."""

    def reduce(self: Game[Any]) -> tuple[Any, ...]:  # pickle finds no class by its module and name
        return make_plain, (self.id, keys_of(self.level))

    members = {"id": game_id, "__doc__": game_type.__doc__, "__reduce__": reduce}
    return type(game_type.__name__, (game_type,), members)


def presets(game_id: str) -> Mapping[str, dict[str, Any]]:
    """The named presets of a game: level keys by preset name, without their `about` lines.

    Read from `<game>.toml` in the folder named by the variable G1JAX_ENVS, else in the folder that ships (`envs/` of a
    clone), independent of the working directory.

    Raises:
        LevelError: the file does not exist or is not TOML.
    """
    tables = _preset_tables(game_id)
    return {name: {key: value for key, value in table.items() if key != "about"} for name, table in tables.items()}


def _preset_tables(game_id: str) -> Mapping[str, dict[str, Any]]:
    file = _preset_file(game_id)
    tables = read_toml(file, error=LevelError)
    for name, table in tables.items():
        LevelError.require(isinstance(table, dict), f"{file}: {name} is outside of a [preset] table")
    return tables


def _preset_path(game_id: str) -> Path:
    named = os.environ.get(PRESETS_VARIABLE)
    return (Path(named) if named else _shipped()) / f"{game_id}.toml"


def _preset_file(game_id: str) -> Path:
    file = _preset_path(game_id)
    LevelError.require(
        file.is_file(),
        f"no presets for {game_id}: {file.name} is not in {file.parent.absolute()}. "
        f"Set the variable {PRESETS_VARIABLE} to the folder that has it, or give level keys instead.",
    )
    return file


def _shipped() -> Path:
    """The folder of presets that ships: next to the package in a clone, inside it if installed (see pyproject.toml)."""
    package = Path(g1jax.__file__).parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "envs"
