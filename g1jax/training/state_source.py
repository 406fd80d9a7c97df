"""Where the states of RL come from: random walks, or the policy's own play."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from g1jax.envs.batch import Batch, BatchState
from g1jax.training.placement import Placement
from g1jax.typing import Array, Key


@dataclass(frozen=True)
class StateSource:
    """Where RL's states come from."""

    name: Literal["walk", "legal_walk", "play", "hard_play"]
    envs: tuple[Batch, ...]  # one a game
    walk_steps: tuple[int, ...]  # one a game
    placement: Placement

    @property
    def is_play(self) -> bool:
        """Whether states come from the policy's own play, which continues from iteration to iteration."""
        return self.name in ("play", "hard_play")


def walk(source: StateSource, index: int, key: Key) -> BatchState:
    """Fresh states of a game after random walks; legal walks are each of a random length."""
    env, num_steps, is_legal = source.envs[index], source.walk_steps[index], source.name != "walk"
    reset_key, walk_key, length_key = jax.random.split(key, 3)
    lengths = jnp.int32(num_steps)
    if is_legal:
        lengths = jax.random.randint(length_key, (env.num_envs,), 0, num_steps + 1, jnp.int32)
    state = env.reset(reset_key)
    state = jax.lax.with_sharding_constraint(state, jax.tree.map(source.placement.row_sharding, state))
    return env.random_walk(state, walk_key, lengths, legal=is_legal) if num_steps else state


def continue_play(
    source: StateSource, index: int, envs: BatchState, is_legal: Array, actions: Array, key: Key, escape_key: Key
) -> BatchState:
    """A game's environments after these actions, int32[B]. `is_legal`: of all responses to their states, bool[B*n]."""
    env = source.envs[index]
    if source.name == "hard_play":
        actions = hard_actions(env, envs.states, is_legal.reshape(env.num_envs, -1), actions, escape_key)
    return env.step(envs, actions, key)[0]


def hard_actions(env: Batch, states: Any, is_legal: Array, actions: Array, key: Key) -> Array:
    """The actions of `hard_play`, int32[B], from those of `play` and the legality of all responses, bool[B, n].

    Where some responses are illegal, it is the invalid action: the state returns. It counts as a step, so an episode
    that is stuck is still truncated. Where all are illegal, no response is better than another and a random legal move
    is taken.
    """
    kept = jnp.where(jnp.any(is_legal, axis=1), env.game.invalid_action, env.sample_actions(states, key))
    return jnp.where(jnp.all(is_legal, axis=1), actions, kept)
