"""Batches: thousands of environments of one game, or of several in one compiled program.

The environments of a game stand together, so a batch is a few static groups, each a `vmap`; no environment computes
another game's step. What is per environment (`reward`, actions, frames) is one array over the whole batch, the groups
one after another, padded to the widest game; `VecEnv.game_id` says which is which.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from g1jax.envs import pool, prng
from g1jax.envs.checks import as_int32, check_bytes, is_whole
from g1jax.envs.core import Game, TracedLevel
from g1jax.envs.pool import Pool
from g1jax.envs.registry import make
from g1jax.envs.render import reader
from g1jax.envs.vmap_loop import loop_while, where
from g1jax.errors import InputError, LevelError, unknown
from g1jax.typing import Array, ArrayLike, Key, Pytree

EPISODE_STEPS = 100
"""Steps after which the paper's evaluation truncates an episode."""
_MOST_STEPS = 2**31 - 1
_MOST_ENVS = 2**26
_LIMIT = f", a whole number up to {_MOST_ENVS}"

AutoReset = Literal["none", "same_step", "next_step", "pool"]
"""What happens to an environment whose episode ended.

`none`: it stays as it is, with reward 0. `same_step`: it begins anew within the step that ended it; `VecResult.final`
keeps the last states. `next_step`: the next step ignores its action and begins anew. `pool`: as `same_step`, the new
state taken from a bank of ready ones, each of which is handed out once: see `pool.Pool`.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VecState:
    """A batch of environments."""

    games: tuple[Pytree, ...]  # one state a game, each leaf [b, …], b its environments
    num_steps: Array  # int32[B], of the running episode
    terminated: Array  # bool[B], by the last step
    truncated: Array  # bool[B], by the last step
    pools: tuple[Pool, ...]  # one a game in mode `pool`, else none


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VecResult:
    """What a step of a batch gives besides the next state."""

    reward: Array  # float32[B]
    terminated: Array  # bool[B]
    truncated: Array  # bool[B], cut by `max_steps`
    is_legal: Array  # bool[B]
    final: tuple[Pytree, ...]  # the states as the step left them, before any new beginning, like `VecState.games`


class VecEnv:
    """A batch of `num_envs` environments: pure functions of a VecState, to be jitted by the caller.

    Two batches are equal, and share compiled programs, if their games and settings are.

    >>> from g1jax import envs
    >>> vec = envs.make_vec(["game_2048", "swap"], num_envs=64)
    >>> state = jax.jit(vec.reset)(jax.random.key(0))
    >>> actions = vec.sample_actions(state, jax.random.key(1))
    >>> state, result = jax.jit(vec.step)(state, actions, jax.random.key(2))
    >>> jax.jit(vec.render)(state).shape, result.reward.shape
    ((64, 224, 224, 3), (64,))
    """

    def __init__(
        self,
        games: Sequence[Game[Any]],
        counts: Sequence[int],
        autoreset: AutoReset,
        max_steps: int | None,
        pool_size: int,
    ) -> None:
        self.games, self.counts = tuple(games), tuple(counts)
        self.autoreset: AutoReset = autoreset
        self.max_steps = max_steps
        self.pool_size = pool_size
        self.num_envs = sum(counts)
        self.num_actions = max(game.num_actions for game in games)
        starts = np.cumsum([0, *counts])
        self._slices = [slice(a, b) for a, b in itertools.pairwise(starts)]
        self.game_id = np.repeat(np.arange(len(games), dtype=np.int32), counts)  # int32[B]
        self.invalid_action = np.repeat(np.array([g.invalid_action for g in games], np.int32), counts)  # int32[B]
        shapes = [game.frame_shape for game in games]
        self.frame_shape = (max(s[0] for s in shapes), max(s[1] for s in shapes), 3)

    def _values(self) -> tuple[Any, ...]:
        return self.games, self.counts, self.autoreset, self.max_steps, self.pool_size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VecEnv) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[Any, ...]:
        return VecEnv, self._values()

    # Playing

    def reset(self, key: Key, levels: Sequence[TracedLevel] | TracedLevel | None = None) -> VecState:
        """Fresh states. `levels`: traced levels, one a game (or one for all); leaves [] or [b].

        Raises:
            InputError: levels of another number of games or environments.
        """
        reset_key, pool_key = jax.random.split(key)
        if levels is None:
            levels = [game.traced_level() for game in self.games]
        elif isinstance(levels, dict):
            levels = [levels] * len(self.games)
        InputError.require(len(levels) == len(self.games), f"levels: {len(levels)} of them for {len(self.games)} games")
        levels = [_spread(level, count) for level, count in zip(levels, self.counts, strict=True)]
        keys = jax.random.split(reset_key, self.num_envs)
        states = tuple(
            jax.vmap(game.reset)(keys[part], level)
            for game, level, part in zip(self.games, levels, self._slices, strict=True)
        )
        pools = self._fill_pools(pool_key, levels) if self.autoreset == "pool" else ()
        no = jnp.zeros(self.num_envs, bool)
        return VecState(states, jnp.zeros(self.num_envs, jnp.int32), no, no, pools)

    def step(self, state: VecState, actions: ArrayLike, key: Key) -> tuple[VecState, VecResult]:
        """One move everywhere, int32[B], then what `autoreset` says.

        Phases: move; cut episodes at `max_steps`; undo what ended before; begin anew where asked for.

        Raises:
            InputError: a state of another batch, or actions that are not one integer for each environment.
        """
        self._check_state(state.games)
        is_pooled = self.autoreset != "pool" or len(state.pools) == len(self.games)
        InputError.require(is_pooled, "state: without pools; a batch with autoreset='pool' steps from its own `reset`")
        actions = as_int32("actions", actions, (self.num_envs,))
        move_key, reset_key = jax.random.split(key)
        was_done = state.terminated | state.truncated
        moved, result = self._move(state.games, actions, move_key)
        num_steps = jnp.minimum(state.num_steps, _MOST_STEPS - 1) + 1  # an episode without an end must not wrap
        if self.max_steps is not None:
            truncated = (num_steps >= self.max_steps) & ~result.terminated
            result = dataclasses.replace(result, truncated=truncated)
        if self.autoreset in ("none", "next_step"):
            moved = self._select(was_done, state.games, moved)
            num_steps = jnp.where(was_done, state.num_steps, num_steps)
            keep = self.autoreset == "none"  # an episode that ended stays ended, or else begins anew now
            result = VecResult(
                reward=jnp.where(was_done, jnp.float32(0), result.reward),
                terminated=jnp.where(was_done, state.terminated & keep, result.terminated),
                truncated=jnp.where(was_done, state.truncated & keep, result.truncated),
                is_legal=result.is_legal & ~was_done,
                final=moved,
            )
        after = VecState(moved, num_steps, result.terminated, result.truncated, state.pools)
        match self.autoreset:
            case "none":
                return after, result
            case "next_step":
                return self._renew(after, was_done, reset_key), result
            case "same_step":
                return self._renew(after, result.terminated | result.truncated, reset_key), result
            case "pool":
                return self._renew_from_pools(after, result.terminated | result.truncated, reset_key), result

    def _move(self, games: tuple[Pytree, ...], actions: Array, key: Key) -> tuple[tuple[Pytree, ...], VecResult]:
        keys = jax.random.split(key, self.num_envs)
        moves = [
            jax.vmap(game.step)(state, actions[part], keys[part])
            for game, state, part in zip(self.games, games, self._slices, strict=True)
        ]
        states = tuple(state for state, _ in moves)
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(result for _, result in moves))
        return states, VecResult(joined.reward, joined.terminated, joined.truncated, joined.is_legal, states)

    # New beginnings

    def _renew(self, state: VecState, is_wanted: Array, key: Key) -> VecState:
        """Begins anew where wanted, bool[B], with the same level; only the wanted ones are computed."""
        seed = prng.seed_of(key)
        index = jnp.arange(self.num_envs, dtype=jnp.uint32)

        def begin(game: Game[Any], state: Any, is_wanted: Array, index: Array) -> Any:
            def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
                _, index, seed, state = carry
                key = jax.random.wrap_key_data(prng.words(seed, index, 2), impl="threefry2x32")
                return jnp.bool_(False), index, seed, game.reset(key, state.level)

            return loop_while(lambda carry: carry[0], body, (is_wanted, index, seed, state))[-1]

        games = tuple(
            jax.vmap(lambda state, wanted, index, game=game: begin(game, state, wanted, index))(
                states, is_wanted[part], index[part]
            )
            for game, states, part in zip(self.games, state.games, self._slices, strict=True)
        )
        return dataclasses.replace(state, games=games, num_steps=jnp.where(is_wanted, 0, state.num_steps))

    def _fill_pools(self, key: Key, levels: Sequence[TracedLevel]) -> tuple[Pool, ...]:
        keys = jax.random.split(key, (len(self.games), self.pool_size))
        return tuple(pool.fill(*args) for args in zip(self.games, levels, self.counts, keys, strict=True))

    def _renew_from_pools(self, state: VecState, is_wanted: Array, key: Key) -> VecState:
        keys = jax.random.split(key, len(self.games))
        renewed = [
            pool.renew(game, bank, states, is_wanted[part], game_key)
            for game, states, bank, part, game_key in zip(
                self.games, state.games, state.pools, self._slices, keys, strict=True
            )
        ]
        games, pools = zip(*renewed, strict=True)
        num_steps = jnp.where(is_wanted, 0, state.num_steps)
        return dataclasses.replace(state, games=games, pools=pools, num_steps=num_steps)

    # Walks and branches

    def random_walk(self, state: VecState, key: Key, num_steps: ArrayLike | int, *, legal: bool = False) -> VecState:
        """Plays random actions, `num_steps` in all or int32[B] in each; a game that ends begins anew and plays on.

        The paper's random states: uniform over all actions (`legal=False`), 100 of them in 2048, 250 in Shisen-Sho.
        """
        self._check_state(state.games)
        num_steps = jnp.broadcast_to(as_int32("num_steps", num_steps, (), (self.num_envs,)), (self.num_envs,))
        last = jnp.max(num_steps)
        walks = num_steps > 0
        key, first_key = jax.random.split(key)
        state = self._renew(state, walks & (state.terminated | state.truncated), first_key)
        state = dataclasses.replace(state, terminated=state.terminated & ~walks, truncated=state.truncated & ~walks)

        def advance(carry: tuple[Array, VecState]) -> tuple[Array, VecState]:
            i, state = carry
            action_key, move_key, reset_key = jax.random.split(jax.random.fold_in(key, i), 3)
            actions = self.sample_actions(state, action_key, legal=legal)
            games, result = self._move(state.games, actions, move_key)
            is_on = i < num_steps
            after = dataclasses.replace(state, games=self._select(is_on, games, state.games))
            return i + 1, self._renew(after, is_on & result.terminated, reset_key)

        return lax.while_loop(lambda carry: carry[0] < last, advance, (jnp.int32(0), state))[1]

    def branch(
        self, state: VecState, actions: Array, key: Key, *, common: bool = True
    ) -> tuple[tuple[Pytree, ...], VecResult]:
        """Every environment under K actions of its own, int32[B, K]: the next states of each game, leaves [b, K, …],
        and results, leaves [B, K]. See `Game.branch`; nothing is cut or begun anew.
        """
        self._check_state(state.games)
        actions = as_int32("actions", actions, (self.num_envs, None))
        keys = jax.random.split(key, self.num_envs)
        moves = [
            jax.vmap(lambda s, a, k, game=game: game.branch(s, a, k, common=common))(states, actions[part], keys[part])
            for game, states, part in zip(self.games, state.games, self._slices, strict=True)
        ]
        states = tuple(states for states, _ in moves)
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(result for _, result in moves))
        return states, VecResult(joined.reward, joined.terminated, joined.truncated, joined.is_legal, states)

    # What an environment shows and says; everything takes a VecState, or a result's `final`

    def render(self, state: VecState | tuple[Pytree, ...]) -> Array:
        """Frames on one canvas: uint8[B, H, W, 3], each game's at the top left, the rest in its background color."""
        states = _games_of(state)
        if len(self.games) == 1:
            return jax.vmap(self.games[0].render)(states[0])
        renderers = [game.renderer for game in self.games]
        height, width, _ = self.frame_shape
        # One gather for all games, from all their atlases.
        unit = math.gcd(width, *(renderer.unit for renderer in renderers))
        atlases = [renderer.cut(unit) for renderer in renderers]
        first = np.cumsum([0, *(len(atlas) for atlas in atlases)])

        def segments(game: Game[Any], state: Any) -> Array:
            return game.renderer.segments(game.tiles(state), state.seed, state.level, unit, (height, width))

        parts = self._each(segments, states)
        joined = jnp.concatenate([part + int(start) for part, start in zip(parts, first[:-1], strict=True)])
        seeds = jnp.concatenate([state.seed for state in states])
        frames = jax.vmap(reader(np.concatenate(atlases)))(joined, seeds)
        for game, state, part in zip(self.games, states, self._slices, strict=True):
            if game.level.noise > 0:
                frames = frames.at[part].set(_with_noise(game, state, frames[part]))
        return frames

    def render_each(self, state: VecState | tuple[Pytree, ...]) -> tuple[Array, ...]:
        """Frames of each game in its own size: uint8[b, H, W, 3] each, no canvas."""
        return tuple(self._each(lambda game, state: game.render(state), _games_of(state)))

    def describe(self, state: VecState | tuple[Pytree, ...]) -> Array:
        """True board texts: uint8[B, L]."""
        return self._join(lambda game, state: game.describe(state), _games_of(state))

    def legal_actions(self, state: VecState | tuple[Pytree, ...]) -> Array:
        """Which actions are legal: bool[B, num_actions], padded for games that have fewer."""
        return self._join(lambda game, state: game.legal_actions(state), _games_of(state))

    # What a player does

    def sample_actions(self, state: VecState | tuple[Pytree, ...], key: Key, *, legal: bool = True) -> Array:
        """Random actions, int32[B]: of the legal ones, or of all."""
        keys = jax.random.split(key, self.num_envs)
        return self._join(lambda game, s, k: game.sample_action(s, k, legal=legal), _games_of(state), keys)

    def expert(self, state: VecState | tuple[Pytree, ...], key: Key) -> Array:
        """The scripted players' actions: int32[B]."""
        keys = jax.random.split(key, self.num_envs)
        return self._join(lambda game, s, k: game.expert(s, k), _games_of(state), keys)

    def parse(self, responses: ArrayLike) -> Array:
        """The actions responses ask for: uint8[B, N] -> int32[B]."""
        check_bytes("responses", responses, self.num_envs, None)
        return self._join(lambda game, r: game.parse(r), None, responses)

    def write_actions(self, actions: ArrayLike) -> Array:
        """Actions as responses that `parse` reads: int32[B] -> uint8[B, A]."""
        actions = as_int32("actions", actions, (self.num_envs,))
        return self._join(lambda game, a: game.write_action(a), None, actions)

    def perception_exact(self, responses: Array, state: VecState | tuple[Pytree, ...]) -> Array:
        """Whether each response's perception is the true board text: uint8[B, N] -> bool[B]."""
        check_bytes("responses", responses, self.num_envs, None)
        return self._join(lambda game, s, r: game.perception_exact(r, s), _games_of(state), responses)

    def perception_cells(self, responses: Array, state: VecState | tuple[Pytree, ...]) -> Array:
        """The share of cells each response names rightly: uint8[B, N] -> float32[B]."""
        check_bytes("responses", responses, self.num_envs, None)
        return self._join(lambda game, s, r: game.perception_cells(r, s), _games_of(state), responses)

    # Plumbing

    def _each(
        self, function: Callable[..., Array], states: tuple[Pytree, ...] | None, *batched: ArrayLike
    ) -> list[Array]:
        """A function of (game, state, row of each batched array) over every game's environments."""
        if states is not None:
            self._check_state(states)
        out = []
        for i, (game, part) in enumerate(zip(self.games, self._slices, strict=True)):
            args = (() if states is None else (states[i],)) + tuple(array[part] for array in batched)
            out.append(jax.vmap(lambda *args, game=game: function(game, *args))(*args))
        return out

    def _join(self, function: Callable[..., Array], states: tuple[Pytree, ...] | None, *batched: ArrayLike) -> Array:
        """As `_each`, as one array over the batch, padded with zeros to the widest game."""
        parts = self._each(function, states, *batched)
        shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
        padded = [
            jnp.pad(part, [(0, 0), *((0, int(to - have)) for have, to in zip(part.shape[1:], shape, strict=True))])
            for part in parts
        ]
        return jnp.concatenate(padded)

    def _check_state(self, games: tuple[Pytree, ...]) -> None:
        """Refuses states of another batch, whose rows would be taken for those of this one."""
        sizes = [states.terminated.shape for states in games]
        InputError.require(
            sizes == [(count,) for count in self.counts],
            f"state: environments by game {sizes}, and this batch has {[(count,) for count in self.counts]}",
        )

    def _select(self, mask: Array, games: tuple[Pytree, ...], otherwise: tuple[Pytree, ...]) -> tuple[Pytree, ...]:
        return tuple(where(mask[part], a, b) for part, a, b in zip(self._slices, games, otherwise, strict=True))


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
        games: ids or made games.
        num_envs: B, all games together.
        autoreset: what happens when an episode ends.
        shares: how much of the batch each game gets; equal if not given.
        max_steps: an episode is cut (truncated) after so many steps.
        pool_size: P, states in each game's bank in mode `pool`.

    Raises:
        LevelError: unknown game or mode, or shares that leave a game without an environment.
    """
    listed = [games] if isinstance(games, str | Game) else list(games)
    made = [make(game) if isinstance(game, str) else game for game in listed]
    LevelError.require(len(made) > 0, "make_vec: name at least one game")
    LevelError.require(autoreset in get_args(AutoReset), unknown("autoreset mode", str(autoreset), get_args(AutoReset)))
    LevelError.require(
        max_steps is None or (is_whole(max_steps) and 1 <= max_steps <= _MOST_STEPS),
        f"max_steps={max_steps!r}: at least 1, or None; a whole number up to {_MOST_STEPS}",
    )
    LevelError.require(
        is_whole(pool_size) and 1 <= pool_size <= _MOST_ENVS, f"pool_size={pool_size!r}: at least 1{_LIMIT}"
    )
    LevelError.require(is_whole(num_envs) and num_envs <= _MOST_ENVS, f"num_envs={num_envs!r}: at least 1{_LIMIT}")
    counts = _split(num_envs, [1.0] * len(made) if shares is None else list(shares), len(made))
    return VecEnv(made, counts, autoreset, max_steps, pool_size)


def _split(num_envs: int, shares: list[float], num_games: int) -> list[int]:
    """Whole numbers in the proportions of the shares: each rounded down, the rest to the largest remainders."""
    LevelError.require(len(shares) == num_games, f"shares: {len(shares)} of them for {num_games} games")
    is_share = all(isinstance(share, int | float) and 0 < share < math.inf for share in shares)
    LevelError.require(is_share, f"shares={shares}: each must be above 0, a finite number")
    exact = np.array(shares) / sum(shares) * num_envs
    counts = np.floor(exact).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: num_envs - int(counts.sum())]:
        counts[i] += 1
    if counts.min() < 1:
        raise LevelError(f"num_envs={num_envs} leaves a game without an environment; use at least {num_games}")
    return [int(count) for count in counts]


def _games_of(state: VecState | tuple[Pytree, ...]) -> tuple[Pytree, ...]:
    return state.games if isinstance(state, VecState) else state


def _with_noise(game: Game[Any], states: Pytree, canvases: Array) -> Array:
    """Canvases of one game, uint8[b, H, W, 3], with its noise in its own frame at their top left."""
    height, width, _ = game.frame_shape

    def add(state: Any, canvas: Array) -> Array:
        noisy = game.renderer.add_noise(canvas[:height, :width], game.tiles(state), state.seed, state.level)
        return canvas.at[:height, :width].set(noisy)

    return jax.vmap(add)(states, canvases)


def _spread(level: TracedLevel, count: int) -> TracedLevel:
    """A traced level for each of a game's environments."""
    for key, value in level.items():
        InputError.require(
            value.shape in ((), (count,)), f"levels: {key} has shape {value.shape}; give () or ({count},)"
        )
    return {key: jnp.broadcast_to(value, (count,)) for key, value in level.items()}
