"""The cold start's data, fresh on the fly: states, and what the teacher sees, thinks and does in them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax import keys
from g1jax.envs import text
from g1jax.envs.core import Game
from g1jax.envs.vector import VecEnv, VecState
from g1jax.rl.policy import Policy, lesson_text
from g1jax.sft.facts import Facts, facts_of
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm.sharding import BATCH, constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lesson:
    """Responses of one game to learn by heart."""

    frames: Array  # uint8[B, H, W, 3]
    tokens: Array  # int32[B, N]
    mask: Array  # bool[B, N], what is not padding
    is_perception: Array  # bool[B, N], the tokens that say what is on the board
    facts: Facts | None = None  # None: not asked for


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Script:
    """Lessons before they are tokens."""

    frames: Array  # uint8[B, H, W, 3]
    boards: Array  # uint8[B, L], true board texts
    words: Array  # uint8[B, T], why
    answers: Array  # uint8[B, A], the move
    facts: Facts | None


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="has_facts")
def next_scripts(
    vecs: tuple[VecEnv, ...], random_moves: float, states: tuple[VecState, ...], key: Key, *, has_facts: bool = False
) -> tuple[tuple[VecState, ...], tuple[Script, ...]]:
    """A script for every environment's state, and the states after a move: a random legal one or the teacher's."""
    after, scripts = [], []
    for i, (vec, state) in enumerate(zip(vecs, states, strict=True)):
        teach_key, move_key, coin_key, step_key = jax.random.split(keys.of_game(key, i), 4)
        (game,), (inner,) = vec.games, state.games
        actions, words = jax.vmap(game.teach)(inner, jax.random.split(teach_key, vec.num_envs))
        answers = jax.vmap(game.write_action)(actions)
        boards, words, answers = map(_everywhere, (vec.describe(state), words, answers))
        facts = None
        if has_facts:
            facts = jax.tree.map(lambda leaf: constrain(leaf, BATCH, None, None), facts_of(game, inner))
        scripts.append(Script(constrain(vec.render(state), BATCH, None, None, None), boards, words, answers, facts))
        # From environments that the teacher plays alone to such that play at random: states of all kinds.
        shares = jnp.clip(jnp.linspace(0.0, 2.0 * random_moves, vec.num_envs, dtype=jnp.float32), 0.0, 1.0)
        is_random = jax.random.bernoulli(coin_key, shares)
        actions = jnp.where(is_random, vec.sample_actions(state, move_key), actions)
        after.append(vec.step(state, actions, step_key)[0])
    return tuple(after), tuple(scripts)


def _everywhere(x: Array) -> Array:
    """Whole on every device of the mesh, so that every process can read it."""
    return constrain(x, *[None] * x.ndim)


def to_lesson(
    policy: Policy, game: Game[Any], script: Script, spread: Callable[[Pytree], Pytree] = jax.device_put
) -> Lesson:
    """A game's script in tokens; `spread` puts the tokens where the frames are."""
    texts = [
        [text.decode(line) for line in np.asarray(column)] for column in (script.boards, script.words, script.answers)
    ]
    responses = [lesson_text(*row) for row in zip(*texts, strict=True)]
    tokens, mask, is_perception = spread(tokenize(policy, game, responses))
    return Lesson(script.frames, tokens, mask, is_perception, script.facts)


def tokenize(policy: Policy, game: Game[Any], responses: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole responses as tokens: int32[B, N], which are there, bool[B, N], and which are of the perception, bool[B, N].

    The perception is what the game reads, with its opening tag. A token that is partly within it counts as part of it.

    Raises:
        ConfigError: a response is longer than the policy may write.
    """
    tokenizer = policy.tokenizer
    lines = [[*tokens, tokenizer.end_token] for tokens in tokenizer.encode_batch(responses)]
    tokens, mask = tokenizer.pad_batch(lines, side="right", length=policy.max_new_tokens(game))
    is_perception = np.zeros_like(mask)
    for row, line in enumerate(lines):
        is_perception[row, slice(*tokens_of("perception", [policy.token_texts[token] for token in line]))] = True
    return tokens, mask, is_perception


def tokens_of(tag: str, pieces: Sequence[bytes]) -> tuple[int, int]:
    """Which pieces of a text hold its first `<tag>…`, without the closing tag: from the first until before the second.

    The fewest that cover it; (0, 0) where there is none. Offsets are in bytes of the text that the pieces make, so it
    does not matter how a tokenizer splits tags, spaces or characters, or whether it normalized the text first.

    >>> tokens_of("perception", [b"<perc", b"eption>", b"2 | ", b"4</", b"perception>", b"<think>"])
    (0, 4)
    """
    response = b"".join(pieces)
    start = response.find(f"<{tag}>".encode())
    end = response.find(f"</{tag}>".encode(), start + len(tag) + 2)
    if start < 0 or end < 0:
        return 0, 0
    ends = np.cumsum([len(piece) for piece in pieces])
    return int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, end - 1, side="right")) + 1
