"""Variants of a game's appearance, along one axis at a time, from easy to hard."""

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
"""The level keys that change only the appearance of a board, with values of each."""


@dataclass(frozen=True, eq=False)
class Variant:
    """One game at one value of an axis."""

    axis: str
    value: Any
    is_own: bool
    """Whether this is the game's own value."""
    appearance: Appearance | None = None
    """None for the game's own value, or where it cannot be rendered."""
    why_not: str = ""
    """Why the game cannot be rendered at this value."""


def check_axes(axes: Sequence[str]) -> None:
    """Raises LevelError for an unknown axis."""
    for axis in axes:
        LevelError.require(axis in AXES, unknown("looks axis", axis, AXES))


def variants_along(game: Game[Any], axis: str) -> list[Variant]:
    """A game's variants along one axis; empty if the axis changes nothing, such as the palette of photographs."""
    own = getattr(game.level.appearance, axis)
    if axis == "palette" and not _depends_on_palette(game):
        return []
    if axis == "cell_size":
        return [_at_cell_size(game, size) for size in sorted({*AXES[axis], own})]
    values = list(AXES[axis])
    if axis == "jitter":
        values = [value for value in values if value <= game.level.appearance.cell_size // 4]
    if not isinstance(own, str | tuple):
        values = sorted({*values, own})
    widest = tuple(values) if isinstance(values[0], str) else max(values)  # admits all values as traced keys
    shown = game.with_keys(**{axis: widest})
    variants = []
    for value in values:
        traced = getattr(shown.traced_level(**{axis: value}).appearance, axis)
        is_own = names_of(own) == (value,) if isinstance(value, str) else value == own
        variants.append(Variant(axis, value, is_own, None if is_own else Appearance(shown, {axis: traced})))
    return variants


def _depends_on_palette(game: Game[Any]) -> bool:
    background = names_of(game.level.appearance.background)[0]
    tiles = [game.draw_tiles(palette, background) for palette in appearance.PALETTES]
    return any(not np.array_equal(tiles[0], other) for other in tiles[1:])


def _at_cell_size(game: Game[Any], size: int) -> Variant:
    if size == game.level.appearance.cell_size:
        return Variant("cell_size", size, True)
    try:
        shown = game.with_keys(cell_size=size)
    except LevelError as error:
        return Variant("cell_size", size, False, why_not=str(error))
    return Variant("cell_size", size, False, Appearance(shown, {}))
