"""Countdown: a tiny game that compiles fast in tests of batches, with an end and random outcomes.

A number from 1 to 9 and a mark. Action a subtracts a + 1 from the number and earns a + 1. It is legal if the number is
large enough, and otherwise costs 1. If the level is random, a legal move draws a new mark. At 0 the game is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.envs import core, prng
from g1jax.envs import level as level_keys
from g1jax.envs.level import traced
from g1jax.typing import Array, HostImages, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TracedLevel(level_keys.TracedLevel):
    """The traced keys of the rules."""

    start: Array  # int32[]
    luck: Array  # float32[]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    board: Array  # int8[1, 2], the number and the mark
    terminated: Array  # bool[]
    seed: Array  # uint32[]
    level: TracedLevel


@dataclass(frozen=True, kw_only=True)
class Level(level_keys.Level):
    traced_type = TracedLevel
    rows: int = 1
    cols: int = 2
    most: int = 3
    """The most that an action subtracts."""
    start: int = traced(0)
    """The initial number; 0: random."""
    luck: float = traced(1.0)


class Countdown(core.Game[State]):
    id = "countdown"
    Level: ClassVar[type[level_keys.Level]] = Level
    default_prompt = "Count down.\n{format}"

    def shape_actions(self) -> tuple[int, ...]:
        return (self.level.most,)

    def cell_names(self) -> Sequence[str]:
        return ["-", *"123456789"]

    def draw_tiles(self, palette: str, background: str) -> HostImages:
        size = self.level.appearance.cell_size
        return np.stack([np.full((size, size, 3), 20 * kind, np.uint8) for kind in range(10)])

    def begin(self, key: Key, seed: Array, level: TracedLevel) -> State:
        number, _ = prng.dice(jax.random.bits(key), 9)
        number = jnp.where(level.start > 0, level.start, number + 1)
        return State(_board(number, jnp.int32(0)), jnp.bool_(False), seed, level)

    def move(self, state: State, action: Array, key: Key) -> tuple[State, Array, Array]:
        number, mark = state.board[0].astype(jnp.int32)
        is_legal = (action < self.num_actions) & (action + 1 <= number)
        drawn, _ = prng.dice(jax.random.bits(key), 9)
        mark = jnp.where(is_legal & (state.level.luck > 0), drawn + 1, mark)
        number = jnp.where(is_legal, number - action - 1, number)
        reward = jnp.where(is_legal, action + 1, -1).astype(jnp.float32)
        return State(_board(number, mark), number == 0, state.seed, state.level), reward, is_legal

    def cells(self, state: State) -> Array:
        return state.board.astype(jnp.int32)

    def from_cells(self, cells: Array, seed: Array, level: TracedLevel) -> State:
        return State(cells.astype(jnp.int8), cells[0, 0] == 0, seed, level)

    def legal_actions(self, state: State) -> Array:
        return jnp.arange(self.num_actions, dtype=jnp.int32) + 1 <= state.board[0, 0].astype(jnp.int32)

    def expert(self, state: State, key: Key) -> Array:
        del key
        best = jnp.minimum(state.board[0, 0].astype(jnp.int32), self.num_actions) - 1
        return jnp.where(best < 0, self.invalid_action, best)


def _board(number: Array, mark: Array) -> Array:
    return jnp.stack([number, mark]).astype(jnp.int8)[None]


def make(**keys: object) -> Countdown:
    return Countdown(level_keys.make_level(Level, "countdown", dict(keys)))
