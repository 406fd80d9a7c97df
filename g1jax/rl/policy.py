"""A policy that plays: a model, its tokenizer, and how it samples; from a game's states to responses in bytes."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax import vlm
from g1jax.envs import text
from g1jax.envs.core import Game
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params, Sampling, TokenBytes, Tokenizer

_LESSONS_TO_MEASURE = 64
_SPARE = 1.25


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Responses:
    """What a policy wrote to each state, or n times to each: those to one state stand together."""

    tokens: Array  # int32[B·n, N]
    mask: Array  # bool[B·n, N], the tokens written, the stop token too
    logprobs: Array  # float32[B·n, N], under the distribution sampled from
    bytes: Array  # uint8[B·n, L]


@dataclass(frozen=True, eq=False)
class Policy:
    """What is static about a policy; its weights, and the table of what its tokens say, are arguments.

    >>> from g1jax import envs, vlm
    >>> tokenizer = vlm.Tokenizer.load("games")
    >>> policy = Policy(vlm.preset("nano", vocab_size=tokenizer.vocab_size), tokenizer)
    >>> game = envs.make("game_2048")
    >>> len(policy.prompt_tokens(game)) > 16, policy.max_new_tokens(game) >= 40
    (True, True)
    """

    config: vlm.Config
    tokenizer: Tokenizer
    sampling: Sampling = vlm.PLAIN
    budget: Mapping[str, int] | int = 0
    """Tokens a response may have, for all games or by id. 0: what a lesson of the game takes, and a quarter more."""
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        vlm.check_tokenizer(self.tokenizer, self.config)

    def table(self) -> TokenBytes:
        """What every token says."""
        return vlm.token_bytes(self.tokenizer)

    @functools.cached_property
    def token_texts(self) -> Sequence[bytes]:
        """The text of each token, on the host."""
        return vlm.token_texts(self.tokenizer)

    @functools.cached_property
    def token_width(self) -> int:
        """Bytes of the longest token: no response of n tokens has more than n times as many."""
        return max(map(len, self.token_texts))

    def prompt_tokens(self, game: Game[Any]) -> np.ndarray:
        """The prompt of a game, its image tokens included: int32[P].

        Raises:
            ConfigError: the game's frames are not made of whole visual tokens.
        """
        key = ("prompt", game)
        if key not in self._known:
            rows, columns = vlm.grid_of(self.config.vision, *game.frame_shape[:2])
            tokens = self.tokenizer.prompt(game.prompt, rows * columns)
            self._known[key] = np.array(tokens, np.int32)
        known: np.ndarray = self._known[key]
        return known

    def max_new_tokens(self, game: Game[Any]) -> int:
        """How many tokens a response to this game may have."""
        budget = self.budget if isinstance(self.budget, int) else self.budget.get(game.id, 0)
        if budget:
            return budget
        key = ("budget", game)
        if key not in self._known:
            longest = max(len(tokens) for tokens in self.tokenizer.encode_batch(sample_lessons(game)))
            self._known[key] = -(-int(_SPARE * longest) // 8) * 8
        known: int = self._known[key]
        return known

    def max_bytes(self, game: Game[Any]) -> int:
        """How many bytes a response may have, all of which are read: whatever tokens it is made of, it fits."""
        return self.token_width * self.max_new_tokens(game)

    def prompts(self, game: Game[Any], count: int) -> tuple[Array, Array]:
        """The game's prompt so many times: int32[count, P], bool[count, P]."""
        tokens = jnp.asarray(self.prompt_tokens(game))
        return jnp.tile(tokens[None], (count, 1)), jnp.ones((count, len(tokens)), bool)

    def respond(
        self,
        params: Params,
        table: TokenBytes,
        game: Game[Any],
        frames: Array,
        key: Key,
        *,
        num_samples: int = 1,
        starts: tuple[Array, Array] | None = None,
    ) -> Responses:
        """Looks at frames, uint8[B, H, W, 3], and writes `num_samples` responses to each. To be called within a jit.

        `starts`: tokens that each response begins with, int32[B, S], bool[B, S], such as the true perception; they are
        part of `bytes`, and not of the tokens.
        """
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
        said, is_said = tokens, mask
        if starts is not None:
            said, is_said = (
                jnp.concatenate([jnp.repeat(start, num_samples, axis=0), rest], axis=1)
                for start, rest in ((starts[0], tokens), (starts[1], mask))
            )
        num_bytes = self.token_width * said.shape[1]
        return Responses(tokens, mask, out.logprobs, vlm.to_bytes(table, said, is_said, num_bytes))

    def score(
        self, params: Params, game: Game[Any], frames: Array, tokens: Array, mask: Array, seen: Array | None = None
    ) -> vlm.Score:
        """What a policy thinks of responses, int32[B·n, N], bool[B·n, N], to frames, uint8[B, H, W, 3].

        Those to one frame stand together. `seen`: the frames' visual tokens, if they are there already.
        """
        prompt_tokens, prompt_mask = self.prompts(game, tokens.shape[0])
        return vlm.score(
            self.config, params, prompt_tokens, prompt_mask, tokens, mask, frames, sampling=self.sampling, seen=seen
        )


def lesson_text(board: str, words: str, answer: str) -> str:
    """A whole response: what is on the board, why which move, the move."""
    return f"<perception>{board}</perception><think>{words}</think>{answer}"


def sample_lessons(game: Game[Any], count: int = _LESSONS_TO_MEASURE) -> list[str]:
    """Whole responses to some first states of a game, as its teacher gives them."""

    @jax.jit
    @jax.vmap
    def teach(key: Key) -> Pytree:
        state = game.reset(key)
        action, words = game.teach(state, key)
        return game.describe(state), words, game.write_action(action)

    def first_keys() -> Key:
        return jax.random.split(jax.random.key(0), count)

    # Traced under `ensure_compile_time_eval`, every operation on constants would be compiled and run by itself.
    compiled = teach.lower(jax.eval_shape(first_keys)).compile()
    with jax.ensure_compile_time_eval():  # a caller may be tracing
        columns = [np.asarray(column) for column in compiled(first_keys())]
    return [lesson_text(*map(text.decode, row)) for row in zip(*columns, strict=True)]
