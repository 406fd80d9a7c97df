"""Frames to patches on the device, as `Qwen2VLImageProcessor` makes them.

Equal for frames that need no resizing; others are resized as Pillow does, within one gray level.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from g1jax.errors import ConfigError
from g1jax.typing import Array, ArrayLike
from g1jax.vlm.config import VisionConfig
from g1jax.vlm.resize import resize, whole_size

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def grid_of(config: VisionConfig, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of an image in visual tokens, after it is resized to `image_size`, if set, and to whole ones.

    Raises:
        ConfigError: the image is empty, or one side is more than 200 times the other.
    """
    if config.image_size:
        height, width = config.image_size
    whole = whole_size(height, width, config.token_size)
    return whole[0] // config.token_size, whole[1] // config.token_size


def patches(config: VisionConfig, frames: ArrayLike) -> Float32[Array, "n p {config.patch_dim}"]:
    """The patches of frames, uint8[n, H, W, 3], resized to whole visual tokens.

    The patches of a visual token are adjacent, visual tokens are in reading order, and a patch's values are ordered by
    color, row, column.

    Raises:
        ConfigError: the frames are not uint8[n, H, W, 3], or cannot be resized to whole visual tokens.
    """
    ConfigError.require(
        frames.ndim == 4 and frames.shape[3] == 3 and frames.dtype == jnp.uint8,
        f"frames: expected uint8[n, H, W, 3], not {frames.dtype}{list(frames.shape)}",
    )
    count, height, width, _ = frames.shape
    rows, columns = grid_of(config, height, width)
    merge, side = config.merge_size, config.patch_size
    whole = resize(jnp.asarray(frames), rows * config.token_size, columns * config.token_size)
    split = whole.reshape(count, rows, merge, side, columns, merge, side, 3)
    split = split.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(count, rows * columns * merge**2, 3, side**2)
    # Rescaled to [0, 1], then normalized, each rounded to float32 as in the host version.
    scaled = split.astype(jnp.float32) * np.float32(1 / 255)
    mean, std = (np.array(x, np.float32)[None, None, :, None] for x in (IMAGE_MEAN, IMAGE_STD))
    return ((scaled - mean) / std).reshape(count, rows * columns * merge**2, config.patch_dim)


def pixel_values(
    config: VisionConfig, frames: ArrayLike
) -> Float32[Array, "_ {config.patch_dim}*{config.temporal_patch_size}"]:
    """`pixel_values` of `Qwen2VLImageProcessor`, from frames as in `patches`.

    A still image is a clip of equal frames. The model takes `patches`, without repeats.
    """
    flat = patches(config, frames)
    flat = flat.reshape(-1, 3, 1, config.patch_size**2)
    return jnp.tile(flat, (1, 1, config.temporal_patch_size, 1)).reshape(flat.shape[0], -1)
