"""A bank of ready initial states, from which environments whose episode ended begin anew.

A ring: states are handed out in the order in which they were made, each once, and fresh ones take the places of those.
They are made in chunks, so most steps in which few episodes end make none; a step in which more end than the bank has
states makes as many as that takes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from g1jax.envs.core import Game, TracedLevel
from g1jax.envs.vmap_loop import where
from g1jax.typing import Array, Key, Pytree

_CHUNK = 4  # a refill makes a quarter of the bank


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pool:
    """A bank of P initial states of one game."""

    states: Pytree  # each leaf [P, …]
    next: Array  # int32[], the place of the state to hand out next
    num_ready: Array  # int32[], states from there on that have not been handed out

    @property
    def size(self) -> int:
        """P."""
        return int(self.states.terminated.shape[0])


def fill(game: Game[Any], level: TracedLevel, num_envs: int, keys: Key) -> Pool:
    """A full bank, one state a key, for environments of these levels, leaves [b].

    Levels are in the environments' proportions: theirs in turn, or evenly picked ones in a smaller bank.
    """
    size = keys.shape[0]
    place = np.arange(size)
    owner = place % num_envs if size >= num_envs else place * num_envs // size
    states = jax.vmap(game.reset)(keys, jax.tree.map(lambda leaf: leaf[owner], level))
    return Pool(states, jnp.int32(0), jnp.int32(size))


def renew(game: Game[Any], pool: Pool, states: Pytree, is_wanted: Array, key: Key) -> tuple[Pytree, Pool]:
    """Replaces the wanted states, bool[b], by ready ones, and refills the bank until less than a chunk is missing."""
    chunk = max(1, pool.size // _CHUNK)
    order = (
        jnp.cumsum(is_wanted.astype(jnp.int32), dtype=jnp.int32) - 1
    )  # of those that want one, so no two get the same
    num_wanted = jnp.sum(is_wanted.astype(jnp.int32), dtype=jnp.int32)

    def hand_out(pool: Pool, states: Pytree, served: Array) -> tuple[Pool, Pytree, Array]:
        places = (pool.next + order - served) % pool.size
        is_next = is_wanted & (order >= served) & (order < served + pool.num_ready)
        states = where(is_next, jax.tree.map(lambda leaf: leaf[places], pool.states), states)
        count = jnp.minimum(num_wanted - served, pool.num_ready)
        return Pool(pool.states, (pool.next + count) % pool.size, pool.num_ready - count), states, served + count

    def refill_and_go_on(carry: tuple[Array, Pool, Pytree, Array]) -> tuple[Array, Pool, Pytree, Array]:
        i, pool, states, served = carry
        pool = _refill(game, pool, chunk, jax.random.fold_in(key, i))
        return i + 1, *lax.cond(served < num_wanted, hand_out, lambda *same: same, pool, states, served)

    def is_short(carry: tuple[Array, Pool, Pytree, Array]) -> Array:
        _, pool, _, served = carry
        return (served < num_wanted) | (pool.num_ready <= pool.size - chunk)

    first = hand_out(pool, states, jnp.int32(0))
    _, pool, states, _ = lax.while_loop(is_short, refill_and_go_on, (jnp.int32(0), *first))
    return states, pool


def _refill(game: Game[Any], pool: Pool, count: int, key: Key) -> Pool:
    """Fresh states in the places of those that were handed out first, at the levels of these places."""
    places = (pool.next + pool.num_ready + jnp.arange(count, dtype=jnp.int32)) % pool.size
    levels = jax.tree.map(lambda leaf: leaf[places], pool.states.level)
    fresh = jax.vmap(game.reset)(jax.random.split(key, count), levels)
    states = jax.tree.map(lambda leaf, new: leaf.at[places].set(new), pool.states, fresh)
    return Pool(states, pool.next, pool.num_ready + count)
