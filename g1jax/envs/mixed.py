"""Mixed batches: several games in one compiled program, on one canvas.

The environments of each game are contiguous, as a `Batch`, so no environment computes another game's step. Values per
environment (`reward`, actions, frames) are one array over the whole batch, in the order of the games and padded to the
widest; `VecEnv.game_id` has the game of each row.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from g1jax.envs.batch import MOST_STEPS, AutoReset, Batch, BatchResult, BatchState
from g1jax.envs.checks import as_int32, check_bytes, check_key, is_whole
from g1jax.envs.core import Game
from g1jax.envs.level import TracedLevel
from g1jax.envs.pool import Pool
from g1jax.envs.registry import make
from g1jax.envs.render import reader
from g1jax.errors import InputError, LevelError, unknown
from g1jax.typing import Array, ArrayLike, Key, Pytree

_MOST_ENVS = 2**26
_LIMIT = f", a whole number up to {_MOST_ENVS}"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VecState:
    """The environments of a mixed batch."""

    games: tuple[Pytree, ...]  # the states of each game, leaves [b, …], b its environments
    num_steps: Int32[Array, "B"]  # steps of the current episode
    terminated: Bool[Array, "B"]  # by the last step
    truncated: Bool[Array, "B"]  # by the last step
    pools: tuple[Pool, ...]  # one per game in mode `pool`, else empty


VecStates = VecState | tuple[Pytree, ...]
"""A VecState, or the states of each game as in `VecState.games` and `VecResult.final`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VecResult:
    """What a step of a mixed batch returns besides the next state."""

    reward: Float32[Array, "B"]
    terminated: Bool[Array, "B"]
    truncated: Bool[Array, "B"]  # cut by `max_steps`
    is_legal: Bool[Array, "B"]
    final: tuple[Pytree, ...]  # the states after the step, before any reset, like `VecState.games`


class VecEnv:
    """`num_envs` environments of one game or several: pure functions of a VecState, to be jitted by the caller.

    Two are equal, and share compiled programs, if their games and settings are equal.

    >>> from g1jax import envs
    >>> vec = envs.make_vec(["game_2048", "swap"], num_envs=64)
    >>> state = jax.jit(vec.reset)(jax.random.key(0))
    >>> actions = vec.sample_actions(state, jax.random.key(1))
    >>> state, result = jax.jit(vec.step)(state, actions, jax.random.key(2))
    >>> jax.jit(vec.render)(state).shape, result.reward.shape
    ((64, 224, 224, 3), (64,))
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = tuple(batches)
        self.games = tuple(batch.game for batch in batches)
        self.counts = tuple(batch.num_envs for batch in batches)
        first = batches[0]
        self.autoreset, self.max_steps, self.pool_size = first.autoreset, first.max_steps, first.pool_size
        self.num_envs = sum(self.counts)
        self.num_actions = max(game.num_actions for game in self.games)
        starts = np.cumsum([0, *self.counts])
        self._slices = [slice(a, b) for a, b in itertools.pairwise(starts)]
        self.game_id = np.repeat(np.arange(len(batches), dtype=np.int32), self.counts)  # int32[B]
        invalid = np.array([game.invalid_action for game in self.games], np.int32)
        self.invalid_action = np.repeat(invalid, self.counts)  # int32[B]
        shapes = [game.frame_shape for game in self.games]
        self.frame_shape = (max(s[0] for s in shapes), max(s[1] for s in shapes), 3)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VecEnv) and self.batches == other.batches

    def __hash__(self) -> int:
        return hash(self.batches)

    def __reduce__(self) -> tuple[Any, ...]:
        return VecEnv, (self.batches,)

    def __repr__(self) -> str:
        games = ", ".join(f"{count} of {game!r}" for game, count in zip(self.games, self.counts, strict=True))
        frames = f"uint8[{self.num_envs}, {', '.join(map(str, self.frame_shape))}]"
        return f"VecEnv({games}; frames {frames}, autoreset={self.autoreset!r}, max_steps={self.max_steps})"

    # Playing

    def reset(self, key: Key, levels: Sequence[TracedLevel] | TracedLevel | None = None) -> VecState:
        """Fresh states. `levels`: traced levels, one per game or one for all, leaves [] or [b].

        Raises:
            InputError: the levels are for another number of games or environments.
        """
        if levels is None or isinstance(levels, TracedLevel):
            levels = [levels] * len(self.games)  # type: ignore[list-item]
        is_valid = len(levels) == len(self.games)
        InputError.require(is_valid, f"levels: {len(levels)} for {len(self.games)} games; give one, or one per game")
        return _joined_states(
            [batch.reset(own, level) for batch, own, level in zip(self.batches, self._keys(key), levels, strict=True)]
        )

    def step(self, state: VecState, actions: ArrayLike, key: Key) -> tuple[VecState, VecResult]:
        """Steps every environment, actions int32[B], and resets according to `autoreset`; see `Batch.step`.

        Raises:
            InputError: the state is of another batch, or `actions` is not one integer per environment.
        """
        actions = as_int32("actions", actions, (self.num_envs,))
        parts = [actions[part] for part in self._slices]
        arguments = zip(self.batches, self._split_state(state), parts, self._keys(key), strict=True)
        states, results = zip(*(batch.step(own, part, k) for batch, own, part, k in arguments), strict=True)
        return _joined_states(states), _joined_results(results)

    def random_walk(self, state: VecState, key: Key, num_steps: ArrayLike | int, *, legal: bool = False) -> VecState:
        """Takes `num_steps` random actions, int32[] or int32[B]; see `Batch.random_walk`."""
        num_steps = jnp.broadcast_to(as_int32("num_steps", num_steps, (), (self.num_envs,)), (self.num_envs,))
        arguments = zip(self.batches, self._split_state(state), self._keys(key), self._slices, strict=True)
        return _joined_states(
            [batch.random_walk(own, k, num_steps[part], legal=legal) for batch, own, k, part in arguments]
        )

    def branch(
        self, state: VecState, actions: Array, key: Key, *, common: bool = True
    ) -> tuple[tuple[Pytree, ...], VecResult]:
        """Steps every environment with K actions, int32[B, K]: next states of each game, leaves [b, K, …], and results,
        leaves [B, K]. See `Game.branch`; nothing is truncated or reset.
        """
        self._check_state(state.games)
        actions = as_int32("actions", actions, (self.num_envs, None))
        arguments = zip(self.batches, state.games, self._slices, self._keys(key), strict=True)
        states, results = zip(
            *(batch.branch(own, actions[part], k, common=common) for batch, own, part, k in arguments), strict=True
        )
        return states, _joined_results(results)

    # Observations and actions, of a VecState or of a result's `final`

    def render(self, state: VecStates) -> UInt8[Array, "B H W 3"]:
        """Frames on one canvas: uint8[B, H, W, 3], each game's at the top left, padded with its background color."""
        states = self._games_of(state)
        if len(self.games) == 1:
            return jax.vmap(self.games[0].render)(states[0])
        renderers = [game.renderer for game in self.games]
        height, width, _ = self.frame_shape
        # One gather for all games, from their concatenated atlases.
        unit = math.gcd(width, *(renderer.unit for renderer in renderers))
        atlases = [renderer.cut(unit) for renderer in renderers]
        first = np.cumsum([0, *(len(atlas) for atlas in atlases)])

        def segments(game: Game[Any], state: Any) -> Array:
            return game.renderer.segments(game.tiles(state), state.seed, state.level.appearance, unit, (height, width))

        parts = [jax.vmap(functools.partial(segments, game))(own) for game, own in zip(self.games, states, strict=True)]
        joined = jnp.concatenate([part + int(start) for part, start in zip(parts, first[:-1], strict=True)])
        seeds = jnp.concatenate([state.seed for state in states])
        frames = jax.vmap(reader(np.concatenate(atlases)))(joined, seeds)
        for game, state, part in zip(self.games, states, self._slices, strict=True):
            if game.renderer.has_noise:
                frames = frames.at[part].set(_with_noise(game, state, frames[part]))
        return frames

    def render_each(self, state: VecStates) -> tuple[UInt8[Array, "_ _ _ 3"], ...]:
        """Frames of each game at its own size, without a canvas: uint8[b, H, W, 3] each."""
        states = self._games_of(state)
        return tuple(batch.render(own) for batch, own in zip(self.batches, states, strict=True))

    @property
    def prompts(self) -> tuple[str, ...]:
        """The default prompt of each environment: B strings."""
        return tuple(game.prompt for game, count in zip(self.games, self.counts, strict=True) for _ in range(count))

    def cells(self, state: VecStates) -> Int32[Array, "B R C"]:
        """The kind of every cell, an index into its game's `cell_names`: int32[B, R, C]; -1 beyond a smaller board."""
        padded_with_0 = self._join(
            lambda batch, states: jax.vmap(batch.game.cells)(states).astype(jnp.int32) + 1, state
        )
        return padded_with_0 - 1

    def describe(self, state: VecStates) -> UInt8[Array, "B L"]:
        """True board texts: uint8[B, L]."""
        return self._join(Batch.describe, state)

    def legal_actions(self, state: VecStates) -> Bool[Array, "B A"]:
        """Which actions are legal: bool[B, num_actions], padded for games that have fewer."""
        return self._join(Batch.legal_actions, state)

    def sample_actions(self, state: VecStates, key: Key, *, legal: bool = True) -> Int32[Array, "B"]:
        """Random actions, int32[B]: of the legal ones, or of all."""
        return self._join(functools.partial(Batch.sample_actions, legal=legal), state, self._keys(key))

    def expert(self, state: VecStates, key: Key) -> Int32[Array, "B"]:
        """The scripted players' actions: int32[B]."""
        return self._join(Batch.expert, state, self._keys(key))

    def parse(self, responses: ArrayLike) -> Int32[Array, "B"]:
        """The actions in responses: uint8[B, N] -> int32[B]."""
        return self._join(Batch.parse, None, self._responses(responses))

    def write_actions(self, actions: ArrayLike) -> UInt8[Array, "B N"]:
        """Actions as responses that `parse` reads: int32[B] -> uint8[B, A]."""
        actions = as_int32("actions", actions, (self.num_envs,))
        return self._join(Batch.write_actions, None, [actions[part] for part in self._slices])

    def perception_exact(self, responses: ArrayLike, state: VecStates) -> Bool[Array, "B"]:
        """Whether each response's perception is the true board text: uint8[B, N] -> bool[B]."""
        return self._join(lambda b, s, r: b.perception_exact(r, s), state, self._responses(responses))

    def perception_cells(self, responses: ArrayLike, state: VecStates) -> Float32[Array, "B"]:
        """The fraction of cells that each response names correctly: uint8[B, N] -> float32[B]."""
        return self._join(lambda b, s, r: b.perception_cells(r, s), state, self._responses(responses))

    # Helpers

    def _keys(self, key: Key) -> Sequence[Key]:
        """A key per game. A single game gets the key itself, so that results equal those of its `Batch`."""
        check_key(key)
        return [key] if len(self.games) == 1 else list(jax.random.split(key, len(self.games)))

    def _responses(self, responses: ArrayLike) -> list[ArrayLike]:
        check_bytes("responses", responses, self.num_envs, None)
        return [responses[part] for part in self._slices]

    def _join(self, function: Callable[..., Array], state: VecStates | None, *by_game: Sequence[Any]) -> Array:
        """Maps (batch, states, arguments of each game) and concatenates the results, zero-padded to the widest."""
        columns = ([] if state is None else [self._games_of(state)]) + list(by_game)
        parts = [function(batch, *own) for batch, *own in zip(self.batches, *columns, strict=True)]
        shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
        padded = [
            jnp.pad(part, [(0, 0), *((0, int(to - have)) for have, to in zip(part.shape[1:], shape, strict=True))])
            for part in parts
        ]
        return jnp.concatenate(padded)

    def _games_of(self, state: VecStates) -> tuple[Pytree, ...]:
        states = state.games if isinstance(state, VecState) else state
        self._check_state(states)
        return states

    def _check_state(self, games: tuple[Pytree, ...]) -> None:
        """Rejects states of a batch of other sizes."""
        sizes = [states.terminated.shape for states in games]
        InputError.require(
            sizes == [(count,) for count in self.counts],
            f"state: environments by game {sizes}; this batch has {[(count,) for count in self.counts]}",
        )

    def _split_state(self, state: VecState) -> list[BatchState]:
        self._check_state(state.games)
        pools = state.pools or (None,) * len(self.games)
        return [
            BatchState(states, state.num_steps[part], state.terminated[part], state.truncated[part], bank)
            for states, bank, part in zip(state.games, pools, self._slices, strict=True)
        ]


def _joined_states(parts: Sequence[BatchState]) -> VecState:
    return VecState(
        games=tuple(part.states for part in parts),
        num_steps=jnp.concatenate([part.num_steps for part in parts]),
        terminated=jnp.concatenate([part.terminated for part in parts]),
        truncated=jnp.concatenate([part.truncated for part in parts]),
        pools=tuple(part.pool for part in parts if part.pool is not None),
    )


def _joined_results(parts: Sequence[BatchResult]) -> VecResult:
    return VecResult(
        reward=jnp.concatenate([part.reward for part in parts]),
        terminated=jnp.concatenate([part.terminated for part in parts]),
        truncated=jnp.concatenate([part.truncated for part in parts]),
        is_legal=jnp.concatenate([part.is_legal for part in parts]),
        final=tuple(part.final for part in parts),
    )


def make_vec(
    games: str | Game[Any] | Sequence[str | Game[Any]],
    num_envs: int,
    *,
    autoreset: AutoReset = "same_step",
    shares: Sequence[float] | None = None,
    max_steps: int | None = None,
    pool_size: int = 256,
) -> VecEnv:
    """A batch of environments of one game or several.

    Args:
        games: ids or games.
        num_envs: B, all games together.
        autoreset: what happens when an episode ends.
        shares: the relative share of each game in the batch; equal by default.
        max_steps: an episode is truncated after this many steps; None: never.
        pool_size: P, the states in each game's bank in mode `pool`.

    Raises:
        LevelError: a game or mode is unknown, or the shares leave a game without an environment.
    """
    listed = [games] if isinstance(games, str | Game) else list(games)
    made = [make(game) if isinstance(game, str) else game for game in listed]
    LevelError.require(len(made) > 0, "make_vec: name at least one game")
    LevelError.require(autoreset in get_args(AutoReset), unknown("autoreset mode", str(autoreset), get_args(AutoReset)))
    LevelError.require(
        max_steps is None or (is_whole(max_steps) and 1 <= max_steps <= MOST_STEPS),
        f"max_steps={max_steps!r}: at least 1, or None; a whole number up to {MOST_STEPS}",
    )
    LevelError.require(
        is_whole(pool_size) and 1 <= pool_size <= _MOST_ENVS, f"pool_size={pool_size!r}: at least 1{_LIMIT}"
    )
    LevelError.require(is_whole(num_envs) and num_envs <= _MOST_ENVS, f"num_envs={num_envs!r}: at least 1{_LIMIT}")
    counts = _split(num_envs, [1.0] * len(made) if shares is None else list(shares), len(made))
    return VecEnv([Batch(*pair, autoreset, max_steps, pool_size) for pair in zip(made, counts, strict=True)])


def _split(num_envs: int, shares: list[float], num_games: int) -> list[int]:
    """Integers in the proportions of the shares: rounded down, the rest to the largest remainders."""
    LevelError.require(len(shares) == num_games, f"shares: {len(shares)} for {num_games} games; give one per game")
    is_share = all(isinstance(share, int | float) and 0 < share < math.inf for share in shares)
    LevelError.require(is_share, f"shares={shares}: each must be above 0, a finite number")
    exact = np.array(shares) / sum(shares) * num_envs
    counts = np.floor(exact).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: num_envs - int(counts.sum())]:
        counts[i] += 1
    if counts.min() < 1:
        raise LevelError(f"num_envs={num_envs} leaves a game without an environment; use at least {num_games}")
    return [int(count) for count in counts]


def _with_noise(game: Game[Any], states: Pytree, canvases: Array) -> Array:
    """Adds a game's noise to its frames, at the top left of canvases uint8[b, H, W, 3]."""
    height, width, _ = game.frame_shape

    def add(state: Any, canvas: Array) -> Array:
        noisy = game.renderer.add_noise(canvas[:height, :width], game.tiles(state), state.seed, state.level.appearance)
        return canvas.at[:height, :width].set(noisy)

    return jax.vmap(add)(states, canvases)
