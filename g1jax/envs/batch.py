"""A batch of environments of one game, by `vmap`: autoreset, random walks, branches, frames and text."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float32, Int32, Shaped, UInt8, UInt32

from g1jax.envs import pool, prng
from g1jax.envs.checks import as_int32, check_bytes
from g1jax.envs.core import Game
from g1jax.envs.level import TracedLevel
from g1jax.envs.pool import Pool
from g1jax.envs.vmap_loop import loop_while, where
from g1jax.errors import InputError
from g1jax.typing import Array, ArrayLike, Key, Pytree

EPISODE_STEPS = 100
"""The paper's evaluation truncates an episode after this many steps."""
MOST_STEPS = 2**31 - 1

AutoReset = Literal["none", "same_step", "next_step", "pool"]
"""What happens to an environment whose episode ended.

`none`: it is frozen, with reward 0. `same_step`: it is reset within the step that ended it; `BatchResult.final` has the
last states. `next_step`: the next step ignores its action and resets it. `pool`: like `same_step`, but the new state
comes from a bank of precomputed initial states, each used once; see `pool.Pool`.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchState:
    """The environments of a batch."""

    states: Pytree  # states of the game, leaves [B, …]
    num_steps: Int32[Array, "*B"]  # steps of the current episode
    terminated: Bool[Array, "*B"]  # by the last step
    truncated: Bool[Array, "*B"]  # by the last step
    pool: Pool | None  # in mode `pool`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchResult:
    """What a step of a batch returns besides the next state."""

    reward: Float32[Array, "*B"]
    terminated: Bool[Array, "*B"]
    truncated: Bool[Array, "*B"]  # cut by `max_steps`
    is_legal: Bool[Array, "*B"]
    final: Pytree  # the states after the step, before any reset


@dataclasses.dataclass(frozen=True)
class Batch:
    """`num_envs` environments of one game: pure functions of a BatchState, to be jitted by the caller.

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
    """An episode is truncated after this many steps; None: never."""
    pool_size: int = 256

    def reset(self, key: Key, level: TracedLevel | None = None) -> BatchState:
        """Fresh states. `level`: a traced level, leaves [] or [B].

        Raises:
            InputError: the level is for another number of environments.
        """
        reset_key, pool_key = jax.random.split(key)
        level = self._broadcast_level(self.game.traced_level() if level is None else level)
        states = jax.vmap(self.game.reset)(jax.random.split(reset_key, self.num_envs), level)
        bank = None
        if self.autoreset == "pool":
            bank = pool.fill(self.game, level, self.num_envs, jax.random.split(pool_key, self.pool_size))
        no = jnp.zeros(self.num_envs, bool)
        return BatchState(states, jnp.zeros(self.num_envs, jnp.int32), no, no, bank)

    def step(self, state: BatchState, actions: ArrayLike, key: Key) -> tuple[BatchState, BatchResult]:
        """Steps every environment, actions int32[B], and resets according to `autoreset`.

        Phases: move; truncate at `max_steps`; freeze environments that had already ended; reset.

        Raises:
            InputError: the state is of another batch, or `actions` is not one integer per environment.
        """
        self.check(state.states)
        has_pool = self.autoreset != "pool" or state.pool is not None
        InputError.require(has_pool, "state: no pool; with autoreset='pool', use a state from this batch's `reset`")
        actions = as_int32("actions", actions, (self.num_envs,))
        move_key, reset_key = jax.random.split(key)
        was_done = state.terminated | state.truncated
        moved, result = self._move(state.states, actions, move_key)
        num_steps = jnp.minimum(state.num_steps, MOST_STEPS - 1) + 1  # no overflow in an endless episode
        if self.max_steps is not None:
            truncated = (num_steps >= self.max_steps) & ~result.terminated
            result = dataclasses.replace(result, truncated=truncated)
        if self.autoreset in ("none", "next_step"):
            moved = where(was_done, state.states, moved)
            num_steps = jnp.where(was_done, state.num_steps, num_steps)
            keep = self.autoreset == "none"  # ended episodes stay ended; otherwise this step resets them
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
                return self._reset_where(was_done, after, reset_key), result
            case "same_step":
                return self._reset_where(result.terminated | result.truncated, after, reset_key), result
            case "pool":
                return self._reset_from_pool(result.terminated | result.truncated, after, reset_key), result

    def _move(self, states: Pytree, actions: Int32[Array, "B"], key: Key) -> tuple[Pytree, BatchResult]:
        states, result = jax.vmap(self.game.step)(states, actions, jax.random.split(key, self.num_envs))
        return states, BatchResult(result.reward, result.terminated, result.truncated, result.is_legal, states)

    def _reset_where(self, mask: Bool[Array, "B"], state: BatchState, key: Key) -> BatchState:
        """Resets where the mask holds, at the same levels."""
        draw = jnp.arange(self.num_envs, dtype=jnp.uint32)
        states = renewed(self.game, state.states, mask, prng.seed_of(key), draw, state.states.level)
        return dataclasses.replace(state, states=states, num_steps=jnp.where(mask, 0, state.num_steps))

    def _reset_from_pool(self, mask: Bool[Array, "B"], state: BatchState, key: Key) -> BatchState:
        assert state.pool is not None
        states, bank = pool.renew(self.game, state.pool, state.states, mask, key)
        return dataclasses.replace(state, states=states, pool=bank, num_steps=jnp.where(mask, 0, state.num_steps))

    # Walks and branches

    def random_walk(
        self, state: BatchState, key: Key, num_steps: ArrayLike | int, *, legal: bool = False
    ) -> BatchState:
        """Takes `num_steps` random actions, int32[] or int32[B]; a game that ends is reset and continues.

        The paper's random states: uniform over all actions (`legal=False`), 100 steps in 2048, 250 in Shisen-Sho.
        """
        self.check(state.states)
        num_steps = jnp.broadcast_to(as_int32("num_steps", num_steps, (), (self.num_envs,)), (self.num_envs,))
        last = jnp.max(num_steps)
        is_walking = num_steps > 0
        key, first_key = jax.random.split(key)
        is_done = state.terminated | state.truncated
        state = self._reset_where(is_walking & is_done, state, first_key)
        state = dataclasses.replace(
            state, terminated=state.terminated & ~is_walking, truncated=state.truncated & ~is_walking
        )

        def advance(carry: tuple[Array, BatchState]) -> tuple[Array, BatchState]:
            i, state = carry
            action_key, move_key, reset_key = jax.random.split(jax.random.fold_in(key, i), 3)
            actions = self.sample_actions(state.states, action_key, legal=legal)
            moved, result = self._move(state.states, actions, move_key)
            is_active = i < num_steps
            after = dataclasses.replace(state, states=where(is_active, moved, state.states))
            return i + 1, self._reset_where(is_active & result.terminated, after, reset_key)

        return lax.while_loop(lambda carry: carry[0] < last, advance, (jnp.int32(0), state))[1]

    def branch(self, states: Pytree, actions: Array, key: Key, *, common: bool = True) -> tuple[Pytree, BatchResult]:
        """Steps every environment with K actions, int32[B, K]: next states, leaves [B, K, …], and results, leaves
        [B, K]. See `Game.branch`; nothing is truncated or reset.
        """
        self.check(states)
        actions = as_int32("actions", actions, (self.num_envs, None))
        branch: Callable[..., Any] = functools.partial(self.game.branch, common=common)
        states, result = jax.vmap(branch)(states, actions, jax.random.split(key, self.num_envs))
        return states, BatchResult(result.reward, result.terminated, result.truncated, result.is_legal, states)

    # Observations and actions

    def render(self, states: Pytree) -> UInt8[Array, "B H W 3"]:
        """Frames."""
        return self._each(self.game.render, states)

    def describe(self, states: Pytree) -> UInt8[Array, "B L"]:
        """True board texts."""
        return self._each(self.game.describe, states)

    def legal_actions(self, states: Pytree) -> Bool[Array, "B {self.game.num_actions}"]:
        """Which actions are legal."""
        return self._each(self.game.legal_actions, states)

    def sample_actions(self, states: Pytree, key: Key, *, legal: bool = True) -> Int32[Array, "B"]:
        """Random actions: of the legal ones, or of all."""
        keys = jax.random.split(key, self.num_envs)
        return self._each(lambda state, key: self.game.sample_action(state, key, legal=legal), states, keys)

    def expert(self, states: Pytree, key: Key) -> Int32[Array, "B"]:
        """The scripted player's actions."""
        return self._each(self.game.expert, states, jax.random.split(key, self.num_envs))

    def parse(self, responses: ArrayLike) -> Int32[Array, "B"]:
        """The actions in responses, uint8[B, N]."""
        check_bytes("responses", responses, self.num_envs, None)
        return jax.vmap(self.game.parse)(jnp.asarray(responses))

    def write_actions(self, actions: ArrayLike) -> UInt8[Array, "B A"]:
        """Actions, int32[B], as responses that `parse` reads."""
        return jax.vmap(self.game.write_action)(as_int32("actions", actions, (self.num_envs,)))

    def perception_exact(self, responses: ArrayLike, states: Pytree) -> Bool[Array, "B"]:
        """Whether the perception of each response, uint8[B, N], is the true board text."""
        check_bytes("responses", responses, self.num_envs, None)
        exact = self.game.perception_exact
        return self._each(lambda state, response: exact(response, state), states, jnp.asarray(responses))

    def perception_cells(self, responses: ArrayLike, states: Pytree) -> Float32[Array, "B"]:
        """The fraction of cells that each response, uint8[B, N], names correctly."""
        check_bytes("responses", responses, self.num_envs, None)
        cells = self.game.perception_cells
        return self._each(lambda state, response: cells(response, state), states, jnp.asarray(responses))

    def check(self, states: Pytree) -> None:
        """Rejects states of a batch of another size.

        Raises:
            InputError: there are not `num_envs` states.
        """
        shape = states.terminated.shape
        InputError.require(shape == (self.num_envs,), f"state: shape {shape}; this batch has ({self.num_envs},)")

    def _each(self, function: Callable[..., Array], states: Pytree, *batched: Shaped[Array, "B ..."]) -> Array:
        self.check(states)
        return jax.vmap(function)(states, *batched)

    def _broadcast_level(self, level: TracedLevel) -> TracedLevel:
        """A traced level with one value per environment."""

        def broadcast(path: Any, value: Array) -> Array:
            key, is_valid = path[-1].name, value.shape in ((), (self.num_envs,))
            InputError.require(is_valid, f"levels: {key} has shape {value.shape}; give () or ({self.num_envs},)")
            return jnp.broadcast_to(value, (self.num_envs,))

        return jax.tree_util.tree_map_with_path(broadcast, level)


def renewed(
    game: Game[Any],
    states: Pytree,
    is_wanted: Bool[Array, "B"],
    seed: UInt32[Array, "... 2"],
    draw: UInt32[Array, "B"],
    level: TracedLevel | None = None,
) -> Pytree:
    """Replaces states by fresh ones where wanted; only these are computed.

    Args:
        game: the game of the states.
        states: leaves [B, …].
        is_wanted: which states to replace.
        seed: one, or one per environment; equal (seed, draw) give equal states.
        draw: the number of the draw, per environment.
        level: a traced level, leaves [B]; None: the game's own.
    """

    def one(is_wanted: Array, state: Any, seed: Array, draw: Array, level: TracedLevel | None) -> Any:
        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            _, _, seed, draw, level = carry
            key = jax.random.wrap_key_data(prng.bits(seed, draw, 2), impl="threefry2x32")
            return jnp.bool_(False), game.reset(key, level), seed, draw, level

        return loop_while(lambda carry: carry[0], body, (is_wanted, state, seed, draw, level))[1]

    return jax.vmap(one, (0, 0, 0 if seed.ndim == 2 else None, 0, 0))(is_wanted, states, seed, draw, level)
