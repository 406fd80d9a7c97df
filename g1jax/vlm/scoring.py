"""Scoring: log-probabilities and entropies of given responses, in one forward pass."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32

from g1jax.typing import Array
from g1jax.vlm.config import Config
from g1jax.vlm.model import VLM, Frames, Params, bind, check_length, left_pad
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
    is computed once. The logits of many tokens are computed in parts: see `output_layer`.
    `visual_tokens`: those of the frames, if already computed by `see`. To be jitted with `config` and `sampling`
    static. `frames` None: prompts of text alone.
    """
    check_length(config, prompt_tokens.shape[1], response_tokens.shape[1])
    model = bind(config, params)
    prompt_tokens, prompt_mask = left_pad(prompt_tokens, prompt_mask)
    given = prompt_tokens, prompt_mask, response_tokens, response_mask
    is_shared = prompt_tokens.shape[0] < response_tokens.shape[0]
    hidden = (_after_shared_prompts if is_shared else _after_prompts)(model, *given, frames, visual_tokens)
    logprobs, entropies = score_tokens(
        sampling, hidden, model.output_kernel, response_tokens, is_tied=config.text.is_tied
    )
    return Score(jnp.where(response_mask, logprobs, 0.0), jnp.where(response_mask, entropies, 0.0))


def _after_prompts(
    model: VLM,
    prompt_tokens: Int32[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    response_tokens: Int32[Array, "B N"],
    response_mask: Bool[Array, "B N"],
    frames: Frames | None,
    visual_tokens: Float[Array, "n t D"] | None,
) -> Float[Array, "B N D"]:
    """The hidden states that predict the tokens of responses, each with a prompt of its own."""
    tokens = jnp.concatenate([prompt_tokens, response_tokens], axis=1)
    mask = jnp.concatenate([prompt_mask, response_mask], axis=1)
    length = prompt_tokens.shape[1]
    out = model.forward(tokens, mask, frames, length, start=length - 1, visual_tokens=visual_tokens)
    return out.hidden[:, :-1]


def _after_shared_prompts(
    model: VLM,
    prompt_tokens: Int32[Array, "n P"],
    prompt_mask: Bool[Array, "n P"],
    response_tokens: Int32[Array, "B N"],
    response_mask: Bool[Array, "B N"],
    frames: Frames | None,
    visual_tokens: Float[Array, "n t D"] | None,
) -> Float[Array, "B N D"]:
    """The same for B / n adjacent responses to each prompt."""
    last = prompt_tokens.shape[1] - 1
    prompt = model.forward(prompt_tokens, prompt_mask, frames, start=last, visual_tokens=visual_tokens)
    first = jnp.repeat(prompt.hidden, response_tokens.shape[0] // prompt_tokens.shape[0], axis=0)
    if response_tokens.shape[1] == 1:
        return first
    rest = model.extend(prompt, prompt_mask, response_tokens[:, :-1], response_mask[:, :-1])
    return jnp.concatenate([first, rest], axis=1)
