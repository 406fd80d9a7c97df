"""Frames of any size to whole visual tokens, as Qwen's image processor resizes them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, UInt8

from g1jax.errors import ConfigError
from g1jax.typing import Array

MAX_TOKENS = 16_384
"""The most visual tokens of an image, as Qwen's."""
_MAX_RATIO = 200
_SHARPNESS = -0.5  # the parameter of the cubic kernel, as Pillow's
_SUPPORT = 2.0


def whole_size(height: int, width: int, token_size: int) -> tuple[int, int]:
    """The (height, width) in pixels to which an image is resized: the nearest multiples of a visual token's side.

    The processor's `smart_resize`, with at least one token and at most `MAX_TOKENS`.

    >>> whole_size(224, 168, 28), whole_size(640, 840, 28), whole_size(460, 400, 28)
    ((224, 168), (644, 840), (448, 392))

    Raises:
        ConfigError: the image is empty, or one side is more than 200 times the other.
    """
    ConfigError.require(
        min(height, width) > 0 and max(height, width) <= _MAX_RATIO * min(height, width),
        f"an image of {height}×{width} pixels: both sides must be above 0, one at most {_MAX_RATIO} times the other",
    )
    rows, cols = round(height / token_size), round(width / token_size)
    if rows * cols > MAX_TOKENS:
        scale = math.sqrt(height * width / (MAX_TOKENS * token_size**2))
        rows, cols = (max(1, math.floor(side / scale / token_size)) for side in (height, width))
    elif rows * cols < 1:
        scale = math.sqrt(token_size**2 / (height * width))
        rows, cols = (math.ceil(side * scale / token_size) for side in (height, width))
    return rows * token_size, cols * token_size


def resize(frames: UInt8[Array, "n H W 3"], height: int, width: int) -> Array:
    """Frames of another size, uint8[n, height, width, 3], by Pillow's bicubic filter.

    Two passes, each a product with a matrix, rounded to uint8: along rows first, except where the height shrinks and
    the width grows. Pillow computes in fixed point, so a value halfway between two gray levels may differ by one.
    """
    before = frames.shape[1:3]
    if before[0] > height and before[1] < width:
        return _wider(_higher(frames, height), width)
    return _higher(_wider(frames, width), height)


def _wider(frames: Array, width: int) -> Array:
    before = frames.shape[2]
    return frames if before == width else _filtered("nhwc,vw->nhvc", frames, _weights(before, width))


def _higher(frames: Array, height: int) -> Array:
    before = frames.shape[1]
    return frames if before == height else _filtered("nhwc,vh->nvwc", frames, _weights(before, height))


def _filtered(product: str, frames: Array, weights: Float64[np.ndarray, "out in"]) -> Array:
    values = jnp.einsum(
        product, frames.astype(jnp.float32), jnp.asarray(weights, jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return jnp.clip(jnp.floor(values + 0.5), 0, 255).astype(jnp.uint8)


@functools.lru_cache(maxsize=64)
def _weights(before: int, after: int) -> Float64[np.ndarray, "{after} {before}"]:
    """The weight of each pixel of a line in each pixel of the resized line; rows sum to 1.

    A pixel is a weighted mean of those within two of its own widths, or within two pixels if the line becomes longer.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    center = (np.arange(after) + 0.5) * scale
    start = np.maximum((center - _SUPPORT * stretch + 0.5).astype(int), 0)
    end = np.minimum((center + _SUPPORT * stretch + 0.5).astype(int), before)
    index = np.arange(before)
    distance = np.abs((index[None, :] + 0.5 - center[:, None]) / stretch)
    is_near = (index >= start[:, None]) & (index < end[:, None])
    weights = np.where(is_near, _cubic(distance), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Keys' cubic convolution kernel (1981, equation 15) at x ≥ 0."""
    a = _SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < _SUPPORT, far, 0.0))
