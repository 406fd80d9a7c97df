"""Scoring: log-probabilities and entropies of given responses, in one forward pass."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Float32, Int32

from g1jax.typing import Array
from g1jax.vlm.config import Config
from g1jax.vlm.model import Frames, Params, bind, check_length, left_pad
from g1jax.vlm.sampling import PLAIN, Sampling, entropy, log_distribution, token_logprobs

_CHUNK_SIZE = 1 << 25  # logits computed at a time


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Score:
    """Log-probabilities and entropies of responses; 0 outside the response mask."""

    logprobs: Float32[Array, "B N"]
    entropy: Float32[Array, "B N"]  # of the distribution of each token, in nats


def score(
    config: Config,
    params: Params,
    prompt_tokens: Int32[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    response_tokens: Int32[Array, "B N"],
    response_mask: Bool[Array, "B N"],
    frames: Frames | None,
    *,
    sampling: Sampling = PLAIN,
    visual_tokens: Float[Array, "n t D"] | None = None,
) -> Score:
    """Log-probabilities of responses under the sampling distribution.

    They equal those of `generate`. If B·N·V is large, logits are computed for a chunk of tokens at a time, and
    recomputed for a gradient. `visual_tokens`: those of the frames, if already computed by `see`. To be jitted with
    `config` and `sampling` static. `frames` None: prompts of text alone.
    """
    check_length(config, prompt_tokens.shape[1], response_tokens.shape[1])
    model = bind(config, params)
    prompt_tokens, prompt_mask = left_pad(prompt_tokens, prompt_mask)
    prompt_length = prompt_tokens.shape[1]
    tokens = jnp.concatenate([prompt_tokens, response_tokens], axis=1)
    mask = jnp.concatenate([prompt_mask, response_mask], axis=1)
    out = model.forward(tokens, mask, frames, prompt_length, start=prompt_length - 1, visual_tokens=visual_tokens)
    hidden = out.hidden[:, :-1]

    def score_chunk(hidden: Array, tokens: Array) -> tuple[Array, Array]:
        logprobs = log_distribution(sampling, model.logits(hidden))
        return token_logprobs(logprobs, tokens), entropy(logprobs)

    rows, length = response_tokens.shape
    num_chunks = min(length, math.ceil(rows * length * config.text.vocab_size / _CHUNK_SIZE))
    if num_chunks == 1:
        logprobs, entropies = score_chunk(hidden, response_tokens)
    else:
        size = math.ceil(length / num_chunks)
        chunks = (_split(hidden, size), _split(response_tokens, size))
        parts = lax.map(jax.checkpoint(lambda chunk: score_chunk(*chunk)), chunks)
        logprobs, entropies = (part.transpose(1, 0, 2).reshape(rows, -1)[:, :length] for part in parts)
    return Score(jnp.where(response_mask, logprobs, 0.0), jnp.where(response_mask, entropies, 0.0))


def _split(x: Array, size: int) -> Array:
    """[B, N, …] -> [chunks, B, size, …], the last one padded with zeros."""
    rows, length = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(rows, -1, size, *x.shape[2:]), 1, 0)
