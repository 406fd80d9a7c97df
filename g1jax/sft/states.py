"""The states that a dataset is made of, drawn as the cold start draws them, and its rows: one a state."""

import functools
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.envs import text
from g1jax.envs.batch import EPISODE_STEPS, Batch, BatchState
from g1jax.envs.core import Game, describe_level
from g1jax.envs.response import compose
from g1jax.sft.dataset import Example
from g1jax.sft.demonstrations import next_demonstrations
from g1jax.teachers import Reply, Respond, StateBatch
from g1jax.typing import Array, Key, Pytree

_MOST_ENVIRONMENTS = 16
_ANSWER_BYTES = 128  # of an answer that is read; longer ones are none


@dataclass(frozen=True)
class StateSource:
    """Which states of a game a dataset has; all that decides them beside the game."""

    num_states: int
    seed: int = 0
    random_moves: float = 0.5
    """Share of moves between states that are random; the others are the built-in teacher's."""

    @property
    def num_envs(self) -> int:
        """Boards played side by side: fewer, and so longer play, where few states are asked for."""
        return min(_MOST_ENVIRONMENTS, int(np.ceil(np.sqrt(self.num_states))))

    def setting(self) -> dict[str, Any]:
        """As a log of exchanges notes it."""
        return {"seed": self.seed, "random_moves": self.random_moves, "environments": self.num_envs}


def draw_states(game: Game[Any], source: StateSource) -> Iterator[StateBatch]:
    """The states, step by step. The same for every teacher."""
    env = Batch(game, source.num_envs, max_steps=EPISODE_STEPS)
    begin_key, step_key, _ = _keys_of(game, source.seed)
    states = _reset(env, begin_key)
    for step in range(-(-source.num_states // source.num_envs)):
        step_states = states
        (after,), (made,) = next_demonstrations(
            (env,), source.random_moves, (states,), jax.random.fold_in(step_key, step)
        )
        count = min(source.num_envs, source.num_states - step * source.num_envs)
        boards, rationales, answers = (
            [text.decode(line) for line in np.asarray(column)[:count]]
            for column in (made.boards, made.rationales, made.answers)
        )
        replies = [Reply(*pair) for pair in zip(rationales, answers, strict=True)]
        yield StateBatch(step, step_states.states, np.asarray(made.frames), boards, replies)
        states = after


def make_examples(
    game: Game[Any], source: StateSource, respond: Respond, *, only_rewarded: bool
) -> Iterator[Example | str]:
    """A row for every state, or why it has none."""
    level = json.dumps(describe_level(game))
    for batch in draw_states(game, source):
        replies = respond(batch)
        answers = [reply.answer if len(reply.answer.encode()) <= _ANSWER_BYTES else "" for reply in replies]
        answers += [""] * (source.num_envs - len(batch.boards))
        asked = np.stack([text.encode(answer, _ANSWER_BYTES) for answer in answers])
        key = jax.random.fold_in(_keys_of(game, source.seed)[2], batch.step)
        actions, rewards, written = jax.device_get(_execute(game, batch.states, asked, key))
        for i, reply in enumerate(replies):
            action, reward = int(actions[i]), float(rewards[i])
            if reply.problem:
                yield reply.problem
            elif only_rewarded and action == game.invalid_action:
                yield "without a move"
            elif only_rewarded and not reward > 0:
                yield "without a reward"
            else:
                response = compose(batch.boards[i], reply.rationale, text.decode(written[i]))
                yield Example(game.id, level, game.prompt, batch.boards[i], response, action, reward, batch.frames[i])


def count_reasons(reasons: Sequence[str]) -> str:
    """`3 without a reward, 1 not answered`."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())


@functools.partial(jax.jit, static_argnums=0)
def _reset(env: Batch, key: Key) -> BatchState:
    return env.reset(key)


@functools.partial(jax.jit, static_argnums=0)
def _execute(game: Game[Any], states: Pytree, answers: Array, key: Key) -> tuple[Array, Array, Array]:
    """What answers, uint8[E, A], ask for and earn: actions int32[E], rewards float32[E], the answers in plain form."""
    actions = jax.vmap(game.parse)(answers)
    _, result = jax.vmap(game.step)(states, actions, jax.random.split(key, actions.shape[0]))
    return actions, jnp.asarray(result.reward), jax.vmap(game.write_action)(actions)


def _keys_of(game: Game[Any], seed: int) -> Key:
    """A game's own keys, whatever other games are in the dataset: of its first states, of the steps, of the moves."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), zlib.crc32(game.id.encode())), 3)
