"""The vision tower: patches to visual tokens; most blocks attend within windows, some to the whole image."""

import functools
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32, Shaped

from g1jax.errors import ConfigError
from g1jax.typing import Array
from g1jax.vlm.attention import attend
from g1jax.vlm.config import Config, VisionConfig
from g1jax.vlm.layers import Linear, RMSNorm, SwiGLU, join_heads, split_heads, zeros
from g1jax.vlm.rotary import patch_angles, rotate
from g1jax.vlm.sharding import BATCH, constrain

_EPS = 1e-6


@dataclass(frozen=True)
class Layout:
    """Patches of one image size, and their windows. Windows at the edges may be partly empty.

    A 3×3 image with windows of 2×2 visual tokens::

        0 0 1 ·
        0 0 1 ·
        2 2 3 ·
        · · · ·
    """

    grid: tuple[int, int]  # rows and columns in visual tokens
    windows: tuple[int, int]  # rows and columns of windows
    side: int  # of a window, in visual tokens
    merge: int  # side of a visual token, in patches
    angles: Float32[np.ndarray, "p half"]  # rotary angles of each patch

    @property
    def num_windows(self) -> int:
        """The number of windows."""
        return self.windows[0] * self.windows[1]

    @property
    def window_size(self) -> int:
        """Patches of a window."""
        return self.side**2 * self.merge**2

    @property
    def is_even(self) -> bool:
        """Whether all windows are full."""
        return self.grid == (self.windows[0] * self.side, self.windows[1] * self.side)

    def to_windows(self, x: Shaped[Array, "n p d"]) -> Shaped[Array, "n*{self.num_windows} {self.window_size} d"]:
        """The patches of each window, zeros where it is empty."""
        (rows, columns), (down, across), side = self.grid, self.windows, self.side
        count, _, size = x.shape
        x = x.reshape(count, rows, columns, self.merge**2 * size)
        x = jnp.pad(x, ((0, 0), (0, down * side - rows), (0, across * side - columns), (0, 0)))
        x = x.reshape(count, down, side, across, side, -1).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(count * down * across, self.window_size, size)

    def from_windows(self, x: Shaped[Array, "_ {self.window_size} d"]) -> Shaped[Array, "n p d"]:
        """The inverse of `to_windows`."""
        (rows, columns), (down, across), side = self.grid, self.windows, self.side
        size = x.shape[-1]
        x = x.reshape(-1, down, across, side, side, self.merge**2 * size).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(x.shape[0], down * side, across * side, -1)[:, :rows, :columns]
        return x.reshape(x.shape[0], -1, size)


@functools.lru_cache(maxsize=64)
def layout_of(config: VisionConfig, rows: int, columns: int) -> Layout:
    """The layout of images of rows × columns visual tokens."""
    merge, side = config.merge_size, config.window_size // config.token_size
    row, column = np.indices((rows * merge, columns * merge))
    blocks = (rows, merge, columns, merge)  # patches of a visual token are adjacent
    row, column = (index.reshape(blocks).transpose(0, 2, 1, 3).reshape(-1) for index in (row, column))
    windows = -(-rows // side), -(-columns // side)
    return Layout((rows, columns), windows, side, merge, patch_angles(config, row, column))


class PatchEmbed(nnx.Module):
    """A linear map of a patch; its frames are equal, so their weights are summed first."""

    def __init__(self, config: Config) -> None:
        self.config = config
        frames = config.vision.temporal_patch_size
        self.proj = Linear(config, config.vision.patch_dim * frames, config.vision.hidden_size)

    def __call__(self, patches: Float32[Array, "n p {self.config.vision.patch_dim}"]) -> Float[Array, "n p d"]:
        """The vector of each patch."""
        vision, dtype = self.config.vision, jnp.dtype(self.config.dtype)
        kernel = self.proj.kernel[...].reshape(3, vision.temporal_patch_size, vision.patch_size**2, vision.hidden_size)
        still = jnp.sum(kernel.astype(jnp.float32), axis=1).reshape(vision.patch_dim, vision.hidden_size)
        return patches.astype(dtype) @ still.astype(dtype)


class VisionAttention(nnx.Module):
    """Attention among the patches of a window or of the image."""

    def __init__(self, config: Config, *, is_full: bool) -> None:
        size = config.vision.hidden_size
        self.config, self.is_full = config, is_full
        self.qkv = Linear(config, size, 3 * size, use_bias=True)
        self.proj = Linear(config, size, size, use_bias=True)

    def __call__(self, x: Float[Array, "n p d"], layout: Layout) -> Float[Array, "n p d"]:
        """What each patch reads from the others."""
        heads, qkv, angles = self.config.vision.num_heads, self.qkv(x), jnp.asarray(layout.angles)[None]
        is_windowed, mask = not self.is_full and layout.num_windows > 1, None
        if is_windowed:
            qkv, angles = layout.to_windows(qkv), jnp.tile(layout.to_windows(angles), (len(x), 1, 1))
            if not layout.is_even:
                is_filled = layout.to_windows(jnp.ones((1, x.shape[1], 1), jnp.int8))[:, None, :, 0] > 0
                mask = jnp.tile(is_filled, (len(x), 1, 1))
        query, key, value = (split_heads(part, heads) for part in jnp.split(qkv, 3, axis=-1))
        cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
        out = join_heads(attend(self.config, rotate(query, cos, sin), rotate(key, cos, sin), value, mask))
        return self.proj(layout.from_windows(out) if is_windowed else out)


class VisionBlock(nnx.Module):
    """Attention and SwiGLU, each added to the residual stream."""

    def __init__(self, config: Config, *, is_full: bool) -> None:
        size = config.vision.hidden_size
        self.norm1, self.norm2 = RMSNorm(config, size, _EPS), RMSNorm(config, size, _EPS)
        self.attn = VisionAttention(config, is_full=is_full)
        self.mlp = SwiGLU(config, size, config.vision.intermediate_size, use_bias=True)

    def __call__(self, x: Float[Array, "n p d"], layout: Layout) -> Float[Array, "n p d"]:
        """The residual stream after the block."""
        x = constrain(x + self.attn(self.norm1(x), layout), BATCH, None, None)
        return constrain(x + self.mlp(self.norm2(x)), BATCH, None, None)


class PatchMerger(nnx.Module):
    """The concatenated patches of a visual token to one vector of the decoder's width."""

    def __init__(self, config: Config) -> None:
        self.size = config.vision.hidden_size * config.vision.merge_size**2
        self.ln_q = RMSNorm(config, config.vision.hidden_size, _EPS)
        self.up = Linear(config, self.size, self.size, use_bias=True)
        self.down = Linear(config, self.size, config.text.hidden_size, use_bias=True)

    def __call__(self, x: Float[Array, "n p d"]) -> Float[Array, "n t D"]:
        """The vector of each visual token."""
        merged = self.ln_q(x).reshape(x.shape[0], -1, self.size)
        return self.down(nnx.gelu(self.up(merged), approximate=False))


class PlaceEmbed(nnx.Module):
    """Learned position embeddings of visual tokens: the sum of a row's and a column's vector."""

    def __init__(self, config: Config) -> None:
        self.num_places = config.vision.num_places
        self.rows, self.columns = (zeros(config, self.num_places, config.text.hidden_size) for _ in range(2))

    def __call__(self, grid: tuple[int, int]) -> Float[Array, "t D"]:
        """Embeddings for an image of `grid` = (rows, columns) visual tokens.

        Raises:
            ConfigError: the image has more rows or columns than there are embeddings.
        """
        ConfigError.require(
            max(grid) <= self.num_places,
            f"an image of {grid[0]} × {grid[1]} visual tokens, and the model has embeddings for {self.num_places} rows "
            "and columns (num_places)",
        )
        places = self.rows[: grid[0], None] + self.columns[None, : grid[1]]
        return places.reshape(grid[0] * grid[1], -1)


class VisionTower(nnx.Module):
    """Patches to visual tokens."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.patch_embed = PatchEmbed(config)
        full = config.vision.full_attention_blocks
        self.blocks = nnx.List([VisionBlock(config, is_full=i in full) for i in range(config.vision.depth)])
        self.merger = PatchMerger(config)
        self.places = PlaceEmbed(config) if config.vision.num_places else None

    def __call__(self, patches: Float32[Array, "n p values"], grid: tuple[int, int]) -> Float[Array, "n t D"]:
        """The visual tokens of images that have `grid` = (rows, columns) of them."""
        layout = layout_of(self.config.vision, *grid)
        x = constrain(self.patch_embed(patches), BATCH, None, None)
        for block in self.blocks:
            x = run_block(self.config, block, x, layout)
        tokens = self.merger(x)
        if self.places is not None:
            tokens += self.places(grid).astype(tokens.dtype)[None]
        return constrain(tokens, BATCH, None, None)


def run_block(config: Config, block: VisionBlock, x: Float[Array, "n p d"], layout: Layout) -> Float[Array, "n p d"]:
    """A block, rematerialized if the config says so."""
    if not config.is_remat:
        return block(x, layout)
    graph, state = nnx.split(block)
    return cast(Array, jax.checkpoint(lambda state, x: nnx.merge(graph, state)(x, layout))(state, x))
