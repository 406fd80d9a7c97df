"""Rendering: an atlas of cell-sized sprites is drawn once on the host, a frame is one gather from it on the device.

The unit of the gather is one pixel row of one sprite, `cell_size * 3` contiguous bytes, so that a frame is written in
order at memory bandwidth. Palette, background, marks and shifts only select rows to read; only noise changes pixels.
"""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float32, Int32, UInt8, UInt32

from g1jax.envs import appearance, sprites
from g1jax.envs.level import Appearance, TracedAppearance, names_of
from g1jax.envs.vmap_loop import fenced
from g1jax.typing import Array, HostImages

DrawTiles = Callable[[str, str], HostImages]
"""(palette, background) -> uint8[K, Z, Z, 3], the sprite of every kind of cell."""
Read = Callable[[Int32[Array, "H n"], UInt32[Array, ""]], UInt8[Array, "H W 3"]]
"""(segments of an atlas, an episode's seed) -> their pixels."""

_NUM_NOISE_ROWS = 509
_NOISE_UNIT = 24.0  # standard deviation of the stored noise; int8 holds five of them


class Renderer:
    """A game's atlas, and the two steps from a board to a frame: `segments` (where to read), `paint` (read).

    A segment is a pixel row of one cell, or a part of it where the margins are not multiples of the cell size.
    """

    def __init__(self, look: Appearance, rows: int, cols: int, draw_tiles: DrawTiles) -> None:
        self.cell_size, self.has_noise, self.jitter = look.cell_size, look.noise > 0, look.jitter
        self.palettes, self.backgrounds = names_of(look.palette), names_of(look.background)
        self.num_marks = sprites.NUM_MARKS if look.distractors > 0 else 0
        board_size = (rows * look.cell_size, cols * look.cell_size)
        self.frame_size = look.frame_shape(rows, cols)
        self.above, self.left = ((f - b) // 2 for f, b in zip(self.frame_size, board_size, strict=True))
        self.unit = math.gcd(look.cell_size, self.left, self.frame_size[1] - board_size[1] - self.left)
        self.atlas = self._draw(draw_tiles)
        self._read = reader(self.cut(self.unit))

    def _draw(self, draw_tiles: DrawTiles) -> UInt8[np.ndarray, "n {self.cell_size}*3"]:
        """The pixel rows of all sprites, of [styles · kinds · marks · shifts · rows]; the margin is a kind."""
        styles = []
        for palette in self.palettes:
            for background in self.backgrounds:
                tiles = draw_tiles(palette, background)
                margin = appearance.BACKGROUNDS[background][2]
                self.num_kinds = len(tiles)
                variants = sprites.with_marks(tiles, self.num_marks)  # [K, marks, Z, Z, 3]
                variants = sprites.with_shifts(variants, self.jitter)  # [K, marks, shifts, Z + 2·jitter, Z, 3]
                blank = np.broadcast_to(np.array(margin, np.uint8), (1, *variants.shape[1:]))
                styles.append(np.concatenate([variants, blank]))
        atlas = np.stack(styles)
        self._strides = [math.prod(atlas.shape[i + 1 : 5]) for i in range(4)]  # style, kind, mark, shift; in rows
        return atlas.reshape(-1, atlas.shape[-2] * 3)

    def cut(self, unit: int) -> UInt8[np.ndarray, "n {unit}*3"]:
        """The atlas in segments of `unit` pixels, a divisor of `self.unit`."""
        return self.atlas.reshape(-1, unit * 3)

    def segments(
        self,
        tiles: Int32[Array, "R C"],
        seed: UInt32[Array, ""],
        look: TracedAppearance,
        unit: int,
        canvas: tuple[int, int],
    ) -> Int32[Array, "{canvas[0]} {canvas[1]}//{unit}"]:
        """The atlas index of each segment of a frame of sprites.

        The board is centered in the game's own frame, which is at the top left of the canvas.
        """
        size = self.cell_size
        style = self._style(seed, look) * self._strides[0]
        start = style + tiles.astype(jnp.int32) * self._strides[1] + self._variant(tiles, seed, look)
        row = start[:, None, :] + jnp.arange(size, dtype=jnp.int32)[None, :, None]  # [R, Z, C]
        per_row = size // unit
        cut = row[..., None] * per_row + jnp.arange(per_row, dtype=jnp.int32)[None, None, None]
        board = cut.reshape(tiles.shape[0] * size, tiles.shape[1] * per_row)
        below, left = canvas[0] - board.shape[0] - self.above, self.left // unit
        right = canvas[1] // unit - board.shape[1] - left
        if not any((self.above, below, left, right)):
            return board
        margin = (style + self.num_kinds * self._strides[1]) * per_row
        return lax.pad(board, margin, [(self.above, below, 0), (left, right, 0)])

    def paint(
        self, tiles: Int32[Array, "R C"], seed: UInt32[Array, ""], look: TracedAppearance
    ) -> UInt8[Array, "H W 3"]:
        """The frame of a board of sprites."""
        frame = self._read(self.segments(tiles, seed, look, self.unit, self.frame_size), seed)
        return self.add_noise(frame, tiles, seed, look) if self.has_noise else frame

    def add_noise(
        self, frame: UInt8[Array, "H W 3"], tiles: Int32[Array, "R C"], seed: UInt32[Array, ""], look: TracedAppearance
    ) -> UInt8[Array, "H W 3"]:
        """Adds noise to the frame of a board: the same whenever an episode has the same board."""
        return _add_noise(frame, mix_bits(seed, _hash(tiles)), look.noise)

    def _variant(
        self, tiles: Int32[Array, "R C"], seed: UInt32[Array, ""], look: TracedAppearance
    ) -> Int32[Array, "R C"]:
        """The atlas offset of each tile's mark and shift in this episode."""
        _, _, per_mark, per_shift = self._strides
        index = jnp.arange(tiles.size, dtype=jnp.uint32).reshape(tiles.shape)
        bits = mix_bits(jnp.broadcast_to(seed, tiles.shape), index)
        offset = jnp.zeros(tiles.shape, jnp.int32)
        if self.num_marks:
            is_marked = (bits >> 16).astype(jnp.float32) < look.distractors * 65536.0
            mark = 1 + (bits >> 8) % jnp.uint32(self.num_marks)
            offset += jnp.where(is_marked, mark, 0).astype(jnp.int32) * per_mark
        if self.jitter:
            reach = jnp.uint32(1) + 2 * look.jitter.astype(jnp.uint32)
            bits = mix_bits(bits, bits)
            right = (bits % reach).astype(jnp.int32) - look.jitter + self.jitter
            down = ((bits >> 16) % reach).astype(jnp.int32) - look.jitter + self.jitter
            offset += right * per_shift + (2 * self.jitter - down)
        return offset

    def _style(self, seed: UInt32[Array, ""], look: TracedAppearance) -> Int32[Array, ""]:
        """The index of an episode's (palette, background) pair: from its level, where -1 draws by the seed."""

        def choice(chosen: Int32[Array, ""], count: int, salt: int) -> Int32[Array, ""]:
            drawn = (mix_bits(seed, jnp.uint32(salt)) % jnp.uint32(count)).astype(jnp.int32)
            return jnp.where(chosen < 0, drawn, chosen) if count > 1 else jnp.int32(0)

        palette = choice(look.palette, len(self.palettes), 1)
        return palette * len(self.backgrounds) + choice(look.background, len(self.backgrounds), 2)


def reader(atlas: UInt8[np.ndarray, "n w"]) -> Read:
    """The reader of an atlas in segments.

    The gather is fenced: XLA's CPU compiler would fuse the reshape to pixels into it and then divide once per pixel to
    find its segment, which is five times slower. On GPUs it reads words of four bytes where segments have whole ones:
    the gather is three times as fast on an H100 (docs/benchmarks.md).
    """
    has_words = atlas.shape[1] % 4 == 0
    gather = fenced(functools.partial(_read_bytes, atlas), functools.partial(_read_words, atlas) if has_words else None)

    def read(segments: Int32[Array, "H n"], seed: UInt32[Array, ""]) -> UInt8[Array, "H W 3"]:
        height, num_segments = segments.shape
        return gather(seed, segments).reshape(height, num_segments * atlas.shape[1] // 3, 3)

    return read


def _read_bytes(atlas: UInt8[np.ndarray, "n w"], seed: Array, segments: Int32[Array, "*H"]) -> UInt8[Array, "*H w"]:
    return jnp.asarray(atlas).at[segments].get(mode="promise_in_bounds")


def _read_words(atlas: UInt8[np.ndarray, "n w"], seed: Array, segments: Int32[Array, "*H"]) -> UInt8[Array, "*H w"]:
    """The same, in words of four bytes."""
    words = jnp.asarray(np.ascontiguousarray(atlas).view("<u4")).at[segments].get(mode="promise_in_bounds")
    return lax.bitcast_convert_type(words, jnp.uint8).reshape(*segments.shape, atlas.shape[1])


def _add_noise(
    frame: UInt8[Array, "H W 3"], seed: UInt32[Array, ""], deviation: Float32[Array, ""]
) -> UInt8[Array, "H W 3"]:
    """Adds Gaussian noise of a standard deviation in gray levels: each pixel row adds a random row of a table."""
    height, width, _ = frame.shape
    table = np.random.default_rng(0).normal(0.0, _NOISE_UNIT, (_NUM_NOISE_ROWS, width, 3)).clip(-127, 127)
    which = mix_bits(seed[None], jnp.arange(height, dtype=jnp.uint32)) % jnp.uint32(_NUM_NOISE_ROWS)
    noise = jnp.asarray(table.astype(np.int8))[which.astype(jnp.int32)].astype(jnp.float32)
    noisy = frame.astype(jnp.float32) + noise * (deviation / _NOISE_UNIT)
    return jnp.clip(jnp.round(noisy), 0.0, 255.0).astype(jnp.uint8)


def mix_bits(a: UInt32[Array, "*#n"], b: UInt32[Array, "*#n"]) -> UInt32[Array, "*n"]:
    """A hash of two integers (MurmurHash3's finalizer)."""
    h = a ^ (b * jnp.uint32(0x9E3779B1))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _hash(values: Int32[Array, "R C"]) -> UInt32[Array, ""]:
    """A hash of a board, so that different boards have different noise."""
    flat = values.reshape(-1).astype(jnp.uint32)
    return jnp.sum(mix_bits(flat, jnp.arange(flat.shape[0], dtype=jnp.uint32)), dtype=jnp.uint32)
