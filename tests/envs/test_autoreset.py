"""Episodes in every autoreset mode, against a slow simulation, and the pool."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.typing import Array
from tests.envs import helpers, toy

MODES: tuple[envs.AutoReset, ...] = ("none", "same_step", "next_step", "pool")


def states_in_order(vec: envs.VecEnv, games: tuple[Any, ...]) -> list[Any]:
    """The states of all environments one by one."""
    return [
        helpers.row(jax.device_get(states), i)
        for states, count in zip(games, vec.counts, strict=True)
        for i in range(count)
    ]


# ---- Episodes --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Simulated:
    """The expected environment after a step."""

    state: Any  # None: any fresh state
    final: Any
    num_steps: int
    reward: float
    terminated: bool
    truncated: bool
    is_legal: bool


def simulate(
    mode: str,
    max_steps: int | None,
    step: Callable[[], Any],
    state: Any,
    num_steps: int,
    terminated: bool,
    truncated: bool,
) -> Simulated:
    """The definition of the modes, for one environment, given its values before the step."""
    if terminated or truncated:
        if mode == "none":
            return Simulated(state, state, num_steps, 0.0, terminated, truncated, False)
        if mode == "next_step":
            return Simulated(None, state, 0, 0.0, False, False, False)
    after, result = step()
    num_steps += 1
    terminated = bool(result.terminated)
    truncated = max_steps is not None and num_steps >= max_steps and not terminated
    simulated = Simulated(after, after, num_steps, float(result.reward), terminated, truncated, bool(result.is_legal))
    if mode in ("same_step", "pool") and (terminated or truncated):
        simulated.state, simulated.num_steps = None, 0
    return simulated


def assert_same_state(actual: Any, expected: Any) -> None:
    helpers.assert_trees_equal(actual, jax.tree.map(np.asarray, expected))


def levels_of(game: Any, start: np.ndarray) -> Any:
    """Countdown's levels, with an initial number for each environment."""
    own = jax.tree.map(lambda value: jnp.broadcast_to(value, start.shape), game.traced_level())
    return dataclasses.replace(own, start=jnp.asarray(start, jnp.int32))


@pytest.mark.parametrize("max_steps", [pytest.param(None, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("mode", MODES)
def test_episodes_end_and_restart_according_to_the_mode(mode: envs.AutoReset, max_steps: int | None) -> None:
    games = (toy.make(luck=0.0), toy.make(luck=0.0, most=2))
    vec = envs.make_vec(games, 24, autoreset=mode, max_steps=max_steps, pool_size=256)
    num_rounds = 14
    reset_key, *step_keys = helpers.keys(num_rounds + 1)
    steps = [jax.jit(game.step) for game in games]
    step_all = jax.jit(vec.step)
    state = jax.jit(vec.reset)(reset_key)
    assert not np.asarray(state.num_steps).any()
    assert not np.asarray(state.terminated | state.truncated).any()
    actions = np.random.default_rng(0).integers(-1, 4, (num_rounds, 24)).astype(np.int32)
    num_ends, num_truncated, num_resets = 0, 0, 0
    for key, chosen in zip(step_keys, actions, strict=True):
        before = states_in_order(vec, state.games)
        was = [np.asarray(part).tolist() for part in (state.num_steps, state.terminated, state.truncated)]
        state, result = step_all(state, chosen, key)
        after, final = states_in_order(vec, state.games), states_in_order(vec, result.final)
        for i, action in enumerate(chosen):
            step = functools.partial(steps[vec.game_id[i]], before[i], action, jax.random.key(9))
            expected = simulate(mode, max_steps, step, before[i], *(part[i] for part in was))
            assert (float(result.reward[i]), bool(result.is_legal[i])) == (expected.reward, expected.is_legal)
            assert (bool(result.terminated[i]), bool(result.truncated[i])) == (expected.terminated, expected.truncated)
            assert int(state.num_steps[i]) == expected.num_steps
            assert_same_state(final[i], expected.final)
            if expected.state is None:
                assert after[i].board[0, 0] > 0
                assert not after[i].terminated
                assert after[i].seed != before[i].seed
                assert_same_state(after[i].level, before[i].level)
            else:
                assert_same_state(after[i], expected.state)
            num_ends += expected.terminated
            num_truncated += expected.truncated
            num_resets += expected.state is None
        np.testing.assert_array_equal(state.terminated, result.terminated)
        np.testing.assert_array_equal(state.truncated, result.truncated)
    assert num_ends > 2
    assert (num_truncated > 0) == (max_steps is not None)
    assert (num_resets > 0) == (mode != "none")


def test_a_step_of_a_batch_is_a_step_of_each_of_its_games() -> None:
    games = (helpers.make("game_2048"), helpers.make("shisen_sho", rows=4, cols=4))
    vec = envs.make_vec(games, 24, autoreset="none")

    @jax.jit
    def play(key: Array) -> Any:
        state = vec.reset(key)
        actions = vec.sample_actions(state, key, legal=False)
        return state, actions, *vec.step(state, actions, key)

    state, actions, after, result = play(jax.random.key(0))
    assert len(np.unique(helpers.row(after.games[0].board, slice(None)), axis=0)) == 12
    legal = [
        np.asarray(jax.jit(jax.vmap(game.legal_actions))(states))
        for game, states in zip(games, state.games, strict=True)
    ]
    chosen = np.asarray(actions)
    expected = np.concatenate([legal[0][np.arange(12), chosen[:12]], legal[1][np.arange(12), chosen[12:]]])
    np.testing.assert_array_equal(result.is_legal, expected)
    assert 0 < expected.sum() < 24
    moved = [
        (np.asarray(new.board) != np.asarray(old.board)).any(axis=(1, 2))
        for new, old in zip(after.games, state.games, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(moved), expected)


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_environments_keep_their_own_level_over_episodes(mode: envs.AutoReset) -> None:
    game = toy.make()
    vec = envs.make_vec(game, 30, autoreset=mode, max_steps=3)
    start = np.arange(30) % 9 + 1
    state = jax.jit(vec.reset)(jax.random.key(0), levels_of(game, start))
    step = jax.jit(vec.step)
    num_begun = 0
    for key in helpers.keys(8, seed=1):
        state, _ = step(state, jnp.full(30, game.invalid_action), key)
        np.testing.assert_array_equal(state.games[0].board[:, 0, 0], start)
        np.testing.assert_array_equal(state.games[0].level.start, start)
        num_begun += int((np.asarray(state.num_steps) == 0).sum())
    assert num_begun == 60


@pytest.mark.parametrize("mode", ["same_step", "next_step", "pool"])
def test_new_episodes_differ_from_each_other(mode: envs.AutoReset) -> None:
    vec = envs.make_vec((toy.make(), toy.make(most=2)), 40, autoreset=mode, max_steps=1, pool_size=128)
    state = jax.jit(vec.reset)(jax.random.key(0))
    step = jax.jit(vec.step)
    seeds = [np.asarray(states.seed) for states in state.games]
    for key in helpers.keys(2 if mode != "next_step" else 4, seed=2):
        state, _ = step(state, jnp.zeros(40, jnp.int32), key)
        if not np.asarray(state.num_steps).any():
            seeds += [np.asarray(states.seed) for states in state.games]
    assert len(seeds) == 6
    assert len(np.unique(np.concatenate(seeds))) == 120


# ---- The pool --------------------------------------------------------------------------------------------------------


def seeds_of(vec: envs.VecEnv, num_steps: int, seed: int = 3) -> tuple[list[np.ndarray], Any]:
    """The seeds of initial states if all episodes end at every step, by game, and the last state."""
    state = jax.jit(vec.reset)(jax.random.key(0))
    step = jax.jit(vec.step)
    seen = [[np.asarray(states.seed)] for states in state.games]
    for key in helpers.keys(num_steps, seed=seed):
        state, _ = step(state, jnp.zeros(vec.num_envs, jnp.int32), key)
        assert not np.asarray(state.num_steps).any()
        for of_game, states in zip(seen, state.games, strict=True):
            of_game.append(np.asarray(states.seed))
    return [np.concatenate(of_game) for of_game in seen], state


@pytest.mark.parametrize("pool_size", [1, 7, pytest.param(50, marks=pytest.mark.slow)])
def test_the_pool_hands_out_no_state_twice(pool_size: int) -> None:
    """With more or fewer episodes that end at once than the pool has states."""
    vec = envs.make_vec([toy.make(), toy.make(most=2)], 20, autoreset="pool", max_steps=1, pool_size=pool_size)
    seen, state = seeds_of(vec, 16)
    ready = [np.asarray(pool.states.seed) for pool in state.pools]
    for seeds, bank, pool in zip(seen, ready, state.pools, strict=True):
        assert len(np.unique(seeds)) == len(seeds) == 170
        unused = np.roll(bank, -int(pool.next))[: int(pool.num_ready)]
        assert len(unused) > pool_size - max(1, pool_size // 4)
        assert not set(unused.tolist()) & set(seeds.tolist())
    assert len(np.unique(np.concatenate([*seen, *ready]))) >= 340 + sum(int(p.num_ready) for p in state.pools)


def test_the_pool_starts_with_the_states_that_it_was_filled_with() -> None:
    vec = envs.make_vec(toy.make(), 20, autoreset="pool", max_steps=1, pool_size=50)
    bank = np.asarray(jax.jit(vec.reset)(jax.random.key(0)).pools[0].states.seed)
    (seeds,), _ = seeds_of(vec, 2)
    np.testing.assert_array_equal(seeds[20:], bank[:40])


def test_the_pool_is_refilled_a_chunk_at_a_time() -> None:
    """A step computes no fresh state until a chunk is used."""
    vec = envs.make_vec(toy.make(luck=0.0, start=3), 4, autoreset="pool", pool_size=32)
    state, step = jax.jit(vec.reset)(jax.random.key(0)), jax.jit(vec.step)
    missing, changed = [], []
    for key in helpers.keys(12, seed=4):
        before = np.asarray(state.pools[0].states.seed)
        state, _ = step(state, jnp.zeros(4, jnp.int32), key)
        missing.append(32 - int(state.pools[0].num_ready))
        changed.append(int((np.asarray(state.pools[0].states.seed) != before).sum()))
    assert max(missing) == 4
    assert set(changed) == {0, 8}


def test_the_pool_hands_out_as_many_as_ended_and_no_more() -> None:
    vec = envs.make_vec(toy.make(), 10, autoreset="pool", pool_size=32)
    state = jax.jit(vec.reset)(jax.random.key(0), levels_of(vec.games[0], np.arange(10) % 5 + 1))
    step = jax.jit(vec.step)
    for key in helpers.keys(6, seed=4):
        before = state
        state, result = step(state, jnp.full(10, 1), key)
        ended = np.asarray(result.terminated)
        is_new = np.asarray(state.games[0].seed) != np.asarray(before.games[0].seed)
        np.testing.assert_array_equal(is_new, ended)
        handed = (before.pools[0].next + np.arange(ended.sum())) % 32
        np.testing.assert_array_equal(state.games[0].seed[ended], before.pools[0].states.seed[handed])
        assert int(state.pools[0].next) == (int(before.pools[0].next) + ended.sum()) % 32


@pytest.mark.parametrize(("num_envs", "pool_size"), [(16, 64), (64, 16)])
def test_the_pool_has_levels_in_the_proportions_of_the_environments(num_envs: int, pool_size: int) -> None:
    game = toy.make()
    vec = envs.make_vec(game, num_envs, autoreset="pool", max_steps=1, pool_size=pool_size)
    start = np.where(np.arange(num_envs) < num_envs * 3 // 4, 2, 7)
    state = jax.jit(vec.reset)(jax.random.key(0), levels_of(game, start))
    in_pool = np.asarray(state.pools[0].states.level.start)
    assert (in_pool == 7).mean() == pytest.approx(0.25, abs=0.07)
    step = jax.jit(vec.step)
    handed = []
    for key in helpers.keys(6, seed=5):
        state, _ = step(state, jnp.full(num_envs, game.invalid_action), key)
        handed.append(np.asarray(state.games[0].level.start))
        np.testing.assert_array_equal(state.games[0].board[:, 0, 0], handed[-1])
    assert (np.concatenate(handed) == 7).mean() == pytest.approx(0.25, abs=0.07)
