"""Token budgets for responses, measured on the teacher's."""

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
_MARGIN = 1.25


Budgets = tuple[tuple[Game[Any], int], ...]


def token_budgets(tokenizer: Tokenizer, games: Sequence[Game[Any]], known: Budgets = ()) -> Budgets:
    """The maximum tokens of a response, by game: 1.25 times the longest of 64 demonstrations, rounded up to eights.

    Measuring one compiles the teacher's program of its game; those that are `known` come first, as they are.
    """
    measured = dict(known)
    return known + tuple((game, _budget(tokenizer, game)) for game in games if game not in measured)


@functools.lru_cache(maxsize=256)
def _budget(tokenizer: Tokenizer, game: Game[Any]) -> int:
    longest = max(len(tokens) for tokens in tokenizer.encode_batch(sample_responses(game)))
    return -(-int(_MARGIN * longest) // 8) * 8


def sample_responses(game: Game[Any], count: int = _NUM_STATES) -> list[str]:
    """The teacher's whole responses to initial states of a game."""

    @jax.jit
    def respond(key: Key) -> Pytree:
        def one(key: Key) -> Pytree:
            state = game.reset(key)
            action, rationale = teach(game, state, key)
            return game.describe(state), rationale, game.write_action(action)

        return jax.vmap(one)(jax.random.split(key, count))

    columns = [np.asarray(column) for column in respond(jax.random.key(0))]
    return [compose(*map(text.decode, row)) for row in zip(*columns, strict=True)]
