"""The states of a dataset, drawn as in the cold start, and its rows: one per state."""

import functools
import json
import zlib
from collections.abc import Iterator
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

_MAX_ENVS = 16
_ANSWER_BYTES = 128  # a longer answer counts as missing


@dataclass(frozen=True)
class StateSource:
    """Which states of a game a dataset has: with the game, this determines them."""

    num_states: int
    seed: int = 0
    random_moves: float = 0.5
    """Share of moves between states that are random; the others are the built-in teacher's."""

    @property
    def num_envs(self) -> int:
        """Boards played in parallel: fewer, hence played for longer, for a small dataset."""
        return min(_MAX_ENVS, int(np.ceil(np.sqrt(self.num_states))))

    def setting(self) -> dict[str, Any]:
        """As recorded in a log of exchanges."""
        return {"seed": self.seed, "random_moves": self.random_moves, "environments": self.num_envs}


def draw_states(game: Game[Any], source: StateSource) -> Iterator[StateBatch]:
    """The states, one batch per step; the same for every teacher."""
    env = Batch(game, source.num_envs, max_steps=EPISODE_STEPS)
    reset_key, step_key, _ = _split_keys(game, source.seed)
    states = _reset(env, reset_key)
    for step in range(-(-source.num_states // source.num_envs)):
        (next_states,), (demonstrations,) = next_demonstrations(
            (env,), source.random_moves, (states,), jax.random.fold_in(step_key, step)
        )
        count = min(source.num_envs, source.num_states - step * source.num_envs)
        boards, rationales, answers = (
            [text.decode(line) for line in np.asarray(column)[:count]]
            for column in (demonstrations.boards, demonstrations.rationales, demonstrations.answers)
        )
        replies = [Reply(*pair) for pair in zip(rationales, answers, strict=True)]
        yield StateBatch(step, states.states, np.asarray(demonstrations.frames), boards, replies)
        states = next_states


def make_examples(
    game: Game[Any], source: StateSource, respond: Respond, *, only_rewarded: bool, prompt: str = ""
) -> Iterator[Example | str]:
    """An example for every state, or the reason for leaving the state out. `prompt`: instead of the game's default."""
    level = json.dumps(describe_level(game))
    for batch in draw_states(game, source):
        replies = respond(batch)
        answers = [reply.answer if len(reply.answer.encode()) <= _ANSWER_BYTES else "" for reply in replies]
        answers += [""] * (source.num_envs - len(batch.boards))
        encoded = np.stack([text.encode(answer, _ANSWER_BYTES) for answer in answers])
        key = jax.random.fold_in(_split_keys(game, source.seed)[2], batch.step)
        actions, rewards, canonical = jax.device_get(_execute(game, batch.states, encoded, key))
        for i, reply in enumerate(replies):
            action, reward = int(actions[i]), float(rewards[i])
            if reply.problem:
                yield reply.problem
            elif only_rewarded and action == game.invalid_action:
                yield "without a move"
            elif only_rewarded and not reward > 0:
                yield "without a reward"
            else:
                response = compose(batch.boards[i], reply.rationale, text.decode(canonical[i]))
                board, frame = batch.boards[i], batch.frames[i]
                yield Example(game.id, level, prompt or game.prompt, board, response, action, reward, frame)


@functools.partial(jax.jit, static_argnums=0)
def _reset(env: Batch, key: Key) -> BatchState:
    return env.reset(key)


@functools.partial(jax.jit, static_argnums=0)
def _execute(game: Game[Any], states: Pytree, answers: Array, key: Key) -> tuple[Array, Array, Array]:
    """Executes answers, uint8[E, A]: actions int32[E], rewards float32[E], and the answers in canonical form."""
    actions = jax.vmap(game.parse)(answers)
    _, result = jax.vmap(game.step)(states, actions, jax.random.split(key, actions.shape[0]))
    return actions, jnp.asarray(result.reward), jax.vmap(game.write_action)(actions)


def _split_keys(game: Game[Any], seed: int) -> Key:
    """Keys for a game's resets, its steps and its moves; independent of the other games in the dataset."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), zlib.crc32(game.id.encode())), 3)
