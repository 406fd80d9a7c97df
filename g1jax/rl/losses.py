"""The policy's loss: clipped probability ratios times advantages, KL to the reference, entropy.

Everything is a sum over tokens with precomputed weights, so a minibatch may be split into microbatches: with their
parts of its weights, their losses, gradients and metrics add up to those of the minibatch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float32

from g1jax.rl.algorithm import Algorithm, Batch, Estimator
from g1jax.typing import Array

Metrics = dict[str, Float32[Array, ""]]
"""Named scalars."""

MAX_KL = 10.0
"""The release's bound on the k3 of a token."""
_MAX_LOG_RATIO = 20.0  # avoids infinities, which would make the gradient NaN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenWeights:
    """The weight of each token in sums over a minibatch; 0 outside the mask."""

    loss: Float32[Array, "*B N"]  # in the loss
    mean: Float32[Array, "*B N"]  # in a mean over tokens


def token_weights(algorithm: Algorithm, response_mask: Bool[Array, "B N"]) -> TokenWeights:
    """The weights of a minibatch's tokens for the algorithm's aggregation.

    Rows without tokens are not counted. If there are no tokens at all, the weights are 0.
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
    logprobs: Float32[Array, "B N"],
    entropy: Float32[Array, "B N"],
    batch: Batch,
    advantages: Float32[Array, "B N"],
    weights: TokenWeights | None = None,
) -> tuple[Float32[Array, ""], Metrics]:
    """The loss and metrics, from the current policy's logprobs and entropy of the batch's tokens and their advantages.

    `weights` are the `token_weights` of the batch, or of a minibatch's rows if the batch is a microbatch of it. The
    metrics are weighted sums over tokens: `policy_loss`, `entropy`, `ratio`, `clip_fraction` (tokens whose ratio is
    clipped), `kl_sampler_k1` and `kl_sampler_k3` (from the sampling policy to the current one); with a reference also
    `kl_reference` (k3), and, if the KL is in the loss, `kl_loss` before its coefficient.

    Raises:
        AlgorithmError: the algorithm has a KL and the batch has no reference.
    """
    algorithm.check_reference(batch)
    mask = batch.response_mask
    weights = token_weights(algorithm, mask) if weights is None else weights
    # Masked first: a NaN outside the mask would get through the gradient of a later `where`.
    logprobs, entropy = jnp.where(mask, logprobs, 0.0), jnp.where(mask, entropy, 0.0)
    advantages = lax.stop_gradient(jnp.where(mask, advantages, 0.0))
    log_ratio = jnp.clip(jnp.where(mask, logprobs - batch.logprobs, 0.0), -_MAX_LOG_RATIO, _MAX_LOG_RATIO)  # [B, N]
    ratio = jnp.exp(sequence_log_ratio(log_ratio, mask) if algorithm.ratio == "sequence" else log_ratio)
    clipped = jnp.clip(ratio, 1 - algorithm.clip_low, 1 + algorithm.clip_high)
    surrogate = jnp.minimum(ratio * advantages, clipped * advantages)
    is_clipped = (clipped * advantages < ratio * advantages).astype(jnp.float32)
    loss = -jnp.sum(weights.loss * surrogate)
    metrics = {
        "policy_loss": loss,
        "entropy": jnp.sum(weights.mean * entropy),
        "ratio": jnp.sum(weights.mean * ratio),
        "clip_fraction": jnp.sum(weights.mean * is_clipped),
        "kl_sampler_k1": -jnp.sum(weights.mean * log_ratio),
        "kl_sampler_k3": jnp.sum(weights.mean * (jnp.expm1(log_ratio) - log_ratio)),
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


def sequence_log_ratio(token_log_ratio: Float32[Array, "B N"], mask: Bool[Array, "B N"]) -> Float32[Array, "B N"]:
    """The mean of a response's log ratios at each of its tokens, with the gradient of the token's own.

    This is the log of GSPO-token's stop-gradient form, sg[s] · π_t / sg[π_t].
    """
    count = jnp.maximum(jnp.sum(mask.astype(jnp.float32), axis=1, keepdims=True), 1.0)
    mean = jnp.sum(jnp.where(mask, token_log_ratio, 0.0), axis=1, keepdims=True) / count
    return lax.stop_gradient(mean) + token_log_ratio - lax.stop_gradient(token_log_ratio)


def estimate_kl(
    estimator: Estimator, logprobs: Float32[Array, "*B"], reference_logprobs: Float32[Array, "*B"]
) -> Float32[Array, "*B"]:
    """An estimate of KL(policy ‖ reference) from each sampled token, see `Estimator`; k3 is at most `MAX_KL`."""
    difference = reference_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return jnp.square(difference) / 2
    difference = jnp.clip(difference, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return jnp.minimum(jnp.expm1(difference) - difference, MAX_KL)
