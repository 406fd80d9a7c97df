"""Scoring: log-probabilities and entropies of given responses, in one forward pass."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32

from g1jax.typing import Array
from g1jax.vlm.config import Config
from g1jax.vlm.model import VLM, Frames, Params, Prefilled, bind, check_length, left_pad
from g1jax.vlm.output_layer import score_tokens
from g1jax.vlm.sampling import PLAIN, Sampling


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Score:
    """Log-probabilities and entropies of responses; 0 outside the response mask."""

    logprobs: Float32[Array, "B N"]
    entropy: Float32[Array, "B N"]  # of the distribution of each token, in nats


def score(
    config: Config,
    params: Params,
    prompt_tokens: Int32[Array, "n P"],
    prompt_mask: Bool[Array, "n P"],
    response_tokens: Int32[Array, "B N"],
    response_mask: Bool[Array, "B N"],
    frames: Frames | None,
    *,
    sampling: Sampling = PLAIN,
    visual_tokens: Float[Array, "n t D"] | None = None,
) -> Score:
    """Log-probabilities of responses under the sampling distribution.

    They equal those of `generate`. The responses to one prompt are in adjacent rows; with several of them, the prompt
    is computed once. Padding of prompts may be anywhere, that of responses is on the right. The logits of many tokens
    are computed in parts: see `output_layer`. `visual_tokens`: those of the frames, if already computed by `see`.
    `frames` None: prompts of text alone. To be jitted with `config` and `sampling` static.
    """
    check_length(config, prompt_tokens.shape[1], response_tokens.shape[1])
    model = bind(config, params)
    prompt_tokens, prompt_mask = left_pad(prompt_tokens, prompt_mask)
    if len(prompt_tokens) < len(response_tokens):
        prompts = model.prefill(prompt_tokens, prompt_mask, frames, visual_tokens)
        hidden = model.extend(prompts, response_tokens[:, :-1], response_mask[:, :-1])
    else:
        tokens = jnp.concatenate([prompt_tokens, response_tokens], axis=1)
        mask = jnp.concatenate([prompt_mask, response_mask], axis=1)
        length = prompt_tokens.shape[1]
        out = model.forward(tokens, mask, frames, length, start=length - 1, visual_tokens=visual_tokens)
        hidden = out.hidden[:, :-1]
    return _score(model, sampling, hidden, response_tokens, response_mask)


def prefill(
    config: Config,
    params: Params,
    prompt_tokens: Int32[Array, "n P"],
    prompt_mask: Bool[Array, "n P"],
    frames: Frames | None,
) -> Prefilled:
    """Prompts for `score_responses`. To be jitted with `config` static. `frames` None: prompts of text alone."""
    return bind(config, params).prefill(*left_pad(prompt_tokens, prompt_mask), frames)


def score_responses(
    config: Config,
    params: Params,
    prompts: Prefilled,
    response_tokens: Int32[Array, "B N"],
    response_mask: Bool[Array, "B N"],
    *,
    sampling: Sampling = PLAIN,
) -> Score:
    """As `score`, from prompts prefilled with the same params."""
    model = bind(config, params)
    hidden = model.extend(prompts, response_tokens[:, :-1], response_mask[:, :-1])
    return _score(model, sampling, hidden, response_tokens, response_mask)


def _score(
    model: VLM,
    sampling: Sampling,
    hidden: Float[Array, "B N D"],
    tokens: Int32[Array, "B N"],
    mask: Bool[Array, "B N"],
) -> Score:
    logprobs, entropies = score_tokens(sampling, hidden, model.output_kernel, tokens, is_tied=model.config.text.is_tied)
    return Score(jnp.where(mask, logprobs, 0.0), jnp.where(mask, entropies, 0.0))
