"""How a game may look otherwise: each axis of appearance from easy to hard."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from g1jax.envs import LevelError, appearance
from g1jax.envs.core import Game
from g1jax.envs.level import names_of
from g1jax.errors import unknown
from g1jax.evaluation.players import Appearance

AXES: Mapping[str, tuple[Any, ...]] = {
    "palette": appearance.PALETTES,
    "background": tuple(appearance.BACKGROUNDS),
    "noise": (0.0, 8.0, 16.0, 32.0, 64.0),
    "jitter": (0, 1, 3, 5, 7),
    "distractors": (0.0, 0.33, 0.66, 1.0),
    "cell_size": (14, 28, 56),
}
"""The level keys that change what a board looks like and not what it means, and values of each."""


@dataclass(frozen=True, eq=False)
class Variant:
    """A value of an axis, for one game."""

    axis: str
    value: Any
    is_own: bool
    """It is the game's own value; there is nothing to change."""
    looks: Appearance | None = None
    why_not: str = ""
    """Why the game cannot be shown so."""


def check_axes(axes: Sequence[str]) -> None:
    """Raises LevelError for an axis that is none."""
    for axis in axes:
        if axis not in AXES:
            raise LevelError(unknown("looks axis", axis, AXES))


def variants_along(game: Game[Any], axis: str) -> list[Variant]:
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
        found.append(Variant(axis, value, is_own, None if is_own else Appearance(shown, {axis: traced[axis]})))
    return found


def _shows_palettes(game: Game[Any]) -> bool:
    background = names_of(game.level.background)[0]
    tiles = [game.draw_tiles(palette, background) for palette in appearance.PALETTES]
    return any(not np.array_equal(tiles[0], other) for other in tiles[1:])


def _sized(game: Game[Any], size: int) -> Variant:
    if size == game.level.cell_size:
        return Variant("cell_size", size, True)
    try:
        shown = type(game)(dataclasses.replace(game.level, cell_size=size))
    except LevelError as error:
        return Variant("cell_size", size, False, why_not=str(error))
    return Variant("cell_size", size, False, Appearance(shown, {}))
