"""From logits to a token: temperature, top-k, top-p, and log-probabilities under the sampling distribution."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jaxtyping import Float32, Int32

from g1jax.errors import ConfigError
from g1jax.settings import CountOrNone, Range, Temperature, check
from g1jax.typing import Array, ArrayLike, Keys
from g1jax.vlm.model import Params


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings: logits are divided by the temperature, then restricted to the `top_k` likeliest tokens, then
    to the likeliest tokens that have `top_p` of the probability. A static argument of jit.
    """

    temperature: Temperature = 1.0
    """0: greedy, always the likeliest token."""
    top_k: CountOrNone = 0
    """Only this many of the likeliest tokens; 0: all tokens."""
    top_p: Annotated[float, Range(0, 1, is_above=True)] = 1.0
    """Only the likeliest tokens that have this much of the probability; 1: all tokens."""

    def __post_init__(self) -> None:
        check(self, ConfigError)


PLAIN = Sampling()
GREEDY = Sampling(temperature=0.0)


def log_distribution(sampling: Sampling, logits: Float32[Array, "*B V"]) -> Float32[Array, "*B V"]:
    """The log-probabilities of the sampling distribution, -inf for excluded tokens.

    For greedy sampling it is 0 for the likeliest token. Tokens tied with the last one kept are kept.
    """
    if sampling.temperature == 0:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        is_kept = jnp.arange(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,)) == best
        return jnp.where(is_kept, 0.0, -jnp.inf)
    scaled = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        threshold = jax.lax.top_k(scaled, sampling.top_k)[0][..., -1:]
        scaled = jnp.where(scaled >= threshold, scaled, -jnp.inf)
    if sampling.top_p < 1:
        ordered = -jnp.sort(-scaled, axis=-1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of likelier tokens
        num_kept = jnp.sum((before < sampling.top_p).astype(jnp.int32), axis=-1, keepdims=True)
        threshold = jnp.take_along_axis(ordered, jnp.maximum(num_kept, 1) - 1, axis=-1)
        scaled = jnp.where(scaled >= threshold, scaled, -jnp.inf)
    return jax.nn.log_softmax(scaled, axis=-1)


def fold_temperature(params: Params, temperature: float) -> Params:
    """Weights that give, at temperature 1, the distribution that `params` give at this one.

    The logits are linear in the final norm's scale, which is divided by the temperature.

    Raises:
        ConfigError: the temperature is not above 0, or not finite.
    """
    message = f"temperature={temperature}: it must be above 0, and finite, to be part of the weights"
    ConfigError.require(0 < temperature < float("inf"), message)
    norm = params["model"]["norm"]
    return {**params, "model": {**params["model"], "norm": {**norm, "scale": norm["scale"] / temperature}}}


def sample(
    sampling: Sampling, logits: Float32[Array, "B V"], key: Keys
) -> tuple[Int32[Array, "B"], Float32[Array, "B"]]:
    """A token for each row, and its log-probability.

    With one key per row, a row's token does not depend on the rest of its batch.
    """
    key = typed_key(key)
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return tokens, jnp.zeros(tokens.shape, jnp.float32)
    logprobs = log_distribution(sampling, logits)
    rows = logprobs.shape[0]
    uniform = jax.vmap(jax.random.uniform)(key) if key.ndim else jax.random.uniform(key, (rows,))
    tokens = _inverse_cdf(jnp.exp(logprobs), uniform)
    return tokens, token_logprobs(logprobs, tokens)


def typed_key(key: ArrayLike) -> jaxtyping.Key[Array, "..."]:
    """Typed keys, from typed or raw ones.

    Raises:
        ConfigError: not a key.
    """
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    is_raw = key.dtype == jnp.uint32 and key.ndim > 0
    ConfigError.require(
        is_raw, f"key: {key.dtype}{list(key.shape)} is not a random key: create one with jax.random.key(seed)"
    )
    return jax.random.wrap_key_data(key)


_BLOCK = 32


def _inverse_cdf(probabilities: Array, uniform: Array) -> Array:
    """The token at which the cumulative probability exceeds a uniform number: [B, V], [B] in [0, 1) -> int32[B].

    This needs one random number per row; the Gumbel trick needs V, each with two logarithms. It finds a block of
    tokens, then the token in it; the cumulative sum within a block is a product with a triangular matrix.
    """
    rows, size = probabilities.shape
    blocks = jnp.pad(probabilities, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    triangle = np.triu(np.ones((_BLOCK, _BLOCK), np.float32))
    inside = jnp.einsum("bnk,kl->bnl", blocks, triangle, precision=jax.lax.Precision.HIGHEST)
    ends = jnp.cumsum(inside[:, :, -1], axis=1)  # [B, n], of blocks
    target = (uniform * ends[:, -1])[:, None]
    block = jnp.minimum(_count(ends <= target), blocks.shape[1] - 1)[:, None]
    start = jnp.where(block == 0, 0.0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0), axis=1))
    sums, values = (jnp.take_along_axis(x, block[:, :, None], axis=1)[:, 0] for x in (inside, blocks))
    # Sums round differently: a target beyond the end of its block means the last possible token of the block.
    last = jnp.max(jnp.where(values > 0, np.arange(_BLOCK, dtype=np.int32)[None], 0), axis=1)
    return block[:, 0] * _BLOCK + jnp.minimum(_count(sums <= target - start), last)


def _count(is_counted: Array) -> Array:
    return jnp.sum(is_counted.astype(jnp.int32), axis=1)


def token_logprobs(logprobs: Float32[Array, "*B V"], tokens: Int32[Array, "*B"]) -> Float32[Array, "*B"]:
    """The log-probability of each token."""
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def entropy(logprobs: Float32[Array, "*B V"]) -> Float32[Array, "*B"]:
    """Entropy in nats."""
    is_possible = logprobs > -jnp.inf
    finite = jnp.where(is_possible, logprobs, 0.0)
    return -jnp.sum(jnp.where(is_possible, jnp.exp(finite) * finite, 0.0), axis=-1)
