"""Shisen-Sho with pictures: tiles match by class, and all tiles of a board show different pictures."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int, Int8, Int16, Int32, UInt32

from g1jax.envs import core, images, sprites
from g1jax.envs import level as level_keys
from g1jax.envs.games import shisen_sho
from g1jax.envs.level import traced
from g1jax.envs.render import mix_bits
from g1jax.errors import LevelError
from g1jax.typing import Array, HostImages, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TracedLevel(level_keys.TracedLevel):
    """The traced keys of the rules."""

    classes: Int32[Array, "*B"]
    tile_types: Int32[Array, "*B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A board of classes, 0 empty, and the picture of its class that each tile shows."""

    board: Int8[Array, "*B R C"]
    images: Int16[Array, "*B R C"]
    terminated: Bool[Array, "*B"]
    seed: UInt32[Array, "*B"]
    level: TracedLevel


@dataclass(frozen=True, kw_only=True)
class Level(level_keys.Level):
    """The paper's board: 6×6, 9 of the 10 classes, 4 different pictures of each."""

    traced_type = TracedLevel
    rows: int = 6
    cols: int = 6
    images: str = "auto"
    """`cifar10`, `digits` (shipped), the path of an official CIFAR-10 archive or folder, or of an `.npz` of pictures,
    or `auto`: CIFAR-10 if found, else the digits.
    """
    images_per_class: int = 48
    """The number of pictures per class, the first ones of the set."""
    classes: int = traced(10, "at_most")
    """The number of classes, the first ones of the set."""
    tile_types: int = traced(0)
    """Classes on a board, drawn for each board. 0: one per four cells, or all if there are fewer."""

    def check(self) -> None:
        """Rejects levels that cannot be played."""
        super().check()
        LevelError.require(1 <= self.classes <= 10, f"classes={self.classes}: 1 to 10")
        shisen_sho.check_tiles(self.rows, self.cols, self.tile_types, self.classes, "classes")
        num_pairs = self.rows * self.cols // 2
        num_types = self.tile_types or max(1, min(num_pairs // 2, self.classes))
        most = 2 * math.ceil(num_pairs / num_types)
        LevelError.require(
            most <= self.images_per_class <= 1000,
            f"images_per_class={self.images_per_class}: a board has up to {most} tiles of a class, with "
            "different pictures; 1000 at most",
        )


class ShisenShoCifar10(core.Game[State]):
    """Shisen-Sho on R×C pictures: CIFAR-10 if the user has it, else handwritten digits.

    Observation: pictures; text: the name of their class, `-` for an empty cell.
    Actions, reward, end: as in Shisen-Sho; two tiles match by class.

    >>> from g1jax import envs
    >>> game = envs.make("shisen_sho_cifar10", images="digits")
    >>> game.render(game.reset(jax.random.key(0))).shape
    (168, 168, 3)
    """

    id = "shisen_sho_cifar10"
    Level = Level
    default_prompt = shisen_sho.ShisenSho.default_prompt

    def __eq__(self, other: object) -> bool:
        """Also compares the set of pictures, since `auto` may find another one later."""
        return super().__eq__(other) and self.pictures == other.pictures  # type: ignore[attr-defined]

    __hash__ = core.Game.__hash__

    @functools.cached_property
    def pictures(self) -> images.ImageSet:
        """The set in use.

        Raises:
            LevelError: it does not exist or is damaged; the message says what to do.
        """
        try:
            return _load(self.level.images, self.level.images_per_class)
        except (FileNotFoundError, ValueError) as error:
            raise LevelError(f"{self.id}: images={self.level.images!r}: {error}") from error

    def shape_actions(self) -> tuple[int, ...]:
        """Two cells."""
        return (self.rows, self.cols, self.rows, self.cols)

    def cell_names(self) -> Sequence[str]:
        """`-` and the classes of the set."""
        return ["-", *self.pictures.class_names[: self.level.classes]]

    def prompt_fields(self) -> dict[str, str]:
        """Tiles are the same if their pictures show the same class."""
        names = ", ".join(self.cell_names()[1:])
        return {**super().prompt_fields(), "kinds": f"two pictures, though different, of the same one of: {names}"}

    def draw_tiles(self, palette: str, background: str) -> HostImages:
        """The empty cell and every picture, grouped by class. Pictures ignore the palette."""
        size = self.level.appearance.cell_size
        chosen = self.pictures.images[: self.level.classes]
        tiles = images.resize(chosen.reshape(-1, *chosen.shape[2:]), size)
        return np.concatenate([sprites.empty_cell(size, background)[None], sprites.image_tiles(tiles, background)])

    def begin(self, key: Key, seed: UInt32[Array, ""], level: TracedLevel) -> State:
        """A board on which at least one pair matches."""
        is_available = jnp.arange(self.level.classes, dtype=jnp.int32) < level.classes
        board = shisen_sho.deal(key, is_available, level.tile_types, self.rows, self.cols)
        return self.from_cells(board, seed, level)

    def move(
        self, state: State, action: Int32[Array, ""], key: Key
    ) -> tuple[State, Float32[Array, ""], Bool[Array, ""]]:
        """Removes the pair if it matches."""
        del key
        board, is_legal = shisen_sho.remove_pair(state.board, action)
        after = dataclasses.replace(state, board=board, terminated=~shisen_sho.has_match(board))
        return after, jnp.where(is_legal, jnp.float32(1), jnp.float32(-1)), is_legal

    def cells(self, state: State) -> Int32[Array, "R C"]:
        """The board's classes."""
        return state.board.astype(jnp.int32)

    def from_cells(self, cells: Int[Array, "R C"], seed: UInt32[Array, ""], level: TracedLevel) -> State:
        """The state of a board of classes; the seed picks the pictures."""
        board = cells.astype(jnp.int8)
        pictures = pick_images(board, seed, self.level.images_per_class)
        return State(board, pictures, ~shisen_sho.has_match(board), seed, level)

    def tiles(self, state: State) -> Int32[Array, "R C"]:
        """The index of each tile's picture in `draw_tiles`."""
        picture = (state.board.astype(jnp.int32) - 1) * self.level.images_per_class + state.images.astype(jnp.int32)
        return jnp.where(state.board == 0, 0, 1 + picture)

    def legal_actions(self, state: State) -> Bool[Array, "{self.num_actions}"]:
        """The ordered pairs of cells that match."""
        return shisen_sho.matches(state.board).reshape(-1)

    def worth(self, state: State, action: Int32[Array, ""], result: core.StepResult) -> Float32[Array, ""]:
        """As in Shisen-Sho."""
        del action
        return shisen_sho.worth_of_pair(state.board, result)

    def expert(self, state: State, key: Key) -> Int32[Array, ""]:
        """Shisen-Sho's expert; deterministic."""
        del key
        return shisen_sho.best_pair(state.board)

    @property
    def fact_names(self) -> tuple[str, ...]:
        """Shisen-Sho's facts."""
        return shisen_sho.names_of_facts(self.rows, self.cols)

    def facts(self, state: State) -> Bool[Array, "R C F"]:
        """Shisen-Sho's facts."""
        return shisen_sho.facts_of(state.board)


def pick_images(board: Int8[Array, "R C"], seed: UInt32[Array, ""], num_images: int) -> Int16[Array, "R C"]:
    """A picture for every tile, distinct within a class, each below `num_images`.

    The nth tile of a class, in reading order, shows picture (a·n + b) mod `num_images`, with random b and random a
    coprime to `num_images`, drawn for each class.
    """
    flat = board.reshape(-1)
    kind = flat.astype(jnp.uint32)
    is_earlier = (flat[:, None] == flat[None, :]) & np.tri(board.size, k=-1, dtype=bool)
    nth = jnp.sum(is_earlier.astype(jnp.int32), axis=1, dtype=jnp.int32)
    steps = np.array([a for a in range(1, num_images + 1) if math.gcd(a, num_images) == 1], np.int32)
    step = jnp.asarray(steps)[(mix_bits(seed, kind) % np.uint32(len(steps))).astype(jnp.int32)]
    start = (mix_bits(seed ^ np.uint32(0x5BD1E995), kind) % np.uint32(num_images)).astype(jnp.int32)
    return ((step * nth + start) % num_images).astype(jnp.int16).reshape(board.shape)


@functools.cache
def _load(source: str, per_class: int) -> images.ImageSet:
    return images.load_images(source, per_class)
