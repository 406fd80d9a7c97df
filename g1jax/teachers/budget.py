"""How many tokens a response takes, measured on the teacher's."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from g1jax.envs import text
from g1jax.envs.core import Game
from g1jax.envs.response import compose
from g1jax.teachers.core import teach
from g1jax.typing import Key, Pytree
from g1jax.vlm import Tokenizer

_NUM_STATES = 64
_SPARE = 1.25


def token_budgets(tokenizer: Tokenizer, games: Sequence[Game[Any]]) -> tuple[tuple[Game[Any], int], ...]:
    """The tokens that a response may have, by game: the longest of 64 demonstrations and a quarter more, in eights."""
    return tuple((game, _budget(tokenizer, game)) for game in games)


@functools.lru_cache(maxsize=256)
def _budget(tokenizer: Tokenizer, game: Game[Any]) -> int:
    longest = max(len(tokens) for tokens in tokenizer.encode_batch(sample_responses(game)))
    return -(-int(_SPARE * longest) // 8) * 8


def sample_responses(game: Game[Any], count: int = _NUM_STATES) -> list[str]:
    """Whole responses to some first states of a game, as its teacher gives them."""

    @jax.jit
    def respond(key: Key) -> Pytree:
        def one(key: Key) -> Pytree:
            state = game.reset(key)
            action, rationale = teach(game, state, key)
            return game.describe(state), rationale, game.write_action(action)

        return jax.vmap(one)(jax.random.split(key, count))

    columns = [np.asarray(column) for column in respond(jax.random.key(0))]
    return [compose(*map(text.decode, row)) for row in zip(*columns, strict=True)]
