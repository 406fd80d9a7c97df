"""Rendering: an atlas of cell-sized sprites is drawn once on the host, a frame is one gather from it on the device.

The unit of the gather is one pixel row of one sprite, `cell_size * 3` contiguous bytes: a frame is then written in its
own order at the speed of memory. Whatever changes a tile's look without changing shapes (palette, background, a mark, a
shift) is a choice of the row to gather; only noise touches pixels.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from g1jax.envs import looks, sprites
from g1jax.envs.batching import fenced
from g1jax.envs.level import Level, names_of
from g1jax.typing import Array, HostImages

DrawTiles = Callable[[str, str], HostImages]
"""(palette, background) -> uint8[K, Z, Z, 3], the sprite of every kind of cell."""

_NUM_NOISE_ROWS = 509
_NOISE_UNIT = 24.0  # of the stored noise, so that int8 holds five standard deviations


class Renderer:
    """A level's atlas and the two steps from a board to a frame: `rows` (which sprite rows) and `paint` (gather)."""

    def __init__(self, level: Level, draw_tiles: DrawTiles) -> None:
        self.level = level
        self.palettes, self.backgrounds = names_of(level.palette), names_of(level.background)
        self.jitter = level.jitter
        self.num_marks = sprites.NUM_MARKS if level.distractors > 0 else 0
        size = level.cell_size
        self.frame_size = level.frame_size or (level.rows * size, level.cols * size)
        self.atlas = self._draw(draw_tiles)  # uint8[looks × kinds × marks × shifts × sprite rows, Z·3]
        self._paint = painter(self.atlas)

    def _draw(self, draw_tiles: DrawTiles) -> np.ndarray:
        looks_sprites = []
        for palette in self.palettes:
            for background in self.backgrounds:
                tiles = draw_tiles(palette, background)
                margin = looks.BACKGROUNDS[background][2]
                self.num_kinds = len(tiles)
                variants = sprites.with_marks(tiles, self.num_marks)  # [K, marks, Z, Z, 3]
                variants = sprites.with_shifts(variants, self.jitter)  # [K, marks, shifts, Z + 2·jitter, Z, 3]
                blank = np.broadcast_to(np.array(margin, np.uint8), (1, *variants.shape[1:]))
                looks_sprites.append(np.concatenate([variants, blank]))
        atlas = np.stack(looks_sprites)
        self._strides = [int(np.prod(atlas.shape[i + 1 : 5])) for i in range(4)]  # look, kind, mark, shift; in rows
        return atlas.reshape(-1, atlas.shape[-2] * 3)

    def rows(self, tiles: Array, seed: Array, level: dict[str, Array]) -> Array:
        """The atlas row of every pixel row of every cell: int32[R, C] kinds -> int32[R, Z, C]."""
        per_look, per_kind, per_mark, per_shift = self._strides
        start = tiles.astype(jnp.int32) * per_kind + self._look(seed, level) * per_look
        if self.num_marks or self.jitter:
            dice = mix_bits(seed[None, None], jnp.arange(tiles.size, dtype=jnp.uint32).reshape(tiles.shape))
        if self.num_marks:
            is_marked = (dice >> 16).astype(jnp.float32) < level["distractors"] * 65536.0
            mark = 1 + (dice >> 8) % jnp.uint32(self.num_marks)
            start += jnp.where(is_marked, mark, 0).astype(jnp.int32) * per_mark
        if self.jitter:
            reach = jnp.uint32(1) + 2 * level["jitter"].astype(jnp.uint32)
            dice = mix_bits(dice, dice)
            right = (dice % reach).astype(jnp.int32) - level["jitter"] + self.jitter
            down = ((dice >> 16) % reach).astype(jnp.int32) - level["jitter"] + self.jitter
            start += right * per_shift + (2 * self.jitter - down)
        return start[:, None, :] + jnp.arange(self.level.cell_size, dtype=jnp.int32)[None, :, None]

    def paint(self, rows: Array, seed: Array, level: dict[str, Array]) -> Array:
        """The frame of these atlas rows, int32[R, Z, C] -> uint8[H, W, 3], with margins and noise where asked for."""
        height, width = self.frame_size
        if self.is_plain:
            return self._paint(self.with_margins(rows, seed, level, self.frame_size))
        board = self._paint(rows)
        color = jnp.asarray(self.atlas)[self._margin(seed, level), :3]
        canvas = jnp.broadcast_to(color[None, None], (height, width, 3))
        frame = lax.dynamic_update_slice(
            canvas, board, ((height - board.shape[0]) // 2, (width - board.shape[1]) // 2, 0)
        )
        if self.level.noise > 0:
            frame = _add_noise(frame, mix_bits(seed, _hash(rows)), level["noise"])
        return frame

    @property
    def is_plain(self) -> bool:
        """Whether a frame is nothing but a gather: no noise, and margins that are whole cells."""
        size = self.level.cell_size
        extra = (self.frame_size[0] - self.level.rows * size, self.frame_size[1] - self.level.cols * size)
        return self.level.noise == 0 and all(e % (2 * size) == 0 for e in extra)

    def with_margins(self, rows: Array, seed: Array, level: dict[str, Array], frame_size: tuple[int, int]) -> Array:
        """The atlas rows of a frame around the board: int32[R, Z, C] -> int32[H / Z, Z, W / Z].

        The board stands in the middle of the game's own frame, and that at the top left of a larger one.
        """
        size = self.level.cell_size
        above, left = (
            (self.frame_size[0] // size - rows.shape[0]) // 2,
            (self.frame_size[1] // size - rows.shape[2]) // 2,
        )
        below, right = frame_size[0] // size - rows.shape[0] - above, frame_size[1] // size - rows.shape[2] - left
        if not any((above, below, left, right)):
            return rows
        return lax.pad(rows, self._margin(seed, level), [(above, below, 0), (0, 0, 0), (left, right, 0)])

    def _margin(self, seed: Array, level: dict[str, Array]) -> Array:
        """An atlas row of the margin's color: int32[]."""
        return self._look(seed, level) * self._strides[0] + self.num_kinds * self._strides[1]

    def _look(self, seed: Array, level: dict[str, Array]) -> Array:
        """Which (palette, background) pair an episode has, int32[]: as its level says, -1 drawing one by the seed."""
        choices = []
        for salt, (key, count) in enumerate((("palette", len(self.palettes)), ("background", len(self.backgrounds)))):
            drawn = (mix_bits(seed, jnp.uint32(salt + 1)) % jnp.uint32(count)).astype(jnp.int32)
            choices.append(jnp.where(level[key] < 0, drawn, level[key]) if count > 1 else jnp.int32(0))
        return choices[0] * len(self.backgrounds) + choices[1]


def painter(atlas: np.ndarray) -> Callable[[Array], Array]:
    """The function from atlas rows, int32[R, Z, C], to a frame, uint8[R·Z, C·Z, 3].

    The gather is fenced: XLA's CPU compiler would fuse the reshape to pixels into it, and then divide once a pixel to
    find the pixel's cell, which is five times slower.
    """
    gather = fenced(lambda rows: jnp.asarray(atlas).at[rows].get(mode="promise_in_bounds"))

    def paint(rows: Array) -> Array:
        num_rows, size, num_cols = rows.shape
        return gather(rows).reshape(num_rows * size, num_cols * atlas.shape[1] // 3, 3)

    return paint


def _add_noise(frame: Array, seed: Array, deviation: Array) -> Array:
    """Gaussian noise of a standard deviation in grey levels, from a table: each pixel row takes one of its rows."""
    height, width, _ = frame.shape
    table = np.random.default_rng(0).normal(0.0, _NOISE_UNIT, (_NUM_NOISE_ROWS, width, 3)).clip(-127, 127)
    which = mix_bits(seed[None], jnp.arange(height, dtype=jnp.uint32)) % jnp.uint32(_NUM_NOISE_ROWS)
    noise = jnp.asarray(table.astype(np.int8))[which.astype(jnp.int32)].astype(jnp.float32)
    noisy = frame.astype(jnp.float32) + noise * (deviation / _NOISE_UNIT)
    return jnp.clip(jnp.round(noisy), 0.0, 255.0).astype(jnp.uint8)


def mix_bits(a: Array, b: Array) -> Array:
    """A hash of two uint32 that looks random (MurmurHash3's finalizer): uint32 of their common shape."""
    h = a ^ (b * jnp.uint32(0x9E3779B1))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _hash(values: Array) -> Array:
    """A hash of an integer array, uint32[]; a different board has different noise."""
    flat = values.reshape(-1).astype(jnp.uint32)
    return jnp.sum(mix_bits(flat, jnp.arange(flat.shape[0], dtype=jnp.uint32)), dtype=jnp.uint32)
