"""Rotary position embeddings: the position of each token, and the rotation of queries and keys."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from g1jax.typing import Array
from g1jax.vlm.config import Config, TextConfig, VisionConfig


def token_positions(
    config: Config,
    is_image: Bool[Array, "B S"],
    mask: Bool[Array, "B S"],
    grid_height: Int32[Array, "B"],
    grid_width: Int32[Array, "B"],
) -> tuple[Int32[Array, "B S axes"], Int32[Array, "B"]]:
    """The positions of a batch's tokens and of the token after them.

    is_image, mask: image tokens and tokens that are not padding. grid_*: rows and columns of an image, in visual
    tokens. There are 3 axes for `mrope` (time, row, column), else 1. Padding may be anywhere.

    With `mrope` an image advances the position by its longer side. Two text tokens, a 2×3 image, two text tokens::

        token   t t [i i i i i i] t t
        time    0 1  2 2 2 2 2 2  5 6
        row     0 1  2 2 2 3 3 3  5 6
        column  0 1  2 3 4 2 3 4  5 6
    """
    if config.text.positions == "sequence":
        return jnp.maximum(_cumulative_count(mask) - 1, 0)[:, :, None], _count(mask)
    is_image &= mask
    is_text = mask & ~is_image
    height, width = grid_height[:, None], grid_width[:, None]
    size, longer_side = height * width, jnp.maximum(height, width)
    index = _cumulative_count(is_image) - is_image.astype(jnp.int32)  # among the row's image tokens, of all images
    offset = index % size
    start = _cumulative_count(is_text) - is_text.astype(jnp.int32) + (index // size) * longer_side
    row, column = jnp.where(is_image, offset // width, 0), jnp.where(is_image, offset % width, 0)
    positions = jnp.stack([start, start + row, start + column], axis=2)
    next_position = _count(is_text) + _count(is_image) // size[:, 0] * longer_side[:, 0]
    return jnp.where(mask[:, :, None], positions, 0), next_position


def text_positions(config: Config, first: Int32[Array, "B"], length: int) -> Int32[Array, "B {length} axes"]:
    """The positions of text that starts at `first`: the same on all axes."""
    num_axes = 3 if config.text.positions == "mrope" else 1
    positions = first[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
    return jnp.broadcast_to(positions[:, :, None], (*positions.shape, num_axes))


def _cumulative_count(is_counted: Array) -> Array:
    """The number of True values up to and including each position: bool[B, S] -> int32[B, S]."""
    return jnp.cumsum(is_counted.astype(jnp.int32), axis=1)


def _count(is_counted: Array) -> Array:
    return jnp.sum(is_counted.astype(jnp.int32), axis=1)


def text_angles(config: TextConfig, positions: Int32[Array, "B S axes"]) -> Float32[Array, "B S {config.head_dim}//2"]:
    """Rotary angles of tokens at these positions."""
    half = config.head_dim // 2
    frequencies = jnp.asarray(_frequencies(half, config.rope_theta))
    if config.positions == "mrope":
        axis_of = np.repeat(np.arange(3), config.mrope_section)  # the axis (time, row, column) of each frequency
        return positions[:, :, axis_of].astype(jnp.float32) * frequencies[None, None]
    return positions.astype(jnp.float32) * frequencies[None, None]


def patch_angles(
    config: VisionConfig, rows: Int[np.ndarray, "p"], columns: Int[np.ndarray, "p"]
) -> Float32[np.ndarray, "p {config.head_dim}//2"]:
    """Rotary angles of patches, half for the row and half for the column."""
    frequencies = _frequencies(config.head_dim // 4, config.rope_theta)
    return np.concatenate([rows[:, None] * frequencies, columns[:, None] * frequencies], axis=1, dtype=np.float32)


def _frequencies(count: int, theta: float) -> np.ndarray:
    return (1.0 / theta ** (np.arange(count) / count)).astype(np.float32)


def rotate(
    x: Float[Array, "*B d"], cos: Float32[Array, "*#B half"], sin: Float32[Array, "*#B half"]
) -> Float[Array, "*B d"]:
    """Rotates the pairs (i, i + d / 2) of a head by angles.

    Computed in float32; the result has x's dtype.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
