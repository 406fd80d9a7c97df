"""Level: a game's difficulty as data. Frozen, validated keys along two axes, rules and appearance.

A key is *static* if it sets a shape or a table (rows, cell size); changing it recompiles. Otherwise it is *traced*
(spawn probability, noise): its value is part of the state, may differ between the environments of a batch, and changing
it does not recompile. `Game.traced_level(...)` makes the traced values, `Game.reset(key, level)` takes them.

A `Level` holds a game's rules and an `Appearance`, a `TracedLevel` the traced part of both. Where users write keys
(`make`, presets, JSON), they are one flat table: `make_level` splits it, `keys_of` joins it.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
from jaxtyping import Float32, Int32

from g1jax.envs import appearance
from g1jax.errors import LevelError, unknown
from g1jax.settings import show
from g1jax.typing import Array

MOST_PIXELS = 30 * 512
"""The largest side of a frame."""
_MAX_PIXELS = 2**24  # of a frame: 4096 × 4096
TracedRule = Literal["free", "at_most", "if_on", "choice"]
"""The values a traced key may take, given the value the game was made with.

`free`: any valid value. `at_most`: up to the game's own, which sized its tables. `if_on`: any valid value if the game's
own is not zero (otherwise the effect is compiled out). `choice`: one of the game's own names, or "any" to draw one per
episode.
"""


def traced(default: Any, rule: TracedRule = "free") -> Any:
    """A level key whose value does not change shapes, so that a curriculum can change it without recompiling."""
    return field(default=default, metadata={"traced": rule})


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """Keys whose types are checked.

    Raises:
        LevelError: a value has the wrong type, or the level cannot be played.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, list):
                value = tuple(value)
            if any(abs(number) >= 2**53 for number in _integers(value)):  # float64 has no more
                raise LevelError(f"{f.name}={show(value)}: too large")
            if hints[f.name] is float and type(value) is int:
                value = float(value)
            if not _has_type(value, hints[f.name]):
                raise LevelError(
                    f"{f.name}={show(value)}: expected {_spell(hints[f.name])}, not {type(value).__name__}"
                )
            object.__setattr__(self, f.name, value)
        self.check()

    def check(self) -> None:
        """Rejects levels that cannot be played. A subclass calls `super().check()` first."""


@dataclass(frozen=True, kw_only=True)
class Appearance(_Keys):
    """How a board is drawn; the rules do not depend on it."""

    cell_size: int = 28
    """Side of a cell in pixels; 28 makes one cell one visual token."""
    frame_size: tuple[int, int] | None = None
    """(height, width) of the frame in pixels, with the board in the center. None: the board alone."""
    palette: str | tuple[str, ...] = traced("classic", "choice")
    """Tile colors: a name in `appearance.PALETTES`, or several, of which each episode draws one."""
    background: str | tuple[str, ...] = traced("light", "choice")
    """Colors behind the tiles: a name in `appearance.BACKGROUNDS`, or several, of which each episode draws one."""
    noise: float = traced(0.0, "if_on")
    """Standard deviation of the pixel noise, in gray levels (0 to 255). The noise changes with the board."""
    jitter: int = traced(0, "at_most")
    """Maximum offset of a tile from the center of its cell, in pixels along each axis."""
    distractors: float = traced(0.0, "if_on")
    """Probability that a cell has a small gray mark without meaning."""

    def check(self) -> None:
        """Rejects names that do not exist and numbers out of range."""
        LevelError.require(4 <= self.cell_size <= 512, f"cell_size={self.cell_size}: a cell has 4 to 512 pixels a side")
        LevelError.require(
            self.frame_size is None or max(self.frame_size) <= MOST_PIXELS,
            f"frame_size={self.frame_size}: at most {MOST_PIXELS} pixels a side",
        )
        for key, known in (("palette", appearance.PALETTES), ("background", appearance.BACKGROUNDS)):
            for name in names_of(getattr(self, key)):
                LevelError.require(name in known, unknown(key, name, known))
            LevelError.require(len(names_of(getattr(self, key))) > 0, f"{key}: name at least one of {', '.join(known)}")
        LevelError.require(0 <= self.noise <= 255, f"noise={self.noise}: a standard deviation in gray levels, 0 to 255")
        LevelError.require(
            0 <= self.jitter <= self.cell_size // 4,
            f"jitter={self.jitter}: 0 to a quarter of a cell, {self.cell_size // 4} pixels",
        )
        LevelError.require(0 <= self.distractors <= 1, f"distractors={self.distractors}: a probability, 0 to 1")

    def frame_shape(self, rows: int, cols: int) -> tuple[int, int]:
        """(height, width) of the frame of a board, in pixels."""
        return self.frame_size or (rows * self.cell_size, cols * self.cell_size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TracedAppearance:
    """The traced keys of an Appearance. Names are indices into the game's own; -1 draws one per episode."""

    palette: Int32[Array, "*B"]
    background: Int32[Array, "*B"]
    noise: Float32[Array, "*B"]
    jitter: Int32[Array, "*B"]
    distractors: Float32[Array, "*B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TracedLevel:
    """The traced part of a Level. A game's own adds the traced keys of its rules: float32[] or int32[] each."""

    appearance: TracedAppearance


@dataclass(frozen=True, kw_only=True)
class Level(_Keys):
    """A board and its appearance. A game's own Level adds its rules and extends `check`."""

    traced_type: ClassVar[type[TracedLevel]] = TracedLevel
    """Has a field for each traced key of the rules."""
    rows: int = 4
    cols: int = 4
    start_moves: int = 0
    """Random moves before an episode starts, of any actions, legal or not; a game that ends on the way is reset."""
    appearance: Appearance = field(default_factory=Appearance)

    def check(self) -> None:
        """Rejects levels that cannot be played. A subclass calls `super().check()` first."""
        LevelError.require(1 <= self.rows <= 30, f"rows={self.rows}: a board has 1 to 30 rows")
        LevelError.require(1 <= self.cols <= 30, f"cols={self.cols}: a board has 1 to 30 columns")
        LevelError.require(0 <= self.start_moves <= 10_000, f"start_moves={self.start_moves}: 0 to 10000")
        board = (self.rows * self.appearance.cell_size, self.cols * self.appearance.cell_size)
        height, width = self.appearance.frame_shape(self.rows, self.cols)
        LevelError.require(
            height >= board[0] and width >= board[1],
            f"frame_size={(height, width)}: the board alone is {board[0]}×{board[1]} pixels; "
            "make the frame larger or cell_size smaller",
        )
        LevelError.require(
            height * width <= _MAX_PIXELS,
            f"a frame of {height}×{width} pixels exceeds the limit of {_MAX_PIXELS}: "
            "make frame_size, cell_size or the board smaller",
        )


def names_of(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """The names in the value of a `choice` key."""
    return (value,) if isinstance(value, str) else value


def make_level(level_type: type[Level], game_id: str, keys: Mapping[str, Any]) -> Level:
    """A game's level from the keys of its rules and its appearance.

    Raises:
        LevelError: a key does not exist (the message has similar ones), or the level cannot be played.
    """
    shown = [f.name for f in dataclasses.fields(Appearance)]
    known = [*(f.name for f in dataclasses.fields(level_type) if f.name != "appearance"), *shown]
    for key in keys:
        LevelError.require(key != "prompt", f"{game_id}: prompt is not a level key: the player has it (see `prompts`)")
        LevelError.require(key in known, unknown("level key", key, known))
    try:
        look = Appearance(**{key: keys[key] for key in keys if key in shown})
        return level_type(appearance=look, **{key: keys[key] for key in keys if key not in shown})
    except LevelError as error:
        raise LevelError(f"{game_id}: {error}") from None


def base_id_of(game_id: str) -> str:
    """The id of a game's rules: `swap` for `swap:tiny`, a level under a name of its own.

    >>> base_id_of("swap:tiny")
    'swap'
    """
    return game_id.partition(":")[0]


def keys_of(level: Level) -> dict[str, Any]:
    """The keys of a level and of its appearance in one table, as `make_level` takes them."""
    keys = dataclasses.asdict(level)
    look = keys.pop("appearance")
    return {**keys, **look}


def traced_keys(level: Level) -> dict[str, TracedRule]:
    """The traced keys of a level and of its appearance, and their rules."""
    keys = (*dataclasses.fields(level.appearance), *dataclasses.fields(level))
    return {f.name: f.metadata["traced"] for f in keys if "traced" in f.metadata}


def make_traced(level: Level, values: Mapping[str, Array]) -> TracedLevel:
    """The traced part of a level from the values of all its traced keys."""
    drawn = {f.name for f in dataclasses.fields(TracedAppearance)}
    look = TracedAppearance(**{key: value for key, value in values.items() if key in drawn})
    return level.traced_type(appearance=look, **{key: values[key] for key in values if key not in drawn})


def check_traced_type(level: Level, game_id: str) -> None:
    """Raises LevelError if the fields of a level's traced part are not its traced keys."""
    expected = set(traced_keys(level)) - {f.name for f in dataclasses.fields(TracedAppearance)}
    fields = {f.name for f in dataclasses.fields(level.traced_type)} - {"appearance"}
    LevelError.require(
        fields == expected,
        f"{game_id}: {level.traced_type.__name__} has the fields {sorted(fields)}, but the level's traced keys are "
        f"{sorted(expected)}; set {type(level).__name__}.traced_type",
    )


def _integers(value: Any) -> list[int]:
    return [part for part in (value if isinstance(value, tuple) else (value,)) if type(part) is int]


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value fits an annotation. Supports what level keys use: plain types, unions and tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = (args[0],) * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        return len(value) == len(kinds) and all(map(_has_type, value, kinds))
    if hint is None or hint is type(None):
        return value is None
    return type(value) is hint


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
