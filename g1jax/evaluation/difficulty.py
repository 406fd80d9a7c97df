"""Tests that a run was not trained on: each looks-axis from easy to hard, and other presets and games."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from g1jax import envs
from g1jax.envs import LevelError, looks
from g1jax.envs.core import Game
from g1jax.envs.level import names_of, require, unknown
from g1jax.evaluation.players import Looks
from g1jax.training.config import Experiment

AXES: Mapping[str, tuple[Any, ...]] = {
    "palette": looks.PALETTES,
    "background": tuple(looks.BACKGROUNDS),
    "noise": (0.0, 8.0, 16.0, 32.0, 64.0),
    "jitter": (0, 1, 3, 5, 7),
    "distractors": (0.0, 0.33, 0.66, 1.0),
    "cell_size": (14, 28, 56),
}
"""The level keys that change what a board looks like and not what it means, and values of each."""


@dataclass(frozen=True, eq=False)
class Look:
    """A value of an axis, for one game."""

    axis: str
    value: Any
    is_own: bool
    """It is the game's own value; there is nothing to change."""
    looks: Looks | None = None
    why_not: str = ""
    """Why the game cannot be shown so."""


def check_axes(axes: Sequence[str]) -> None:
    """Raises LevelError for an axis that is none."""
    for axis in axes:
        if axis not in AXES:
            raise LevelError(unknown("looks axis", axis, AXES))


def looks_along(game: Game[Any], axis: str) -> list[Look]:
    """A game along an axis, all else its own; empty if the axis changes nothing, such as the palette of photographs."""
    own = getattr(game.level, axis)
    if axis == "palette" and not _shows_palettes(game):
        return []
    if axis == "cell_size":
        return [_sized(game, size) for size in sorted({*AXES[axis], own})]
    values = list(AXES[axis])
    if axis == "jitter":
        values = [value for value in values if value <= game.level.cell_size // 4]
    if not isinstance(own, str | tuple):
        values = sorted({*values, own})
    opened = tuple(values) if isinstance(values[0], str) else max(values)
    shown = type(game)(dataclasses.replace(game.level, **{axis: opened}))
    found = []
    for value in values:
        traced = shown.traced_level(**{axis: value})
        is_own = names_of(own) == (value,) if isinstance(value, str) else value == own
        found.append(Look(axis, value, is_own, None if is_own else Looks(shown, {axis: traced[axis]})))
    return found


def _shows_palettes(game: Game[Any]) -> bool:
    background = names_of(game.level.background)[0]
    tiles = [game.draw_tiles(palette, background) for palette in looks.PALETTES]
    return any(not np.array_equal(tiles[0], other) for other in tiles[1:])


def _sized(game: Game[Any], size: int) -> Look:
    if size == game.level.cell_size:
        return Look("cell_size", size, True)
    try:
        shown = type(game)(dataclasses.replace(game.level, cell_size=size))
    except LevelError as error:
        return Look("cell_size", size, False, why_not=str(error))
    return Look("cell_size", size, False, Looks(shown, {}))


# Other presets and games


@dataclass(frozen=True)
class Trial:
    """A game, at presets joined by `+` or at none."""

    label: str
    game_id: str
    preset: str


def trials_of(names: Sequence[str], learnt: Sequence[str]) -> list[Trial]:
    """What to test on: `swap`, `swap:noisy`, `all`, or `noisy` for each of the `learnt` games that has the preset.

    Raises:
        LevelError: there is no such game or preset.
    """
    trials: list[Trial] = []
    for name in names:
        game_id, colon, preset = name.partition(":")
        if colon or game_id in envs.game_ids():
            trials.append(Trial(name, game_id, preset))
            envs.make(game_id, preset or None)
        elif name == "all":
            trials += [Trial(game_id, game_id, "") for game_id in envs.game_ids()]
        else:
            trials += _of_preset(name, learnt)
    return list(dict.fromkeys(trials))


def _of_preset(preset: str, learnt: Sequence[str]) -> list[Trial]:
    known = {game_id: envs.presets(game_id) for game_id in learnt}
    having = [game_id for game_id in learnt if all(name in known[game_id] for name in preset.split("+"))]
    if not having:
        there = dict.fromkeys(name for presets in known.values() for name in presets)
        raise LevelError(unknown("preset or game", preset, [*there, *envs.game_ids()]))
    return [Trial(f"{game_id}:{preset}", game_id, preset) for game_id in having]


def game_of(trial: Trial, own: Experiment, others: Sequence[Experiment] = ()) -> Game[Any]:
    """A trial for a run: the level keys it has for the game, without the preset it was trained on, then the trial's.

    For a game that it did not learn, the keys are those of the first of the other runs that did, so that it is asked
    in the same words; else there are none.

    Raises:
        LevelError: the level cannot be played.
    """
    require(trial.game_id in envs.game_ids(), unknown("game", trial.game_id, envs.game_ids()))
    experiments = [e for e in (own, *others) if trial.game_id in e.games]
    keys = dict(experiments[0].levels.get(trial.game_id, {})) if experiments else {}
    known = envs.presets(trial.game_id) if trial.preset else {}
    for name in trial.preset.split("+") if trial.preset else []:
        require(name in known, f"{trial.game_id}: {unknown('preset', name, known)}")
        keys |= known[name]
    return envs.make(trial.game_id, **keys)


def kinship(game: Game[Any], learnt: Sequence[Game[Any]]) -> str:
    """How a test stands to what a run learnt: `learnt`, `other level` or `other game`."""
    if game in learnt:
        return "learnt"
    return "other level" if game.id in [known.id for known in learnt] else "other game"
