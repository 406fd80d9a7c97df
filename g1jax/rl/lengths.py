"""Responses of uneven lengths: those of similar lengths are computed together, and only as many tokens as they have."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Int32

from g1jax.typing import Array
from g1jax.vlm.sharding import num_shards

MAX_PARTS = 4
"""The rows of a microbatch are computed in up to so many parts if there are several lengths."""
R = TypeVar("R")


def lengths_of(mask: Bool[Array, "B N"]) -> Int32[Array, "B"]:
    """The length of each response, up to its last token in the mask."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)[None], 0), axis=1)


def group_lengths(mask: Bool[Array, "B N"], num_samples: int) -> Int32[Array, "groups"]:
    """The longest response of each group."""
    return jnp.max(lengths_of(mask).reshape(-1, num_samples), axis=1)


def at_length(function: Callable[[int], R], mask: Bool[Array, "B N"], num_buckets: int) -> R:
    """`function` of the shortest of `num_buckets` lengths, N, N / 2, N / 4, …, that holds every row of the mask.

    Neither its value nor its shape may depend on the length. It is compiled for each length.
    """
    longest = mask.shape[1]
    lengths = sorted({-(-longest // 2**k) for k in range(num_buckets)})
    if len(lengths) == 1:
        return function(longest)
    needed = jnp.max(lengths_of(mask))
    index = jnp.sum((needed > jnp.array(lengths[:-1], jnp.int32)).astype(jnp.int32))
    out: R = lax.switch(index, [functools.partial(function, length) for length in lengths])
    return out


def rows_by_length(mask: Bool[Array, "B N"], num_prompts: int) -> Int32[Array, "parts shards b"]:
    """The rows of each device, as their indices on it, sorted by length, in up to `MAX_PARTS` equal parts.

    Rows are on the devices of their prompts: see `take_rows`. With lengths 9 1 8 2 5 6 7 3 on one device
    `[[[1, 3]], [[7, 4]], [[5, 6]], [[2, 0]]]`, on two `[[[1], [3]], [[3], [0]], [[2], [1]], [[0], [2]]]`.
    """
    shards = num_shards(num_prompts)
    order = jnp.argsort(lengths_of(mask).reshape(shards, -1), axis=1).astype(jnp.int32)
    count = order.shape[1]
    parts = max(n for n in range(1, MAX_PARTS + 1) if count % n == 0)
    return order.reshape(shards, parts, -1).transpose(1, 0, 2)


def groups_by_length(groups: Int32[Array, "M m G"], lengths: Int32[Array, "groups"]) -> Int32[Array, "M m G"]:
    """Groups rearranged within their minibatches, so that those of a microbatch have similar lengths.

    Groups that are sharded stay on their devices. With lengths 9 1 8 2: [[[0, 1], [2, 3]]] -> [[[1, 3], [2, 0]]]
    """
    minibatches, microbatches, count = groups.shape
    shards = num_shards(count)
    local = groups.reshape(minibatches, microbatches, shards, -1).transpose(0, 2, 1, 3).reshape(minibatches, shards, -1)
    local = jnp.take_along_axis(local, jnp.argsort(lengths[local], axis=-1), axis=-1)
    return local.reshape(minibatches, shards, microbatches, -1).transpose(0, 2, 1, 3).reshape(groups.shape)
