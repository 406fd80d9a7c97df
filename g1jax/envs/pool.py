"""A bank of precomputed initial states, to which environments are reset.

A ring buffer: states are used once, in the order in which they were made, and replaced by fresh ones. These are made in
chunks, so that most steps in which few episodes end make none. If more episodes end than the bank has states, the step
makes as many chunks as it needs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int32

from g1jax.envs.core import Game
from g1jax.envs.level import TracedLevel
from g1jax.envs.vmap_loop import where
from g1jax.typing import Array, Key, Pytree

_CHUNKS = 4  # a refill makes a quarter of the bank


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pool:
    """A bank of P initial states of one game."""

    states: Pytree  # each leaf [P, …]
    next: Int32[Array, ""]  # index of the next state to use
    num_ready: Int32[Array, ""]  # unused states from there on

    @property
    def size(self) -> int:
        """P."""
        return int(self.states.terminated.shape[0])


def fill(game: Game[Any], level: TracedLevel, num_envs: int, keys: Key) -> Pool:
    """A full bank, one state per key, for environments with these levels, leaves [b].

    The bank cycles through the environments' levels; one smaller than the batch has evenly spaced ones.
    """
    size = keys.shape[0]
    index = np.arange(size)
    owner = index % num_envs if size >= num_envs else index * num_envs // size
    states = jax.vmap(game.reset)(keys, jax.tree.map(lambda leaf: leaf[owner], level))
    return Pool(states, jnp.int32(0), jnp.int32(size))


def renew(game: Game[Any], pool: Pool, states: Pytree, is_wanted: Array, key: Key) -> tuple[Pytree, Pool]:
    """Replaces the wanted states, bool[b], from the bank, and refills it until less than a chunk is missing."""
    chunk = max(1, pool.size // _CHUNKS)
    order = (
        jnp.cumsum(is_wanted.astype(jnp.int32), dtype=jnp.int32) - 1
    )  # rank among the wanted, so all get different ones
    num_wanted = jnp.sum(is_wanted.astype(jnp.int32), dtype=jnp.int32)

    def hand_out(pool: Pool, states: Pytree, served: Array) -> tuple[Pool, Pytree, Array]:
        indices = (pool.next + order - served) % pool.size
        is_next = is_wanted & (order >= served) & (order < served + pool.num_ready)
        states = where(is_next, jax.tree.map(lambda leaf: leaf[indices], pool.states), states)
        count = jnp.minimum(num_wanted - served, pool.num_ready)
        return Pool(pool.states, (pool.next + count) % pool.size, pool.num_ready - count), states, served + count

    def refill_and_hand_out(carry: tuple[Array, Pool, Pytree, Array]) -> tuple[Array, Pool, Pytree, Array]:
        i, pool, states, served = carry
        pool = _refill(game, pool, chunk, jax.random.fold_in(key, i))
        return i + 1, *lax.cond(served < num_wanted, hand_out, lambda *same: same, pool, states, served)

    def is_short(carry: tuple[Array, Pool, Pytree, Array]) -> Array:
        _, pool, _, served = carry
        return (served < num_wanted) | (pool.num_ready <= pool.size - chunk)

    first = hand_out(pool, states, jnp.int32(0))
    _, pool, states, _ = lax.while_loop(is_short, refill_and_hand_out, (jnp.int32(0), *first))
    return states, pool


def _refill(game: Game[Any], pool: Pool, count: int, key: Key) -> Pool:
    """Replaces the states used longest ago by fresh ones at the same levels."""
    indices = (pool.next + pool.num_ready + jnp.arange(count, dtype=jnp.int32)) % pool.size
    levels = jax.tree.map(lambda leaf: leaf[indices], pool.states.level)
    fresh = jax.vmap(game.reset)(jax.random.split(key, count), levels)
    states = jax.tree.map(lambda leaf, new: leaf.at[indices].set(new), pool.states, fresh)
    return Pool(states, pool.next, pool.num_ready + count)
