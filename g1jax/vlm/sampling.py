"""From logits to a token: temperature, top-k, top-p, and the log-probabilities of what was sampled from."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.errors import ConfigError
from g1jax.settings import CountOrNone, Range, Temperature, check
from g1jax.typing import Array, ArrayLike, Key


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn: logits / temperature, of those the `top_k` likeliest, of those the likeliest that together
    have `top_p` of the probability. A static argument of jit.
    """

    temperature: Temperature = 1.0
    """0 is greedy: always the likeliest token."""
    top_k: CountOrNone = 0
    """0 is all."""
    top_p: Annotated[float, Range(0, 1, is_above=True)] = 1.0

    def __post_init__(self) -> None:
        check(self, ConfigError)


PLAIN = Sampling()
GREEDY = Sampling(temperature=0.0)


def log_distribution(sampling: Sampling, logits: Array) -> Array:
    """The log-probabilities that `sampling` draws from, -inf for what it never draws: float32[..., V] both.

    Greedy is certain: 0 for the likeliest token. Tokens as likely as the last that is kept are kept too.
    """
    if sampling.temperature == 0:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        is_kept = jnp.arange(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,)) == best
        return jnp.where(is_kept, 0.0, -jnp.inf)
    scaled = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        weakest = jax.lax.top_k(scaled, sampling.top_k)[0][..., -1:]
        scaled = jnp.where(scaled >= weakest, scaled, -jnp.inf)
    if sampling.top_p < 1:
        ordered = -jnp.sort(-scaled, axis=-1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of the likelier ones
        num_kept = jnp.sum((before < sampling.top_p).astype(jnp.int32), axis=-1, keepdims=True)
        weakest = jnp.take_along_axis(ordered, jnp.maximum(num_kept, 1) - 1, axis=-1)
        scaled = jnp.where(scaled >= weakest, scaled, -jnp.inf)
    return jax.nn.log_softmax(scaled, axis=-1)


def sample(sampling: Sampling, logits: Array, key: Key) -> tuple[Array, Array]:
    """A token a row and its log-probability: float32[B, V] -> int32[B], float32[B].

    `key` is one for all rows, or key[B], one a row: then a row's token does not depend on who shares its batch.
    """
    key = typed_key(key)
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return tokens, jnp.zeros(tokens.shape, jnp.float32)
    logprobs = log_distribution(sampling, logits)
    rows = logprobs.shape[0]
    uniform = jax.vmap(jax.random.uniform)(key) if key.ndim else jax.random.uniform(key, (rows,))
    tokens = _invert(jnp.exp(logprobs), uniform)
    return tokens, take(logprobs, tokens)


def typed_key(key: ArrayLike) -> Key:
    """Keys in the form of `jax.random.key`, whether they come in it or in that of `jax.random.PRNGKey`, uint32[..., 2].

    Raises:
        ConfigError: it is no key.
    """
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    is_raw = key.dtype == jnp.uint32 and key.ndim > 0
    ConfigError.require(
        is_raw, f"key: {key.dtype}{list(key.shape)} is no random key: make one with jax.random.key(seed)"
    )
    return jax.random.wrap_key_data(key)


_BLOCK = 32


def _invert(probabilities: Array, uniform: Array) -> Array:
    """The token at which the running sum of probabilities passes a uniform number: [B, V], [B] in [0, 1) -> int32[B].

    One random number a row, where the Gumbel trick takes V of them, each with two logarithms. First the block of tokens
    is found, then the token in it; within a block the running sum is a product with a triangle.
    """
    rows, size = probabilities.shape
    blocks = jnp.pad(probabilities, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    triangle = np.triu(np.ones((_BLOCK, _BLOCK), np.float32))
    inside = jnp.einsum("bnk,kl->bnl", blocks, triangle, precision=jax.lax.Precision.HIGHEST)
    until = jnp.cumsum(inside[:, :, -1], axis=1)  # [B, n]
    mark = (uniform * until[:, -1])[:, None]
    block = jnp.minimum(_count(until <= mark), blocks.shape[1] - 1)[:, None]
    before = jnp.where(block == 0, 0.0, jnp.take_along_axis(until, jnp.maximum(block - 1, 0), axis=1))
    sums, own = (jnp.take_along_axis(x, block[:, :, None], axis=1)[:, 0] for x in (inside, blocks))
    # Sums of sums round differently: if the mark lies beyond the block's own end, its last possible token is meant.
    last = jnp.max(jnp.where(own > 0, np.arange(_BLOCK, dtype=np.int32)[None], 0), axis=1)
    return block[:, 0] * _BLOCK + jnp.minimum(_count(sums <= mark - before), last)


def _count(is_counted: Array) -> Array:
    return jnp.sum(is_counted.astype(jnp.int32), axis=1)


def take(logprobs: Array, tokens: Array) -> Array:
    """The log-probability of each token: float32[..., V], int32[...] -> float32[...]."""
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def entropy(logprobs: Array) -> Array:
    """Entropy in nats: float32[..., V] -> float32[...]."""
    is_possible = logprobs > -jnp.inf
    finite = jnp.where(is_possible, logprobs, 0.0)
    return -jnp.sum(jnp.where(is_possible, jnp.exp(finite) * finite, 0.0), axis=-1)
