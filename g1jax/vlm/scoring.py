"""Scoring: log-probabilities and entropies of given responses, in one forward pass."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32

from g1jax.typing import Array
from g1jax.vlm.config import Config
from g1jax.vlm.model import Frames, Params, bind, check_length, left_pad
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

    They equal those of `generate`. The logits of many tokens are computed in parts: see `output_layer`.
    `visual_tokens`: those of the frames, if already computed by `see`. To be jitted with `config` and `sampling`
    static. `frames` None: prompts of text alone.
    """
    check_length(config, prompt_tokens.shape[1], response_tokens.shape[1])
    model = bind(config, params)
    prompt_tokens, prompt_mask = left_pad(prompt_tokens, prompt_mask)
    prompt_length = prompt_tokens.shape[1]
    tokens = jnp.concatenate([prompt_tokens, response_tokens], axis=1)
    mask = jnp.concatenate([prompt_mask, response_mask], axis=1)
    out = model.forward(tokens, mask, frames, prompt_length, start=prompt_length - 1, visual_tokens=visual_tokens)
    logprobs, entropies = score_tokens(
        sampling, out.hidden[:, :-1], model.output_kernel, response_tokens, is_tied=config.text.is_tied
    )
    return Score(jnp.where(response_mask, logprobs, 0.0), jnp.where(response_mask, entropies, 0.0))
