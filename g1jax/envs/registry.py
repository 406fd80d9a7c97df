"""`make`: a game by name, at a level made of presets and keys."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import g1jax
from g1jax.envs.core import Game
from g1jax.envs.level import make_level
from g1jax.errors import LevelError, unknown
from g1jax.foreign import name_of, read_toml

_GAMES: dict[str, type[Game[Any]]] = {}
PRESETS_VARIABLE = "G1JAX_ENVS"
"""Environment variable: the folder of `<game>.toml` preset files."""


def register(game_type: type[Game[Any]]) -> type[Game[Any]]:
    """Makes a game known by its `id`, also a user's own; a class decorator."""
    _GAMES[game_type.id] = game_type
    return game_type


def game_ids() -> list[str]:
    """The ids `make` knows."""
    return list(_GAMES)


def make(game_id: str, preset: str | None = None, **keys: Any) -> Game[Any]:
    """A game at a level: the paper's settings, then presets from left to right, then keys.

    >>> make("shisen_sho", rows=8, cols=8, colors=8)
    make('shisen_sho', rows=8, cols=8, colors=8)

    Args:
        game_id: one of `game_ids()`.
        preset: names from the game's preset file joined by `+`, such as `"base+more_tiles+noisy"`.
        **keys: level keys, see the game's Level.

    Raises:
        LevelError: an unknown game, preset or key (the near ones are named), or a level that cannot be played.
    """
    LevelError.require(game_id in _GAMES, unknown("game", game_id, _GAMES))
    level: dict[str, Any] = {}
    for name in preset.split("+") if preset else []:
        known = presets(game_id)
        LevelError.require(name in known, f"{game_id}: {unknown('preset', name, known)}")
        level.update(known[name])
    game_type = _GAMES[game_id]
    try:
        return game_type(make_level(game_type.Level, game_id, {**level, **keys}))
    except LevelError as error:
        if not level:
            raise
        raise LevelError(f"{error} (with preset {preset!r} of {name_of(_preset_file(game_id))})") from None


def presets(game_id: str) -> Mapping[str, dict[str, Any]]:
    """The named presets of a game: level keys by preset name, without their `about` lines.

    Read from `<game>.toml` in the folder that the variable G1JAX_ENVS names, else from those that ship: `envs/` of a
    clone. The working directory does not matter.

    Raises:
        LevelError: no such file, or not TOML.
    """
    file = _preset_file(game_id)
    tables = read_toml(file, error=LevelError)
    out = {}
    for name, table in tables.items():
        LevelError.require(isinstance(table, dict), f"{file}: {name} stands outside of a [preset]")
        out[name] = {key: _beside(file, key, value) for key, value in table.items() if key != "about"}
    return out


def _preset_file(game_id: str) -> Path:
    named = os.environ.get(PRESETS_VARIABLE)
    folder = Path(named) if named else _shipped()
    file = folder / f"{game_id}.toml"
    LevelError.require(
        file.is_file(),
        f"no presets for {game_id}: {file.name} is not in {folder.absolute()}. "
        f"Name the folder that has it in the variable {PRESETS_VARIABLE}, or give level keys instead.",
    )
    return file


def _shipped() -> Path:
    """The presets that ship: beside the package in a clone, inside it where it is installed (see pyproject.toml)."""
    package = Path(g1jax.__file__).parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "envs"


def _beside(file: Path, key: str, value: Any) -> Any:
    """A prompt file is named relative to the preset file that names it."""
    if key == "prompt" and isinstance(value, str) and value.startswith("@"):
        return f"@{file.parent / value[1:]}"
    return value
