"""A tiny model shared by several tests, params that all matter, and prompts of different lengths."""

import functools
from typing import Any

import jax
import numpy as np

from g1jax import vlm

TINY = vlm.Config(
    vision=vlm.VisionConfig(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, full_attention_blocks=(0,)),
    text=vlm.TextConfig(
        vocab_size=41, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
        positions="mrope", mrope_section=(0, 1, 1),
    ),
)  # fmt: skip
Batch = tuple[jax.Array, jax.Array, jax.Array]

apply = jax.jit(vlm.apply, static_argnums=0)


@functools.cache
def make_params(config: vlm.Config = TINY, factor: float = 15.0) -> vlm.Params:
    """Params whose matrices are large enough that the image and every token matter."""

    def grow(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf * factor if path[-1].key in ("kernel", "embedding") else leaf

    params: vlm.Params = jax.tree.map_with_path(grow, vlm.init(config, jax.random.key(0)))
    return params


def make_batch(rows: int = 3, image: tuple[int, int] = (2, 3), after: int = 5) -> Batch:
    """Prompts int32[B, S], their mask, frames: an image, then text; row i starts with min(i, 2) tokens of padding."""
    rng = np.random.default_rng(0)
    count = image[0] * image[1]
    line = [*rng.integers(7, 41, 2), 3, *[TINY.image_token_id] * count, 4, *[0] * after]
    tokens = np.tile(np.array(line, np.int32), (rows, 1))
    tokens[:, -after:] = rng.integers(7, 41, (rows, after))
    mask = np.ones(tokens.shape, bool)
    for row in range(rows):
        mask[row, : min(row, 2)] = False
    frames = rng.integers(0, 256, (rows, 28 * image[0], 28 * image[1], 3)).astype(np.uint8)
    return jax.numpy.asarray(tokens), jax.numpy.asarray(mask), jax.numpy.asarray(frames)
