"""A policy that plays: a model, its tokenizer and sampling; from a game's states to responses in bytes."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, UInt8

from g1jax import vlm
from g1jax.envs.core import Game
from g1jax.errors import ConfigError
from g1jax.rl.observation import CAPTION, PICTURE, Observation, board_tokens, num_board_tokens
from g1jax.rl.prompts import Templates, prompt_of
from g1jax.typing import Array, Keys, Pytree
from g1jax.vlm import Params, Sampling, TokenBytes, Tokenizer
from g1jax.vlm.ordering import after


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
    observation: Observation = PICTURE
    """What it is shown: pictures, captions, parts of the prompts."""
    compact_every: int = 0
    """Tokens between cuts of the decoded batch to the responses that still run; 0: never. See `vlm.generate`."""

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
        """The prompt of a game, including its image tokens, without a caption's board.

        Raises:
            ConfigError: the game's frames cannot be resized to whole visual tokens.
            LevelError: the prompt's template has an unknown `{placeholder}`, or lacks a part that is left out.
        """
        return np.concatenate(self._prompt_ends(game))

    def prompt_length(self, game: Game[Any]) -> int:
        """The length of a game's prompts, including the places for a caption's board; errors as `prompt_tokens`."""
        caption = num_board_tokens(self.tokenizer, game) if self.observation.caption else 0
        return len(self.prompt_tokens(game)) + caption

    def _prompt_ends(self, game: Game[Any]) -> tuple[np.ndarray, np.ndarray]:
        return _prompt_ends(self.tokenizer, self.config.vision, self.templates, self.observation, game)

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

    def boards(self, game: Game[Any], states: Pytree) -> UInt8[Array, "B L"] | None:
        """The board texts that its captions need, of a batch of states; None without captions."""
        return jax.vmap(game.describe)(states) if self.observation.caption else None

    def prompts(
        self, game: Game[Any], count: int, boards: UInt8[Array, "n L"] | None = None
    ) -> tuple[Int32[Array, "{count} P"], Bool[Array, "{count} P"]]:
        """The game's prompt, repeated, and its mask; with captions, a prompt for each board, in adjacent rows.

        Raises:
            ConfigError: as `prompt_tokens`; or there are no boards for captions.
        """
        if not self.observation.caption:
            tokens = jnp.asarray(self._prompt_ends(game)[0])
            return jnp.tile(tokens[None], (count, 1)), jnp.ones((count, len(tokens)), bool)
        if boards is None:
            raise ConfigError("a policy with captions needs the boards: see Policy.boards")
        board, board_mask = board_tokens(self.tokenizer, game, boards)
        before, after = (jnp.tile(jnp.asarray(end)[None], (len(boards), 1)) for end in self._prompt_ends(game))
        prompts = jnp.concatenate([before, board, after], axis=1)
        mask = jnp.concatenate([jnp.ones_like(before, bool), board_mask, jnp.ones_like(after, bool)], axis=1)
        repeats = count // len(boards)
        return jnp.repeat(prompts, repeats, axis=0), jnp.repeat(mask, repeats, axis=0)

    def _frames(self, frames: UInt8[Array, "n H W 3"] | None) -> UInt8[Array, "n H W 3"] | None:
        """The frames that the model is given."""
        if not self.observation.picture:
            return None
        ConfigError.require(frames is not None, "a policy that is shown pictures needs frames")
        return frames

    def respond(
        self,
        params: Params,
        table: TokenBytes,
        game: Game[Any],
        frames: UInt8[Array, "B H W 3"] | None,
        key: Keys,
        *,
        num_samples: int = 1,
        starts: tuple[Int32[Array, "B S"], Bool[Array, "B S"]] | None = None,
        boards: UInt8[Array, "B L"] | None = None,
    ) -> Responses:
        """Generates `num_samples` responses to each state. To be called within a jit.

        Args:
            params: The weights.
            table: The bytes of every token.
            game: The game of the states.
            frames: Their pictures; not read by a policy that is shown none.
            key: A random key for all, or one per response.
            num_samples: Responses to each state.
            starts: Tokens that each response starts with and their mask, such as the true perception. They are part of
                `bytes` but not of `tokens`.
            boards: The board texts for captions, see `boards`.
        """
        prompt_tokens, prompt_mask = self.prompts(game, _num_states(frames, boards), boards)
        if starts is not None:
            prompt_tokens = jnp.concatenate([prompt_tokens, starts[0]], axis=1)
            prompt_mask = jnp.concatenate([prompt_mask, starts[1]], axis=1)
        out = vlm.generate(
            self.config,
            params,
            prompt_tokens,
            prompt_mask,
            self._frames(frames),
            key,
            max_new_tokens=self.max_new_tokens(game),
            num_samples=num_samples,
            **self._decoding,
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

    def respond_jointly(
        self,
        params: Params,
        table: TokenBytes,
        games: Sequence[Game[Any]],
        frames: Sequence[UInt8[Array, "_ _ _ 3"] | None],
        keys: Sequence[Keys],
        *,
        num_samples: int = 1,
        boards: Sequence[UInt8[Array, "_ _"] | None],
    ) -> tuple[Responses, ...]:
        """`respond` for as many states of each of several games, whose responses are decoded in one loop.

        frames, keys, boards: one of each game. Responses equal those of `respond` with one key per response, the game's
        own key split, which is also what a policy with `compact_every` makes of a single key.
        """
        params = vlm.as_computed(self.config, params)
        counts = [_num_states(*shown) for shown in zip(frames, boards, strict=True)]
        ConfigError.require(len(set(counts)) == 1, f"{counts} states of the games: expected equal numbers")
        count, prompts = counts[0], list[vlm.Prefilled]()
        for game, *shown in zip(games, frames, boards, strict=True):
            held = after(prompts[-1].hidden, shown) if prompts else shown  # games run in order: see `vlm.ordering`
            prompts.append(self.prefill(params, game, *held))
        rows = [key if key.ndim else jax.random.split(key, count * num_samples) for key in keys]
        budgets = [self.max_new_tokens(game) for game in games]
        out = vlm.generate_from(
            self.config,
            params,
            vlm.alternating(prompts),
            jnp.stack([key.reshape(count, num_samples) for key in rows], axis=1).reshape(-1),
            max_new_tokens=max(budgets),
            num_samples=num_samples,
            limits=np.tile(np.array(budgets, np.int32), count),
            **self._decoding,
        )
        responses = []
        for i, budget in enumerate(budgets):
            parts = (
                x.reshape(count, len(games), num_samples, -1)[:, i, :, :budget].reshape(-1, budget)
                for x in (out.response_tokens, out.response_mask, out.logprobs)
            )
            tokens, mask, logprobs = parts
            text = vlm.to_bytes(table, tokens, mask, self.token_width * budget)
            responses.append(Responses(tokens, mask, logprobs, text))
        return tuple(responses)

    @property
    def _decoding(self) -> dict[str, Any]:
        return {
            "sampling": self.sampling,
            "stop_tokens": self.tokenizer.stop_tokens,
            "pad_token": self.tokenizer.pad_token,
            "compact_every": self.compact_every,
        }

    def score(
        self,
        params: Params,
        game: Game[Any],
        frames: UInt8[Array, "n H W 3"] | None,
        tokens: Int32[Array, "B N"],
        mask: Bool[Array, "B N"],
        visual_tokens: Float[Array, "n t D"] | None = None,
        boards: UInt8[Array, "n L"] | None = None,
    ) -> vlm.Score:
        """Log-probabilities and entropies of responses to states.

        The responses to one state are in adjacent rows; their prompt is computed once. `frames` and `boards`: as for
        `respond`. `visual_tokens`: those of the frames, if already computed by `vlm.see`.
        """
        count = _num_states(frames, boards) or tokens.shape[0]
        prompts, frames = self.prompts(game, count, boards), self._frames(frames)
        return vlm.score(
            self.config, params, *prompts, tokens, mask, frames, sampling=self.sampling, visual_tokens=visual_tokens
        )

    def prefill(
        self,
        params: Params,
        game: Game[Any],
        frames: UInt8[Array, "n H W 3"] | None,
        boards: UInt8[Array, "n L"] | None = None,
    ) -> vlm.Prefilled:
        """The prompts of states, computed for `score_responses`; with the same params, both together equal `score`."""
        prompts = self.prompts(game, _num_states(frames, boards), boards)
        return vlm.prefill(self.config, params, *prompts, self._frames(frames))

    def score_responses(
        self, params: Params, prompts: vlm.Prefilled, tokens: Int32[Array, "B N"], mask: Bool[Array, "B N"]
    ) -> vlm.Score:
        """Log-probabilities and entropies of responses; those to one state are in adjacent rows."""
        return vlm.score_responses(self.config, params, prompts, tokens, mask, sampling=self.sampling)


def _num_states(frames: Array | None, boards: Array | None) -> int:
    """The number of states, one row each; 0 if neither is given."""
    return next((len(given) for given in (frames, boards) if given is not None), 0)


@functools.lru_cache(maxsize=256)
def _prompt_ends(
    tokenizer: Tokenizer, vision: vlm.VisionConfig, templates: Templates, observation: Observation, game: Game[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before and after a caption's board; all are before it if there is none."""
    size = math.prod(vlm.grid_of(vision, *game.frame_shape[:2])) if observation.picture else 0
    text = prompt_of(templates, game, observation)
    has_caption = observation.caption
    ends = tokenizer.prompt_around(text + CAPTION, size) if has_caption else (tokenizer.prompt(text, size), [])
    before, after = (np.array(end, np.int32) for end in ends)
    return before, after
