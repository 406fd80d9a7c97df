"""A policy that plays: a model, its tokenizer and sampling; from a game's frames to responses in bytes."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Float32, Int32, UInt8

from g1jax import vlm
from g1jax.envs.core import Game
from g1jax.errors import ConfigError
from g1jax.rl.prompts import Templates, prompt_of
from g1jax.typing import Array, Keys
from g1jax.vlm import Params, Sampling, TokenBytes, Tokenizer
from g1jax.vlm.accumulation import join_rows, split_rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Responses:
    """n responses to each state; those to one state are in adjacent rows."""

    tokens: Int32[Array, "*B N"]
    mask: Bool[Array, "*B N"]  # the generated tokens, including the stop token
    logprobs: Float32[Array, "*B N"]  # under the sampling distribution
    bytes: UInt8[Array, "*B bytes"]


@dataclass(frozen=True)
class Policy:
    """The static part of a policy; params and the table of its tokens' bytes are arguments.

    A value: two policies with equal parts are equal and share compiled programs.

    >>> from g1jax import envs, vlm
    >>> from g1jax.teachers import token_budgets
    >>> tokenizer, game = vlm.Tokenizer.load("games"), envs.make("game_2048")
    >>> config = vlm.preset("nano", vocab_size=tokenizer.vocab_size)
    >>> policy = Policy(config, tokenizer, budgets=token_budgets(tokenizer, [game]))
    >>> len(policy.prompt_tokens(game)) > 16, policy.max_new_tokens(game) >= 40
    (True, True)
    """

    config: vlm.Config
    tokenizer: Tokenizer
    sampling: Sampling = vlm.PLAIN
    budget: int = 0
    """The maximum number of tokens in a response, for all games; 0: see `budgets`."""
    budgets: tuple[tuple[Game[Any], int], ...] = ()
    """The maximum for each game; see `teachers.token_budgets`."""
    templates: Templates = ()
    """Its prompts; games without one have their default."""

    def __post_init__(self) -> None:
        vlm.check_tokenizer(self.tokenizer, self.config)

    def table(self) -> TokenBytes:
        """The bytes of every token, as an argument of `respond`."""
        return vlm.token_bytes(self.tokenizer)

    @functools.cached_property
    def token_texts(self) -> Sequence[bytes]:
        """The bytes of each token, on the host."""
        return vlm.token_texts(self.tokenizer)

    @functools.cached_property
    def token_width(self) -> int:
        """Bytes of the longest token; a response of n tokens has at most n times as many."""
        return max(map(len, self.token_texts))

    def prompt_tokens(self, game: Game[Any]) -> Int32[np.ndarray, "P"]:
        """The prompt of a game, including its image tokens.

        Raises:
            ConfigError: the game's frames are not made of whole visual tokens.
            LevelError: the prompt's template has an unknown `{placeholder}`.
        """
        return _prompt_tokens(self.tokenizer, self.config.vision, self.templates, game)

    def max_new_tokens(self, game: Game[Any]) -> int:
        """The maximum number of tokens in a response to this game.

        Raises:
            ConfigError: the policy has no budget for this game.
        """
        if self.budget:
            return self.budget
        known = dict(self.budgets)
        ConfigError.require(game in known, f"no token budget for {game}: set budgets=token_budgets(tokenizer, games)")
        return known[game]

    def max_bytes(self, game: Game[Any]) -> int:
        """The maximum number of bytes in a response, whatever its tokens."""
        return self.token_width * self.max_new_tokens(game)

    def prompts(self, game: Game[Any], count: int) -> tuple[Int32[Array, "{count} P"], Bool[Array, "{count} P"]]:
        """The game's prompt, repeated, and its mask."""
        tokens = jnp.asarray(self.prompt_tokens(game))
        return jnp.tile(tokens[None], (count, 1)), jnp.ones((count, len(tokens)), bool)

    def respond(
        self,
        params: Params,
        table: TokenBytes,
        game: Game[Any],
        frames: UInt8[Array, "B H W 3"],
        key: Keys,
        *,
        num_samples: int = 1,
        num_parts: int = 1,
        starts: tuple[Int32[Array, "B S"], Bool[Array, "B S"]] | None = None,
    ) -> Responses:
        """Generates `num_samples` responses to each frame. To be called within a jit.

        `num_parts`: parts of the frames that are responded to one after the other, which takes less memory. `key` must
        then be a single one.

        `starts`: tokens that each response starts with and their mask, such as the true perception. They are part of
        `bytes` but not of `tokens`.
        """
        if num_parts > 1:
            rows = (split_rows(frames, num_parts), jax.random.split(key, num_parts), _split_starts(starts, num_parts))
            responses = lax.map(
                lambda part: self.respond(
                    params, table, game, part[0], part[1], num_samples=num_samples, starts=part[2]
                ),
                rows,
            )
            return jax.tree.map(lambda leaf: _join_groups(leaf, num_samples), responses)
        prompt_tokens, prompt_mask = self.prompts(game, frames.shape[0])
        if starts is not None:
            prompt_tokens = jnp.concatenate([prompt_tokens, starts[0]], axis=1)
            prompt_mask = jnp.concatenate([prompt_mask, starts[1]], axis=1)
        out = vlm.generate(
            self.config,
            params,
            prompt_tokens,
            prompt_mask,
            frames,
            key,
            max_new_tokens=self.max_new_tokens(game),
            sampling=self.sampling,
            stop_tokens=self.tokenizer.stop_tokens,
            pad_token=self.tokenizer.pad_token,
            num_samples=num_samples,
        )
        tokens, mask = out.response_tokens, out.response_mask
        text_tokens, text_mask = tokens, mask
        if starts is not None:
            text_tokens, text_mask = (
                jnp.concatenate([jnp.repeat(start, num_samples, axis=0), rest], axis=1)
                for start, rest in ((starts[0], tokens), (starts[1], mask))
            )
        num_bytes = self.token_width * text_tokens.shape[1]
        return Responses(tokens, mask, out.logprobs, vlm.to_bytes(table, text_tokens, text_mask, num_bytes))

    def score(
        self,
        params: Params,
        game: Game[Any],
        frames: UInt8[Array, "n H W 3"],
        tokens: Int32[Array, "B N"],
        mask: Bool[Array, "B N"],
        visual_tokens: Float[Array, "n t D"] | None = None,
    ) -> vlm.Score:
        """Log-probabilities and entropies of responses to frames.

        The responses to one frame are in adjacent rows. `visual_tokens`: those of the frames, if already computed by
        `vlm.see`.
        """
        prompts = self.prompts(game, tokens.shape[0])
        return vlm.score(
            self.config, params, *prompts, tokens, mask, frames, sampling=self.sampling, visual_tokens=visual_tokens
        )


def _split_starts(starts: Any, num_parts: int) -> Any:
    return jax.tree.map(lambda leaf: split_rows(leaf, num_parts), starts)


def _join_groups(leaf: Array, num_samples: int) -> Array:
    """[parts, rows, …] of parts of the groups, whose rows are adjacent -> [B, …]."""
    groups = leaf.reshape(leaf.shape[0], -1, num_samples, *leaf.shape[2:])
    return join_rows(groups).reshape(-1, *leaf.shape[2:])


@functools.lru_cache(maxsize=256)
def _prompt_tokens(tokenizer: Tokenizer, vision: vlm.VisionConfig, templates: Templates, game: Game[Any]) -> np.ndarray:
    rows, columns = vlm.grid_of(vision, *game.frame_shape[:2])
    return np.array(tokenizer.prompt(prompt_of(templates, game), rows * columns), np.int32)
