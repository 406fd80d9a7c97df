"""Batches: what becomes of episodes in every autoreset mode, against a slow simulation; mixes, walks, frames."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import appearance
from g1jax.typing import Array
from tests.envs import helpers, toy

GAMES = ("game_2048", "shisen_sho", "shisen_sho_cifar10", "swap")
MODES: tuple[envs.AutoReset, ...] = ("none", "same_step", "next_step", "pool")


@functools.cache
def make(game_id: str, **keys: Any) -> Any:
    if game_id == "shisen_sho_cifar10":
        keys = {"images": "digits"} | keys
    return envs.make(game_id, **keys)


def vec_of(games: Any, num_envs: int, **options: Any) -> envs.VecEnv:
    return envs.make_vec(games, num_envs, **options)


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
    """What one environment must be after a step."""

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
    """The definition of the modes, for one environment, from what it was before the step."""
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
    """Countdown's levels, a number to begin with for each environment."""
    own = {key: jnp.broadcast_to(value, start.shape) for key, value in game.traced_level().items()}
    return own | {"start": jnp.asarray(start, jnp.int32)}


@pytest.mark.parametrize("max_steps", [None, 3])
@pytest.mark.parametrize("mode", MODES)
def test_episodes_end_and_begin_as_the_mode_says(mode: envs.AutoReset, max_steps: int | None) -> None:
    games = (toy.make(luck=0.0), toy.make(luck=0.0, most=2))
    vec = vec_of(games, 24, autoreset=mode, max_steps=max_steps, pool_size=256)
    num_rounds = 14
    reset_key, *step_keys = helpers.keys(num_rounds + 1)
    steps = [jax.jit(game.step) for game in games]
    step_all = jax.jit(vec.step)
    state = jax.jit(vec.reset)(reset_key)
    assert not np.asarray(state.num_steps).any()
    assert not np.asarray(state.terminated | state.truncated).any()
    actions = np.random.default_rng(0).integers(-1, 4, (num_rounds, 24)).astype(np.int32)
    num_ends, num_cuts, num_begun = 0, 0, 0
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
            num_cuts += expected.truncated
            num_begun += expected.state is None
        np.testing.assert_array_equal(state.terminated, result.terminated)
        np.testing.assert_array_equal(state.truncated, result.truncated)
    assert num_ends > 2
    assert (num_cuts > 0) == (max_steps is not None)
    assert (num_begun > 0) == (mode != "none")


def test_a_step_of_a_batch_is_a_step_of_each_of_its_games() -> None:
    games = (make("game_2048"), make("shisen_sho", rows=4, cols=4))
    vec = vec_of(games, 24, autoreset="none")

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
    vec = vec_of(game, 30, autoreset=mode, max_steps=3)
    start = np.arange(30) % 9 + 1
    state = jax.jit(vec.reset)(jax.random.key(0), levels_of(game, start))
    step = jax.jit(vec.step)
    num_begun = 0
    for key in helpers.keys(8, seed=1):
        state, _ = step(state, jnp.full(30, game.invalid_action), key)
        np.testing.assert_array_equal(state.games[0].board[:, 0, 0], start)
        np.testing.assert_array_equal(state.games[0].level["start"], start)
        num_begun += int((np.asarray(state.num_steps) == 0).sum())
    assert num_begun == 60


@pytest.mark.parametrize("mode", ["same_step", "next_step", "pool"])
def test_new_episodes_differ_from_each_other(mode: envs.AutoReset) -> None:
    vec = vec_of((toy.make(), toy.make(most=2)), 40, autoreset=mode, max_steps=1, pool_size=128)
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
    """What the environments begin with when all end at every step, by game, and the last state."""
    state = jax.jit(vec.reset)(jax.random.key(0))
    step = jax.jit(vec.step)
    seen = [[np.asarray(states.seed)] for states in state.games]
    for key in helpers.keys(num_steps, seed=seed):
        state, _ = step(state, jnp.zeros(vec.num_envs, jnp.int32), key)
        assert not np.asarray(state.num_steps).any()
        for of_game, states in zip(seen, state.games, strict=True):
            of_game.append(np.asarray(states.seed))
    return [np.concatenate(of_game) for of_game in seen], state


@pytest.mark.parametrize("pool_size", [1, 7, 50])
def test_the_pool_hands_out_no_state_twice(pool_size: int) -> None:
    """Whether more episodes end at once than it has states, or fewer."""
    vec = vec_of([toy.make(), toy.make(most=2)], 20, autoreset="pool", max_steps=1, pool_size=pool_size)
    seen, state = seeds_of(vec, 16)
    ready = [np.asarray(pool.states.seed) for pool in state.pools]
    for seeds, bank, pool in zip(seen, ready, state.pools, strict=True):
        assert len(np.unique(seeds)) == len(seeds) == 170
        unused = np.roll(bank, -int(pool.next))[: int(pool.num_ready)]
        assert len(unused) > pool_size - max(1, pool_size // 4)
        assert not set(unused.tolist()) & set(seeds.tolist())
    assert len(np.unique(np.concatenate([*seen, *ready]))) >= 340 + sum(int(p.num_ready) for p in state.pools)


def test_the_pool_starts_with_the_states_that_it_was_filled_with() -> None:
    vec = vec_of(toy.make(), 20, autoreset="pool", max_steps=1, pool_size=50)
    bank = np.asarray(jax.jit(vec.reset)(jax.random.key(0)).pools[0].states.seed)
    (seeds,), _ = seeds_of(vec, 2)
    np.testing.assert_array_equal(seeds[20:], bank[:40])


def test_the_pool_is_refilled_a_chunk_at_a_time() -> None:
    """As long as a chunk of it is not used up, a step computes no fresh state."""
    vec = vec_of(toy.make(luck=0.0, start=3), 4, autoreset="pool", pool_size=32)
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
    vec = vec_of(toy.make(), 10, autoreset="pool", pool_size=32)
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
    vec = vec_of(game, num_envs, autoreset="pool", max_steps=1, pool_size=pool_size)
    start = np.where(np.arange(num_envs) < num_envs * 3 // 4, 2, 7)
    state = jax.jit(vec.reset)(jax.random.key(0), levels_of(game, start))
    in_pool = np.asarray(state.pools[0].states.level["start"])
    assert (in_pool == 7).mean() == pytest.approx(0.25, abs=0.07)
    step = jax.jit(vec.step)
    handed = []
    for key in helpers.keys(6, seed=5):
        state, _ = step(state, jnp.full(num_envs, game.invalid_action), key)
        handed.append(np.asarray(state.games[0].level["start"]))
        np.testing.assert_array_equal(state.games[0].board[:, 0, 0], handed[-1])
    assert (np.concatenate(handed) == 7).mean() == pytest.approx(0.25, abs=0.07)


# ---- Mixes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_envs", "shares", "counts"),
    [
        (64, None, [16, 16, 16, 16]),
        (10, None, [3, 3, 2, 2]),
        (4, None, [1, 1, 1, 1]),
        (64, [1, 1, 1, 5], [8, 8, 8, 40]),
        (10, [0.4, 0.3, 0.2, 0.1], [4, 3, 2, 1]),
        (7, [3, 1, 1, 1], [4, 1, 1, 1]),
        (100, [1 / 3, 1 / 3, 1 / 6, 1 / 6], [33, 33, 17, 17]),
    ],
)
def test_games_get_their_share_of_the_batch(num_envs: int, shares: list[float] | None, counts: list[int]) -> None:
    vec = vec_of([make(game_id) for game_id in GAMES], num_envs, shares=shares)
    assert list(vec.counts) == counts
    assert sum(vec.counts) == vec.num_envs == num_envs
    np.testing.assert_array_equal(vec.game_id, np.repeat(range(4), counts))
    np.testing.assert_array_equal(vec.invalid_action, np.repeat([4, 1296, 1296, 4096], counts))
    assert vec.num_actions == 4096


@pytest.mark.parametrize(
    ("games", "num_envs", "options", "message"),
    [
        (["game_2048", "swop"], 8, {}, "unknown game 'swop'; did you mean 'swap'"),
        ([], 8, {}, "name at least one game"),
        (["game_2048"], 8, {"autoreset": "samestep"}, "unknown autoreset mode 'samestep'; did you mean 'same_step'"),
        (["game_2048"], 8, {"max_steps": 0}, "max_steps=0: at least 1, or None"),
        (["game_2048"], 8, {"pool_size": 0}, "pool_size=0: at least 1"),
        (["game_2048", "swap"], 1, {}, "num_envs=1 leaves a game without an environment; use at least 2"),
        (["game_2048"], 0, {}, "num_envs=0 leaves a game without an environment"),
        (["game_2048", "swap"], 10, {"shares": [99, 1]}, "leaves a game without an environment"),
        (["game_2048", "swap"], 8, {"shares": [1]}, "shares: 1 of them for 2 games"),
        (["game_2048", "swap"], 8, {"shares": [1, 0]}, "each must be above 0"),
        (["game_2048", "swap"], 8, {"shares": [2, -1]}, "each must be above 0"),
        (["game_2048", "swap"], 8, {"shares": [1, math.inf]}, "each must be above 0, a finite number"),
        (["game_2048", "swap"], 8, {"shares": [math.nan, 1]}, "each must be above 0, a finite number"),
        (["game_2048"], 8.0, {}, "num_envs=8.0: at least 1, a whole number"),
        (["game_2048"], True, {}, "num_envs=True: at least 1, a whole number"),
        (["game_2048"], 10**12, {}, "num_envs=1000000000000: at least 1, a whole number up to 67108864"),
        (["game_2048"], 8, {"pool_size": 2**40}, "pool_size=1099511627776: at least 1, a whole number up to"),
        (["game_2048"], 8, {"max_steps": 2**31}, "max_steps=2147483648: at least 1, or None; a whole number up to"),
        (["game_2048"], 8, {"max_steps": 1.5}, "max_steps=1.5: at least 1, or None"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(games: Any, num_envs: int, options: Any, message: str) -> None:
    with pytest.raises(envs.LevelError, match=message):
        vec_of(games, num_envs, **options)


RESPONSE = "<perception>1 | -</perception><answer>(0, 1) (0, 2)</answer><answer>2</answer>"


def padded(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    return np.pad(array, [(0, to - have) for have, to in zip(array.shape, shape, strict=True)])


def test_a_mix_asks_every_game_the_same_as_the_game_alone() -> None:
    games = (toy.make(), make("shisen_sho", rows=2, cols=4))
    vec = vec_of(games, 8)
    encoded = np.frombuffer(RESPONSE.encode(), np.uint8)

    @jax.jit
    def ask(key: Array) -> Any:
        state = vec.reset(key)
        actions = vec.sample_actions(state, key)
        written, responses = vec.write_actions(actions), jnp.broadcast_to(encoded, (8, len(encoded)))
        return (
            state.games,
            actions,
            {
                "describe": vec.describe(state),
                "legal_actions": vec.legal_actions(state),
                "expert": vec.expert(state, key),
                "parse": vec.parse(responses),
                "write_action": written,
                "perception_exact": vec.perception_exact(responses, state),
                "perception_cells": vec.perception_cells(responses, state.games),
            },
            vec.parse(written),
        )

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def ask_alone(game: Any, state: Any, action: Array) -> Any:
        return {
            "describe": game.describe(state),
            "legal_actions": game.legal_actions(state),
            "expert": game.expert(state, jax.random.key(0)),
            "parse": game.parse(encoded),
            "write_action": game.write_action(action),
            "perception_exact": game.perception_exact(encoded, state),
            "perception_cells": game.perception_cells(encoded, state),
        }

    states, actions, answers, read = jax.device_get(ask(jax.random.key(0)))
    np.testing.assert_array_equal(read, actions)
    for i, game in enumerate(games):
        part = slice(4 * i, 4 * i + 4)
        alone = ask_alone(game, states[i], actions[part])
        for name, answer in answers.items():
            np.testing.assert_array_equal(answer[part], padded(alone[name], answer[part].shape), err_msg=name)
        assert np.asarray(alone["legal_actions"])[np.arange(4), actions[part]].all()
    assert answers["legal_actions"].shape == (8, vec.num_actions) == (8, 64)


def random_states(game: Any, num: int) -> Any:
    """States of any cells at all, each with a seed of its own."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, len(game.cell_names()), (num, game.rows, game.cols)).astype(np.int32)
    seeds = rng.integers(0, 2**32, num, np.uint32)
    return jax.jit(jax.vmap(game.from_cells, (0, 0, None)))(cells, seeds, game.traced_level())


MIXES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "the four games": tuple((game_id, {}) for game_id in GAMES),
    "frame sizes": (("game_2048", {"frame_size": (168, 224), "background": "dark"}), ("swap", {"rows": 3, "cols": 9})),
    "cell sizes": (
        ("game_2048", {"cell_size": 30}),
        ("swap", {"rows": 3, "cols": 4}),
        ("shisen_sho", {"cell_size": 17}),
    ),
    "noise": (("game_2048", {"noise": 9.0}), ("swap", {"rows": 3, "cols": 4})),
    "odd margins": (("game_2048", {"frame_size": (131, 145)}), ("swap", {"rows": 3, "cols": 4})),
    "backgrounds": (
        ("game_2048", {"background": ("dark", "sand"), "rows": 2, "cols": 2}),
        ("swap", {"background": "slate", "rows": 3, "cols": 4}),
    ),
}


@pytest.mark.parametrize("name", MIXES)
def test_any_mix_is_rendered_as_its_games_are_in_their_backgrounds(name: str) -> None:
    games = [make(game_id, **keys) for game_id, keys in MIXES[name]]
    vec = vec_of(games, 4 * len(games))
    states = [random_states(game, 4) for game in games]
    frames = np.asarray(jax.jit(vec.render)(tuple(states)))
    each = jax.jit(vec.render_each)(tuple(states))
    height, width = max(g.frame_shape[0] for g in games), max(g.frame_shape[1] for g in games)
    assert frames.shape == (len(frames), height, width, 3)
    for i, (game, own) in enumerate(zip(games, map(np.asarray, each), strict=True)):
        np.testing.assert_array_equal(own, jax.jit(jax.vmap(game.render))(states[i]))
        canvas = frames[4 * i : 4 * i + 4]
        np.testing.assert_array_equal(canvas[:, : own.shape[1], : own.shape[2]], own)
        below, right = canvas[:, own.shape[1] :], canvas[:, :, own.shape[2] :]
        around = np.concatenate([below.reshape(4, -1, 3), right.reshape(4, -1, 3)], 1)
        backgrounds = game.renderer.backgrounds
        margins = [appearance.BACKGROUNDS[background][2] for background in backgrounds]
        for pixels in around:
            assert any((pixels == margin).all() for margin in margins), "not in the game's background"


def test_one_game_alone_is_rendered_in_its_own_size() -> None:
    game = make("swap", rows=3, cols=4)
    vec, states = vec_of(game, 5), random_states(game, 5)
    frames = np.asarray(jax.jit(vec.render)((states,)))
    assert frames.shape == (5, 84, 112, 3) == (5, *vec.frame_shape)
    np.testing.assert_array_equal(frames, jax.jit(jax.vmap(game.render))(states))


def test_a_state_and_its_last_result_are_shown_alike() -> None:
    vec = vec_of([toy.make(), toy.make(most=2)], 8, autoreset="same_step", max_steps=1)
    state = jax.jit(vec.reset)(jax.random.key(0))
    after, result = jax.jit(vec.step)(state, jnp.full(8, -1), jax.random.key(1))
    show = jax.jit(lambda states: (vec.render(states), vec.describe(states), vec.legal_actions(states)))
    helpers.assert_trees_equal(show(result.final), show(state))  # invalid moves: the last states are the first
    assert (np.asarray(show(after)[1]) != np.asarray(show(state)[1])).any()


def test_levels_of_a_mix_are_given_one_a_game() -> None:
    games = (make("game_2048"), toy.make())
    vec = vec_of(games, 8)
    levels = [games[0].traced_level(start_tiles=9), games[1].traced_level(start=6)]
    state = jax.jit(vec.reset)(jax.random.key(0), levels)
    assert ((np.asarray(state.games[0].board) > 0).sum(axis=(1, 2)) == 9).all()
    assert (np.asarray(state.games[1].board)[:, 0, 0] == 6).all()
    pair = vec_of((toy.make(), toy.make(most=2)), 8)
    state = jax.jit(pair.reset)(jax.random.key(0), toy.make().traced_level(start=5))  # or one for all
    assert all((np.asarray(states.board)[:, 0, 0] == 5).all() for states in state.games)


# ---- Random moves ----------------------------------------------------------------------------------------------------


def test_random_actions_are_legal_and_all_legal_ones_alike() -> None:
    for game_id in ("game_2048", "shisen_sho", "swap"):
        game = make(game_id)
        state = jax.jit(game.reset)(jax.random.key(2))
        mask = np.asarray(jax.jit(game.legal_actions)(state))
        assert 1 < mask.sum() < game.num_actions or game_id == "game_2048"
        draws = 250 * int(mask.sum())
        sample = jax.jit(jax.vmap(game.sample_action, (None, 0)))
        counts = np.bincount(np.asarray(sample(state, helpers.keys(draws))), minlength=game.num_actions + 1)
        helpers.assert_fits(counts, np.append(mask, False) * 250.0)
        draws = 20 * game.num_actions
        anything = jax.jit(jax.vmap(functools.partial(game.sample_action, legal=False), (None, 0)))
        counts = np.bincount(np.asarray(anything(state, helpers.keys(draws))), minlength=game.num_actions)
        helpers.assert_fits(counts, np.full(game.num_actions, 20))


def test_without_a_legal_move_the_random_one_is_invalid() -> None:
    game = toy.make()
    over = game.from_text("- | 5")
    assert int(jax.jit(game.sample_action)(over, jax.random.key(0))) == game.invalid_action


# ---- Walks -----------------------------------------------------------------------------------------------------------


def test_a_walk_takes_as_many_steps_in_each_environment_as_asked() -> None:
    games = (make("game_2048", spawn_four=0.0), toy.make(most=1, start=9))
    vec = vec_of(games, 40, autoreset="none")
    state = jax.jit(vec.reset)(jax.random.key(0))
    steps = np.arange(40, dtype=np.int32) % 8
    walk = jax.jit(functools.partial(vec.random_walk, legal=True))
    after = walk(state, jax.random.key(1), steps)
    before, now = jax.device_get(state.games), jax.device_get(after.games)
    # Every legal move of 2048 adds a 2 and keeps the sum otherwise; every move of this countdown takes one off.
    sums = [np.where(games[0].board > 0, 2.0 ** games[0].board, 0).sum(axis=(1, 2)) for games in (before, now)]
    np.testing.assert_array_equal(sums[1] - sums[0], 2 * steps[:20])
    np.testing.assert_array_equal(9 - now[1].board[:, 0, 0], steps[20:])
    for i in np.flatnonzero(steps[:20] == 0):
        helpers.assert_trees_equal(helpers.row(now[0], i), helpers.row(before[0], i))
    np.testing.assert_array_equal(after.num_steps, state.num_steps)
    helpers.assert_trees_equal(walk(state, jax.random.key(1), np.zeros(40, np.int32)), state)
    helpers.assert_trees_equal(
        walk(state, jax.random.key(1), np.full(40, 3, np.int32)), walk(state, jax.random.key(1), jnp.int32(3))
    )
    others = walk(state, jax.random.key(2), steps)
    assert (np.asarray(others.games[0].board) != now[0].board).any(axis=(1, 2)).sum() > 10


def test_games_that_end_in_a_walk_begin_anew_and_play_on() -> None:
    vec = vec_of(toy.make(most=1, start=3), 12, autoreset="none")
    state = jax.jit(vec.reset)(jax.random.key(0))
    steps = np.arange(12, dtype=np.int32)
    after = jax.jit(functools.partial(vec.random_walk, legal=True))(state, jax.random.key(1), steps)
    np.testing.assert_array_equal(after.games[0].board[:, 0, 0], 3 - steps % 3)
    assert not np.asarray(after.games[0].terminated).any()
    assert ((np.asarray(after.games[0].seed) != np.asarray(state.games[0].seed)) == (steps >= 3)).all()
    assert not np.asarray(after.num_steps).any()


def test_a_walk_of_any_actions_takes_illegal_ones_too() -> None:
    vec = vec_of(make("game_2048", spawn_four=0.0), 200, autoreset="none")
    state = jax.jit(vec.reset)(jax.random.key(0))
    boards = np.asarray(jax.jit(vec.random_walk)(state, jax.random.key(1), 30).games[0].board)
    added = (np.where(boards > 0, 2.0**boards, 0).sum(axis=(1, 2)) - 4) / 2
    assert added.max() <= 30
    assert 20 < added.mean() < 29


@pytest.mark.parametrize("mode", MODES)
def test_environments_that_had_ended_play_again_after_a_walk(mode: envs.AutoReset) -> None:
    vec = vec_of(toy.make(most=1, start=1), 4, autoreset=mode, pool_size=4)
    state = jax.jit(vec.reset)(jax.random.key(0))
    step = jax.jit(vec.step)
    state, result = step(state, jnp.zeros(4, jnp.int32), jax.random.key(1))
    assert np.asarray(result.terminated).all()
    walked = jax.jit(functools.partial(vec.random_walk, legal=True))(state, jax.random.key(2), 3)
    assert not np.asarray(walked.games[0].terminated).any()
    _after, result = step(walked, jnp.zeros(4, jnp.int32), jax.random.key(3))
    assert np.asarray(result.reward).tolist() == [1, 1, 1, 1]
    assert np.asarray(result.terminated).all()


# ---- Branches --------------------------------------------------------------------------------------------------------


def test_branches_start_from_the_same_state_and_share_their_future_or_not() -> None:
    game = make("game_2048")
    state = jax.jit(game.reset)(jax.random.key(0))
    legal = int(np.flatnonzero(np.asarray(jax.jit(game.legal_actions)(state)))[0])
    branch = jax.jit(game.branch, static_argnames="common")
    same = jnp.full(64, legal)
    states, results = branch(state, same, jax.random.key(1), common=True)
    assert len(np.unique(np.asarray(states.board), axis=0)) == 1
    assert np.asarray(results.is_legal).all()
    others, _ = branch(state, same, jax.random.key(1), common=False)
    assert len(np.unique(np.asarray(others.board), axis=0)) > 10
    mixed = jnp.arange(5)
    states, results = branch(state, mixed, jax.random.key(1), common=True)
    step = jax.jit(game.step)
    for action in range(5):
        after, result = step(state, jnp.int32(action), jax.random.key(1))
        helpers.assert_trees_equal(helpers.row(states, action), after)
        helpers.assert_trees_equal(helpers.row(results, action), result)
    backwards, _ = branch(state, mixed[::-1], jax.random.key(1), common=True)
    np.testing.assert_array_equal(np.asarray(backwards.board)[::-1], states.board)


@pytest.mark.parametrize("common", [True, False])
def test_branches_of_a_batch_leave_it_alone_and_differ_as_asked(common: bool) -> None:
    games = (make("game_2048"), toy.make(start=9))
    vec = vec_of(games, 10)
    state = jax.jit(vec.reset)(jax.random.key(0))
    actions = jnp.repeat(jax.jit(vec.sample_actions)(state, jax.random.key(1))[:, None], 6, axis=1)
    actions = actions.at[:, 5].set(vec.invalid_action)
    states, results = jax.jit(functools.partial(vec.branch, common=common))(state, actions, jax.random.key(2))
    assert results.reward.shape == results.terminated.shape == results.is_legal.shape == (10, 6)
    assert np.asarray(results.is_legal)[:, :5].all()
    assert (np.asarray(results.reward)[:, 5] == -1).all()
    helpers.assert_trees_equal(results.final, states)
    for game, before, after in zip(games, state.games, states, strict=True):
        boards = np.asarray(after.board)
        assert boards.shape == (5, 6, game.rows, game.cols)
        np.testing.assert_array_equal(boards[:, 5], before.board)
        num_futures = [len(np.unique(board[:5], axis=0)) for board in boards]
        assert num_futures == [1] * 5 if common else max(num_futures) > 1
    starts = {board.tobytes() for board in np.asarray(states[0].board)[:, 0]}
    assert len(starts) == 5  # environments draw apart


# ---- Cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game_id", GAMES)
def test_a_state_without_frames_is_small(game_id: str) -> None:
    vec = vec_of(make(game_id), 100)
    state = jax.eval_shape(vec.reset, jax.random.key(0))
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert num_bytes / 100 <= 2048


@pytest.mark.parametrize("mode", MODES)
def test_resetting_and_stepping_compile_once(mode: envs.AutoReset) -> None:
    vec = vec_of(toy.make(), 8, autoreset=mode, max_steps=2, pool_size=4)
    reset, step = jax.jit(helpers.traced_once(vec.reset)), jax.jit(helpers.traced_once(vec.step))
    for seed in range(2):
        state = reset(jax.random.key(seed))
        for key in helpers.keys(4, seed):
            state, result = step(state, jnp.full(8, seed), key)
    assert result.reward.shape == (8,)


def test_a_batch_can_be_scanned_and_is_the_same_for_the_same_key() -> None:
    vec = vec_of([make("game_2048"), toy.make()], 6, max_steps=3)

    @jax.jit
    def play(key: Array) -> Any:
        def step(state: Any, key: Array) -> Any:
            state, result = vec.step(state, vec.sample_actions(state, key), key)
            return state, result.reward

        return jax.lax.scan(step, vec.reset(key), jax.random.split(key, 8))

    one, again, other = play(jax.random.key(0)), play(jax.random.key(0)), play(jax.random.key(1))
    helpers.assert_trees_equal(one, again)
    assert (np.asarray(one[1]) != np.asarray(other[1])).any()
