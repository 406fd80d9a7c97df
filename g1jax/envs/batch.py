"""A batch: one game, thousands of times. Autoreset, random walks, branches, frames and text, by `vmap`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from g1jax.envs import pool, prng
from g1jax.envs.checks import as_int32, check_bytes
from g1jax.envs.core import Game, TracedLevel
from g1jax.envs.pool import Pool
from g1jax.envs.vmap_loop import loop_while, where
from g1jax.errors import InputError
from g1jax.typing import Array, ArrayLike, Key, Pytree

EPISODE_STEPS = 100
"""Steps after which the paper's evaluation truncates an episode."""
MOST_STEPS = 2**31 - 1

AutoReset = Literal["none", "same_step", "next_step", "pool"]
"""What happens to an environment whose episode ended.

`none`: it stays as it is, with reward 0. `same_step`: it is reset within the step that ended it; `BatchResult.final`
keeps the last states. `next_step`: the next step ignores its action and resets it. `pool`: as `same_step`, the new
state taken from a bank of ready ones, each of which is handed out once: see `pool.Pool`.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchState:
    """The environments of a batch."""

    states: Pytree  # the game's, each leaf [B, …]
    num_steps: Array  # int32[B], of the running episode
    terminated: Array  # bool[B], by the last step
    truncated: Array  # bool[B], by the last step
    pool: Pool | None  # in mode `pool`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchResult:
    """What a step of a batch gives besides the next state."""

    reward: Array  # float32[B]
    terminated: Array  # bool[B]
    truncated: Array  # bool[B], cut by `max_steps`
    is_legal: Array  # bool[B]
    final: Pytree  # the states as the step left them, before any reset


@dataclasses.dataclass(frozen=True)
class Batch:
    """`num_envs` environments of one game: pure functions of a BatchState, to be jitted by the caller. A value.

    >>> from g1jax import envs
    >>> batch = Batch(envs.make("swap"), num_envs=64)
    >>> state = jax.jit(batch.reset)(jax.random.key(0))
    >>> actions = batch.sample_actions(state.states, jax.random.key(1))
    >>> state, result = jax.jit(batch.step)(state, actions, jax.random.key(2))
    >>> batch.render(state.states).shape, result.reward.shape
    ((64, 224, 224, 3), (64,))
    """

    game: Game[Any]
    num_envs: int
    autoreset: AutoReset = "same_step"
    max_steps: int | None = None
    """An episode is truncated after so many steps."""
    pool_size: int = 256

    def reset(self, key: Key, level: TracedLevel | None = None) -> BatchState:
        """Fresh states. `level`: a traced level, leaves [] or [B].

        Raises:
            InputError: levels of another number of environments.
        """
        reset_key, pool_key = jax.random.split(key)
        level = self._spread(self.game.traced_level() if level is None else level)
        states = jax.vmap(self.game.reset)(jax.random.split(reset_key, self.num_envs), level)
        bank = None
        if self.autoreset == "pool":
            bank = pool.fill(self.game, level, self.num_envs, jax.random.split(pool_key, self.pool_size))
        no = jnp.zeros(self.num_envs, bool)
        return BatchState(states, jnp.zeros(self.num_envs, jnp.int32), no, no, bank)

    def step(self, state: BatchState, actions: ArrayLike, key: Key) -> tuple[BatchState, BatchResult]:
        """One move everywhere, int32[B], then what `autoreset` says.

        Phases: move; truncate episodes at `max_steps`; undo what ended before; reset where asked for.

        Raises:
            InputError: a state of another batch, or actions that are not one integer for each environment.
        """
        self.check(state.states)
        is_pooled = self.autoreset != "pool" or state.pool is not None
        InputError.require(is_pooled, "state: without pools; a batch with autoreset='pool' steps from its own `reset`")
        actions = as_int32("actions", actions, (self.num_envs,))
        move_key, reset_key = jax.random.split(key)
        was_done = state.terminated | state.truncated
        moved, result = self._move(state.states, actions, move_key)
        num_steps = jnp.minimum(state.num_steps, MOST_STEPS - 1) + 1  # an episode without an end must not wrap
        if self.max_steps is not None:
            truncated = (num_steps >= self.max_steps) & ~result.terminated
            result = dataclasses.replace(result, truncated=truncated)
        if self.autoreset in ("none", "next_step"):
            moved = where(was_done, state.states, moved)
            num_steps = jnp.where(was_done, state.num_steps, num_steps)
            keep = self.autoreset == "none"  # an episode that ended stays ended; else it is reset now
            result = BatchResult(
                reward=jnp.where(was_done, jnp.float32(0), result.reward),
                terminated=jnp.where(was_done, state.terminated & keep, result.terminated),
                truncated=jnp.where(was_done, state.truncated & keep, result.truncated),
                is_legal=result.is_legal & ~was_done,
                final=moved,
            )
        after = BatchState(moved, num_steps, result.terminated, result.truncated, state.pool)
        match self.autoreset:
            case "none":
                return after, result
            case "next_step":
                return self._renew(after, was_done, reset_key), result
            case "same_step":
                return self._renew(after, result.terminated | result.truncated, reset_key), result
            case "pool":
                return self._renew_from_pool(after, result.terminated | result.truncated, reset_key), result

    def _move(self, states: Pytree, actions: Array, key: Key) -> tuple[Pytree, BatchResult]:
        states, result = jax.vmap(self.game.step)(states, actions, jax.random.split(key, self.num_envs))
        return states, BatchResult(result.reward, result.terminated, result.truncated, result.is_legal, states)

    def _renew(self, state: BatchState, is_wanted: Array, key: Key) -> BatchState:
        """Resets where wanted, bool[B], at the same levels."""
        draw = jnp.arange(self.num_envs, dtype=jnp.uint32)
        states = renewed(self.game, state.states, is_wanted, prng.seed_of(key), draw, state.states.level)
        return dataclasses.replace(state, states=states, num_steps=jnp.where(is_wanted, 0, state.num_steps))

    def _renew_from_pool(self, state: BatchState, is_wanted: Array, key: Key) -> BatchState:
        assert state.pool is not None
        states, bank = pool.renew(self.game, state.pool, state.states, is_wanted, key)
        num_steps = jnp.where(is_wanted, 0, state.num_steps)
        return dataclasses.replace(state, states=states, pool=bank, num_steps=num_steps)

    # Walks and branches

    def random_walk(
        self, state: BatchState, key: Key, num_steps: ArrayLike | int, *, legal: bool = False
    ) -> BatchState:
        """Plays random actions, `num_steps` in all or int32[B] in each; a game that ends is reset and plays on.

        The paper's random states: uniform over all actions (`legal=False`), 100 of them in 2048, 250 in Shisen-Sho.
        """
        self.check(state.states)
        num_steps = jnp.broadcast_to(as_int32("num_steps", num_steps, (), (self.num_envs,)), (self.num_envs,))
        last = jnp.max(num_steps)
        walks = num_steps > 0
        key, first_key = jax.random.split(key)
        state = self._renew(state, walks & (state.terminated | state.truncated), first_key)
        state = dataclasses.replace(state, terminated=state.terminated & ~walks, truncated=state.truncated & ~walks)

        def advance(carry: tuple[Array, BatchState]) -> tuple[Array, BatchState]:
            i, state = carry
            action_key, move_key, reset_key = jax.random.split(jax.random.fold_in(key, i), 3)
            actions = self.sample_actions(state.states, action_key, legal=legal)
            moved, result = self._move(state.states, actions, move_key)
            is_on = i < num_steps
            after = dataclasses.replace(state, states=where(is_on, moved, state.states))
            return i + 1, self._renew(after, is_on & result.terminated, reset_key)

        return lax.while_loop(lambda carry: carry[0] < last, advance, (jnp.int32(0), state))[1]

    def branch(self, states: Pytree, actions: Array, key: Key, *, common: bool = True) -> tuple[Pytree, BatchResult]:
        """Every environment under K actions of its own, int32[B, K]: the next states, leaves [B, K, …], and results,
        leaves [B, K]. See `Game.branch`; nothing is truncated or reset.
        """
        self.check(states)
        actions = as_int32("actions", actions, (self.num_envs, None))
        branch: Callable[..., Any] = functools.partial(self.game.branch, common=common)
        states, result = jax.vmap(branch)(states, actions, jax.random.split(key, self.num_envs))
        return states, BatchResult(result.reward, result.terminated, result.truncated, result.is_legal, states)

    # What an environment shows and says, and what a player does

    def render(self, states: Pytree) -> Array:
        """Frames: uint8[B, H, W, 3]."""
        return self._each(self.game.render, states)

    def describe(self, states: Pytree) -> Array:
        """True board texts: uint8[B, L]."""
        return self._each(self.game.describe, states)

    def legal_actions(self, states: Pytree) -> Array:
        """Which actions are legal: bool[B, num_actions]."""
        return self._each(self.game.legal_actions, states)

    def sample_actions(self, states: Pytree, key: Key, *, legal: bool = True) -> Array:
        """Random actions, int32[B]: of the legal ones, or of all."""
        keys = jax.random.split(key, self.num_envs)
        return self._each(lambda state, key: self.game.sample_action(state, key, legal=legal), states, keys)

    def expert(self, states: Pytree, key: Key) -> Array:
        """The scripted player's actions: int32[B]."""
        return self._each(self.game.expert, states, jax.random.split(key, self.num_envs))

    def parse(self, responses: ArrayLike) -> Array:
        """The actions responses ask for: uint8[B, N] -> int32[B]."""
        check_bytes("responses", responses, self.num_envs, None)
        return jax.vmap(self.game.parse)(jnp.asarray(responses))

    def write_actions(self, actions: ArrayLike) -> Array:
        """Actions as responses that `parse` reads: int32[B] -> uint8[B, A]."""
        return jax.vmap(self.game.write_action)(as_int32("actions", actions, (self.num_envs,)))

    def perception_exact(self, responses: ArrayLike, states: Pytree) -> Array:
        """Whether each response's perception is the true board text: uint8[B, N] -> bool[B]."""
        check_bytes("responses", responses, self.num_envs, None)
        exact = self.game.perception_exact
        return self._each(lambda state, response: exact(response, state), states, jnp.asarray(responses))

    def perception_cells(self, responses: ArrayLike, states: Pytree) -> Array:
        """The share of cells each response names rightly: uint8[B, N] -> float32[B]."""
        check_bytes("responses", responses, self.num_envs, None)
        cells = self.game.perception_cells
        return self._each(lambda state, response: cells(response, state), states, jnp.asarray(responses))

    def check(self, states: Pytree) -> None:
        """Refuses states of another batch, whose rows would be taken for those of this one.

        Raises:
            InputError: they are of another number.
        """
        shape = states.terminated.shape
        InputError.require(shape == (self.num_envs,), f"state: shape {shape}, and this batch has ({self.num_envs},)")

    def _each(self, function: Callable[..., Array], states: Pytree, *batched: Array) -> Array:
        self.check(states)
        return jax.vmap(function)(states, *batched)

    def _spread(self, level: TracedLevel) -> TracedLevel:
        """A traced level for each environment."""
        for key, value in level.items():
            is_fitting = value.shape in ((), (self.num_envs,))
            InputError.require(is_fitting, f"levels: {key} has shape {value.shape}; give () or ({self.num_envs},)")
        return {key: jnp.broadcast_to(value, (self.num_envs,)) for key, value in level.items()}


def renewed(
    game: Game[Any], states: Pytree, is_wanted: Array, seed: Array, draw: Array, level: TracedLevel | None = None
) -> Pytree:
    """Fresh states where wanted; only these are computed.

    Args:
        game: whose states they are.
        states: leaves [B, …].
        is_wanted: bool[B].
        seed: uint32[2] or uint32[B, 2], and
        draw: uint32[B], which together decide a state: equal ones make equal states.
        level: a traced level, leaves [B]; None: the game's own.
    """

    def one(is_wanted: Array, state: Any, seed: Array, draw: Array, level: TracedLevel | None) -> Any:
        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            _, _, seed, draw, level = carry
            key = jax.random.wrap_key_data(prng.words(seed, draw, 2), impl="threefry2x32")
            return jnp.bool_(False), game.reset(key, level), seed, draw, level

        return loop_while(lambda carry: carry[0], body, (is_wanted, state, seed, draw, level))[1]

    return jax.vmap(one, (0, 0, 0 if seed.ndim == 2 else None, 0, 0))(is_wanted, states, seed, draw, level)
