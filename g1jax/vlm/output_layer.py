"""The output layer over whole responses: log-probabilities and entropies, a part of the tokens at a time.

The logits of a batch are far larger than all else: 640 responses of 1024 tokens over 152,064 of them are 371 GiB in
float32. So they are computed for a chunk of tokens, and recomputed for the gradient. On a mesh each device takes the
chunks of its own rows: it gathers the layer's weights once for all chunks, sums their gradient in float32 on its own,
and the sums are reduced once.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Float, Float32, Int32

from g1jax.typing import Array
from g1jax.vlm.layers import project
from g1jax.vlm.sampling import Sampling, entropy, log_distribution, token_logprobs
from g1jax.vlm.sharding import AXES, BATCH, num_shards

CHUNK_SIZE = 1 << 25  # logits that a device computes at a time


def score_tokens(
    sampling: Sampling,
    hidden: Float[Array, "B N D"],
    kernel: Float[Array, "..."],
    tokens: Int32[Array, "B N"],
    *,
    is_tied: bool,
) -> tuple[Float32[Array, "B N"], Float32[Array, "B N"]]:
    """The log-probability of each token and the entropy of its distribution.

    `hidden`: the hidden states that predict the tokens. `kernel`: [D, V], or [V, D] if it is tied to the embedding.
    """
    if num_shards(hidden.shape[0]) == 1:
        return _score_rows(sampling, hidden, kernel, tokens, is_tied=is_tied)
    width_axis = 1 if is_tied else 0
    is_split = kernel.shape[width_axis] % jax.sharding.get_abstract_mesh().shape["fsdp"] == 0
    split = PartitionSpec(*(["fsdp" if axis == width_axis and is_split else None for axis in range(2)]))

    def score_own(hidden: Array, kernel: Array, tokens: Array) -> tuple[Array, Array]:
        if is_split:  # its transpose scatters the sums
            kernel = lax.all_gather(kernel, "fsdp", axis=width_axis, tiled=True)
        return _score_rows(sampling, hidden, kernel, tokens, is_tied=is_tied)

    rows = PartitionSpec(BATCH)
    mesh = jax.sharding.get_abstract_mesh()
    manual = set(AXES if mesh.shape["tensor"] == 1 else BATCH)
    own: Callable[..., tuple[Array, Array]] = jax.shard_map(
        score_own, in_specs=(rows, split, rows), out_specs=(rows, rows), axis_names=manual
    )
    return own(hidden, kernel, tokens)


def _score_rows(
    sampling: Sampling, hidden: Array, kernel: Array, tokens: Array, *, is_tied: bool
) -> tuple[Array, Array]:
    rows, length = tokens.shape
    vocab_size = kernel.shape[0 if is_tied else 1]
    num_chunks = min(length, math.ceil(rows * length * vocab_size / CHUNK_SIZE))

    def score_chunk(hidden: Array, kernel: Array, tokens: Array) -> tuple[Array, Array]:
        logprobs = log_distribution(sampling, project(hidden, kernel, is_tied=is_tied))
        return token_logprobs(logprobs, tokens), entropy(logprobs)

    if num_chunks == 1:
        return score_chunk(hidden, kernel, tokens)
    wide = kernel.astype(jnp.float32)  # so the gradients of chunks are summed in float32
    size = math.ceil(length / num_chunks)
    parts = lax.map(
        jax.checkpoint(lambda chunk: score_chunk(chunk[0], wide, chunk[1])),
        (_split(hidden, size), _split(tokens, size)),
    )
    logprobs, entropies = (part.transpose(1, 0, 2).reshape(rows, -1)[:, :length] for part in parts)
    return logprobs, entropies


def _split(x: Array, size: int) -> Array:
    """[B, N, …] -> [chunks, B, size, …], the last one padded with zeros."""
    rows, length = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(rows, -1, size, *x.shape[2:]), 1, 0)
