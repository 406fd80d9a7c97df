"""Attention, by one of three implementations: see `Config.attention`.

Scores of all queries and keys together need memory that is quadratic in the length: for a sequence of 9216 tokens and
the 28 heads of Qwen2.5-VL-7B 9 GiB in float32. `blockwise` computes, and for the gradient recomputes, the scores of a
block of queries at a time, on any device; `cudnn` never writes them to memory.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int32

from g1jax.typing import Array
from g1jax.vlm.cache import CachedLayer
from g1jax.vlm.config import Config

_MASKED_SCORE = float(np.finfo(np.float32).min)
_BLOCK = 256  # queries of which the scores are computed at a time
CACHE_BLOCK = 512
"""Positions of a cache that are read at a time."""
_SPANS = 4  # parts of a sequence, each of which attends only to the keys up to its end


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Causal:
    """Each token attends to itself and earlier ones, without padding.

    Two tokens of padding, then three of text; one row per query::

        · · · · ·
        · · · · ·
        · · x · ·
        · · x x ·
        · · x x x
    """

    is_token: Bool[Array, "B T"]
    start: int = dataclasses.field(default=0, metadata={"static": True})
    """The position of the first query; the keys before it are those of earlier tokens."""

    def dense(self) -> Bool[Array, "B S T"]:
        """The mask as an array."""
        length = self.is_token.shape[1]
        index = jnp.arange(length, dtype=jnp.int32)
        return (index[self.start :, None] >= index[None])[None] & self.is_token[:, None, :]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Filled:
    """One query attends to the tokens of a cache, of which only the first `length` positions are filled."""

    is_token: Bool[Array, "B T"]
    length: Int32[Array, ""]

    def dense(self) -> Bool[Array, "B 1 T"]:
        """The mask as an array."""
        return self.is_token[:, None]


Mask = Bool[Array, "#B #S T"] | Causal | Filled | None


def attend(
    config: Config,
    query: Float[Array, "B h S d"],
    key: Float[Array, "B g T d"],
    value: Float[Array, "B g T d"],
    mask: Mask,
) -> Float[Array, "B h S d"]:
    """Attention of queries over keys and values, with h a multiple of g.

    Scores and softmax are float32. A fully masked query gets the mean of some values, which is finite but meaningless.
    """
    if config.attention == "blockwise" and query.shape[2] > _BLOCK and (mask is None or isinstance(mask, Causal)):
        return _attend_blockwise(query, key, value, mask)
    dense = mask.dense() if isinstance(mask, Causal | Filled) else mask
    return (_attend_fused if config.attention == "cudnn" else _attend_plain)(query, key, value, dense)


def attend_to_cache(
    config: Config, query: Float[Array, "B h S d"], cache: CachedLayer, mask: Mask
) -> Float[Array, "B h S d"]:
    """Attention over a cache, as `attend`; `blockwise` reads only its filled blocks."""
    if config.attention == "blockwise" and isinstance(mask, Filled) and cache.length % CACHE_BLOCK == 0:
        return _attend_blocks(query, cache, mask)
    return attend(config, query, *cache.read(), mask)


def _attend_plain(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    batch, num_heads, length, size = query.shape
    groups = key.shape[1]
    query = query.reshape(batch, groups, num_heads // groups * length, size)  # the heads of a group in one product
    scores = jnp.einsum("bgsd,bgtd->bgst", query, key, preferred_element_type=jnp.float32) * size**-0.5
    scores = scores.reshape(batch, groups, num_heads // groups, length, -1)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, _MASKED_SCORE)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = weights.reshape(batch, groups, num_heads // groups * length, -1)
    return jnp.einsum("bgst,bgtd->bgsd", weights, value).reshape(batch, num_heads, length, size)


def _attend_blockwise(query: Array, key: Array, value: Array, mask: Causal | None) -> Array:
    """A scan over blocks of queries; a causal mask in spans, so that few scores are computed only to be masked."""
    length, last = query.shape[2], key.shape[2]
    if mask is None:
        return _attend_span(query, key, value, None, 0)
    blocks_a_span = -(-length // (_BLOCK * _SPANS))
    outs = []
    for first in range(0, length, blocks_a_span * _BLOCK):
        part = query[:, :, first : first + blocks_a_span * _BLOCK]
        end = min(mask.start + first + part.shape[2], last)
        outs.append(_attend_span(part, key[:, :, :end], value[:, :, :end], mask.is_token[:, :end], mask.start + first))
    return jnp.concatenate(outs, axis=2)


def _attend_span(query: Array, key: Array, value: Array, is_token: Array | None, start: int) -> Array:
    """Attention of queries whose positions are start, start + 1, …, a block at a time."""
    batch, num_heads, length, size = query.shape
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, -length % _BLOCK), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(batch, num_heads, -1, _BLOCK, size), 2, 0)
    positions = start + jnp.arange(blocks.shape[0] * _BLOCK, dtype=jnp.int32).reshape(-1, _BLOCK)
    keys = jnp.arange(key.shape[2], dtype=jnp.int32)

    @jax.checkpoint
    def attend_block(block: tuple[Array, Array]) -> Array:
        query, position = block
        mask = None
        if is_token is not None:
            mask = (position[:, None] >= keys[None])[None] & is_token[:, None, :]
        return _attend_plain(query, key, value, mask)

    out = jnp.moveaxis(lax.map(attend_block, (blocks, positions)), 0, 2)
    return out.reshape(batch, num_heads, -1, size)[:, :, :length]


def _attend_blocks(query: Array, cache: CachedLayer, mask: Filled) -> Array:
    """Softmax over the filled blocks of a cache, one after the other, with a running maximum and sum.

    Milakov & Gimelshein 2018, arXiv 1805.02867, algorithm 3.
    """
    batch, num_heads, _, size = query.shape
    groups = cache.key_value[0].shape[-3]
    query = query.reshape(batch, groups, num_heads // groups, size)

    def add_block(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, out = sums
        start = i * CACHE_BLOCK
        keys, values = cache.read(start, CACHE_BLOCK)
        is_token = lax.dynamic_slice_in_dim(mask.is_token, start, CACHE_BLOCK, axis=1)[:, None, None]
        scores = jnp.einsum("bgsd,bgtd->bgst", query, keys, preferred_element_type=jnp.float32) * size**-0.5
        scores = jnp.where(is_token, scores, _MASKED_SCORE)
        new = jnp.maximum(highest, jnp.max(scores, axis=-1))
        weights, scale = jnp.exp(scores - new[..., None]), jnp.exp(highest - new)
        added = jnp.einsum("bgst,bgtd->bgsd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return new, total * scale + jnp.sum(weights, axis=-1), out * scale[..., None] + added

    shape = query.shape[:-1]
    start = (jnp.full(shape, _MASKED_SCORE), jnp.zeros(shape, jnp.float32), jnp.zeros(query.shape, jnp.float32))
    num_blocks = (mask.length + CACHE_BLOCK - 1) // CACHE_BLOCK
    _, total, out = lax.fori_loop(0, num_blocks, add_block, start)
    return (out / total[..., None]).astype(query.dtype).reshape(batch, num_heads, 1, size)


def _attend_fused(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    length = query.shape[2]
    query, key, value, mask = even_lengths(query, key, value, mask)
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    if mask is not None:
        mask = jnp.broadcast_to(mask[:, None], (query.shape[0], 1, query.shape[1], key.shape[1]))
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    return out.transpose(0, 2, 1, 3)[:, :, :length]


def even_lengths(
    query: Float[Array, "B h S d"],
    key: Float[Array, "B g T d"],
    value: Float[Array, "B g T d"],
    mask: Bool[Array, "#B #S T"] | None,
) -> tuple[Array, Array, Array, Array | None]:
    """The same attention with even numbers of queries and keys, which cuDNN's gradient needs if there is a mask.

    The first S outputs are those of the arguments. An added query attends to all keys but the added one.
    """
    more_queries, more_keys = query.shape[2] % 2, key.shape[2] % 2
    if not more_queries and not more_keys:
        return query, key, value, mask
    if mask is None:
        mask = jnp.ones((1, 1, key.shape[2]), bool)
    if mask.shape[1] > 1:
        mask = jnp.pad(mask, ((0, 0), (0, more_queries), (0, 0)), constant_values=True)
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, more_keys)))
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))
        for x, more in ((query, more_queries), (key, more_keys), (value, more_keys))
    )
    return query, key, value, mask
