"""The policy's loss: clipped probability ratios times advantages, KL to the reference, entropy.

Everything is a sum of tokens times weights that are made beforehand, so a minibatch may be cut into micro-batches: with
their parts of its weights, their losses, gradients and metrics add up to those of the whole.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from g1jax.rl.algorithm import Algorithm, Batch, Estimator
from g1jax.typing import Array

Metrics = dict[str, Array]
"""Named figures, float32[] each."""

MAX_KL = 10.0
"""The release's bound of k3 in one token."""
_MAX_LOG_RATIO = 20.0  # beyond it e^x helps no one, and an infinity would make the gradient NaN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenWeights:
    """What each token counts in sums over a minibatch; 0 outside of its mask."""

    loss: Array  # float32[B, N], in the loss
    mean: Array  # float32[B, N], in a mean over tokens


def token_weights(algorithm: Algorithm, response_mask: Array) -> TokenWeights:
    """The weights of a minibatch's tokens by the algorithm's aggregation: bool[B, N] -> float32[B, N].

    Rows without tokens are not counted; if there are no tokens at all, the weights are 0.
    """
    mask = response_mask.astype(jnp.float32)
    lengths = jnp.sum(mask, axis=1, keepdims=True)
    num_rows = jnp.maximum(jnp.sum((lengths > 0).astype(jnp.float32)), 1.0)
    mean = mask / jnp.maximum(jnp.sum(mask), 1.0)
    if algorithm.aggregation == "sequence_mean":
        return TokenWeights(mask / jnp.maximum(lengths, 1.0) / num_rows, mean)
    if algorithm.aggregation == "constant":
        return TokenWeights(mask / (num_rows * (algorithm.max_length or mask.shape[1])), mean)
    return TokenWeights(mean, mean)


def policy_loss(
    algorithm: Algorithm,
    logprobs: Array,
    entropy: Array,
    batch: Batch,
    advantages: Array,
    weights: TokenWeights | None = None,
) -> tuple[Array, Metrics]:
    """The loss, float32[], by what the policy now thinks of the batch's tokens: its logprobs and entropy, the tokens'
    advantages, float32[B, N] each.

    `weights` are `token_weights` of the batch, or, if it is a micro-batch, its part of the minibatch's. The metrics are
    sums over tokens too: `policy_loss`, `entropy`, `ratio`, `clip_fraction` (of the tokens, those whose ratio is held
    by the clip), `kl_sampler_k1` and `kl_sampler_k3` (how far the policy has moved since it sampled); with a reference
    `kl_reference` (k3), and `kl_loss` before its coefficient if the KL is in the loss.

    Raises:
        AlgorithmError: the algorithm has a KL and the batch no reference.
    """
    algorithm.check_reference(batch)
    mask = batch.response_mask
    weights = token_weights(algorithm, mask) if weights is None else weights
    # First of all, for a NaN outside of the mask would come through the gradient of a later `where`.
    logprobs, entropy = jnp.where(mask, logprobs, 0.0), jnp.where(mask, entropy, 0.0)
    advantages = lax.stop_gradient(jnp.where(mask, advantages, 0.0))
    moved = log_ratio(logprobs, batch.logprobs, mask)  # [B, N]
    ratio = jnp.exp(sequence_log_ratio(moved, mask) if algorithm.ratio == "sequence" else moved)
    clipped = jnp.clip(ratio, 1 - algorithm.clip_low, 1 + algorithm.clip_high)
    surrogate = jnp.minimum(ratio * advantages, clipped * advantages)
    is_clipped = (clipped * advantages < ratio * advantages).astype(jnp.float32)
    loss = -jnp.sum(weights.loss * surrogate)
    metrics = {
        "policy_loss": loss,
        "entropy": jnp.sum(weights.mean * entropy),
        "ratio": jnp.sum(weights.mean * ratio),
        "clip_fraction": jnp.sum(weights.mean * is_clipped),
        "kl_sampler_k1": -jnp.sum(weights.mean * moved),
        "kl_sampler_k3": jnp.sum(weights.mean * (jnp.expm1(moved) - moved)),
    }
    if batch.reference_logprobs is not None:
        reference = jnp.where(mask, batch.reference_logprobs, 0.0)
        metrics["kl_reference"] = jnp.sum(weights.mean * estimate_kl("k3", logprobs, reference))
        if algorithm.kl == "loss":
            kl = jnp.sum(weights.loss * estimate_kl(algorithm.kl_estimator, logprobs, reference))
            metrics["kl_loss"] = kl
            loss = loss + algorithm.kl_coefficient * kl
    if algorithm.entropy_coefficient != 0:
        loss = loss - algorithm.entropy_coefficient * jnp.sum(weights.loss * entropy)
    return loss, {name: lax.stop_gradient(value) for name, value in metrics.items()}


def log_ratio(logprobs: Array, sampler_logprobs: Array, mask: Array) -> Array:
    """The log of each token's probability ratio to the sampler, 0 outside of the mask: float32[B, N]."""
    return jnp.clip(jnp.where(mask, logprobs - sampler_logprobs, 0.0), -_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def sequence_log_ratio(token_log_ratio: Array, mask: Array) -> Array:
    """The mean of a response's log ratios, in each of its tokens, with the gradient of the token's own: float32[B, N].

    That is GSPO-token's stop-gradient form, sg[s] · π_t / sg[π_t], in logarithms.
    """
    count = jnp.maximum(jnp.sum(mask.astype(jnp.float32), axis=1, keepdims=True), 1.0)
    mean = jnp.sum(jnp.where(mask, token_log_ratio, 0.0), axis=1, keepdims=True) / count
    return lax.stop_gradient(mean) + token_log_ratio - lax.stop_gradient(token_log_ratio)


def estimate_kl(estimator: Estimator, logprobs: Array, reference_logprobs: Array) -> Array:
    """An estimate of KL(policy ‖ reference) from each sampled token, by `Estimator`; k3 at most `MAX_KL`."""
    difference = reference_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return jnp.square(difference) / 2
    difference = jnp.clip(difference, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return jnp.minimum(jnp.expm1(difference) - difference, MAX_KL)
