"""Mixed batches: shares of games, their outputs, frames and random actions."""

import functools
import math
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
    vec = envs.make_vec([helpers.make(game_id) for game_id in GAMES], num_envs, shares=shares)
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
        (["game_2048", "swap"], 8, {"shares": [1]}, "shares: 1 for 2 games"),
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
        envs.make_vec(games, num_envs, **options)


def test_what_a_batch_says_of_itself() -> None:
    vec = envs.make_vec(["game_2048", "swap"], 6, shares=[2, 1], autoreset="none", max_steps=9)
    assert repr(vec) == (
        "VecEnv(4 of make('game_2048'), 2 of make('swap'); frames uint8[6, 224, 224, 3], autoreset='none', max_steps=9)"
    )
    assert vec.prompts == (vec.games[0].prompt,) * 4 + (vec.games[1].prompt,) * 2


def test_cells_of_a_mix_are_padded() -> None:
    small = toy.make(luck=0.0)
    vec = envs.make_vec([small, envs.make("game_2048")], 5)
    state = vec.reset(jax.random.key(0))
    cells = np.asarray(jax.jit(vec.cells)(state))
    assert cells.shape == (5, 4, 4)
    assert cells.dtype == np.int32
    np.testing.assert_array_equal(cells[:3, :1, :2], jax.vmap(small.cells)(state.games[0]))
    assert (cells[:3, 1:] == -1).all()
    assert (cells[:3, :, 2:] == -1).all()
    np.testing.assert_array_equal(cells[3:], jax.vmap(vec.games[1].cells)(state.games[1]))


def test_old_style_keys_give_the_same_episodes() -> None:
    vec = envs.make_vec([toy.make(), toy.make(most=2)], 4)
    state, old = vec.reset(jax.random.key(3)), vec.reset(jax.random.PRNGKey(3))
    helpers.assert_trees_equal(jax.device_get(state), jax.device_get(old))


RESPONSE = "<perception>1 | -</perception><answer>(0, 1) (0, 2)</answer><answer>2</answer>"


def padded(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    return np.pad(array, [(0, to - have) for have, to in zip(array.shape, shape, strict=True)])


def test_a_mix_asks_every_game_the_same_as_the_game_alone() -> None:
    games = (toy.make(), helpers.make("shisen_sho", rows=2, cols=4))
    vec = envs.make_vec(games, 8)
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
    """States of random cells, each with its own seed."""
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
    games = [helpers.make(game_id, **keys) for game_id, keys in MIXES[name]]
    vec = envs.make_vec(games, 4 * len(games))
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
    game = helpers.make("swap", rows=3, cols=4)
    vec, states = envs.make_vec(game, 5), random_states(game, 5)
    frames = np.asarray(jax.jit(vec.render)((states,)))
    assert frames.shape == (5, 84, 112, 3) == (5, *vec.frame_shape)
    np.testing.assert_array_equal(frames, jax.jit(jax.vmap(game.render))(states))


def test_a_result_has_the_same_outputs_as_its_state() -> None:
    vec = envs.make_vec([toy.make(), toy.make(most=2)], 8, autoreset="same_step", max_steps=1)
    state = jax.jit(vec.reset)(jax.random.key(0))
    after, result = jax.jit(vec.step)(state, jnp.full(8, -1), jax.random.key(1))
    show = jax.jit(lambda states: (vec.render(states), vec.describe(states), vec.legal_actions(states)))
    helpers.assert_trees_equal(show(result.final), show(state))  # invalid moves: the last states are the first
    assert (np.asarray(show(after)[1]) != np.asarray(show(state)[1])).any()


def test_levels_of_a_mix_are_given_one_a_game() -> None:
    games = (helpers.make("game_2048"), toy.make())
    vec = envs.make_vec(games, 8)
    levels = [games[0].traced_level(start_tiles=9), games[1].traced_level(start=6)]
    state = jax.jit(vec.reset)(jax.random.key(0), levels)
    assert ((np.asarray(state.games[0].board) > 0).sum(axis=(1, 2)) == 9).all()
    assert (np.asarray(state.games[1].board)[:, 0, 0] == 6).all()
    pair = envs.make_vec((toy.make(), toy.make(most=2)), 8)
    state = jax.jit(pair.reset)(jax.random.key(0), toy.make().traced_level(start=5))  # or one for all
    assert all((np.asarray(states.board)[:, 0, 0] == 5).all() for states in state.games)


# ---- Random moves ----------------------------------------------------------------------------------------------------


def test_random_actions_are_uniform_over_the_legal_ones() -> None:
    for game_id in ("game_2048", "shisen_sho", "swap"):
        game = helpers.make(game_id)
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


# ---- Cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game_id", GAMES)
def test_a_state_without_frames_is_small(game_id: str) -> None:
    vec = envs.make_vec(helpers.make(game_id), 100)
    state = jax.eval_shape(vec.reset, jax.random.key(0))
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert num_bytes / 100 <= 2048


@pytest.mark.parametrize("mode", MODES)
def test_resetting_and_stepping_compile_once(mode: envs.AutoReset) -> None:
    vec = envs.make_vec(toy.make(), 8, autoreset=mode, max_steps=2, pool_size=4)
    reset, step = jax.jit(helpers.traced_once(vec.reset)), jax.jit(helpers.traced_once(vec.step))
    for seed in range(2):
        state = reset(jax.random.key(seed))
        for key in helpers.keys(4, seed):
            state, result = step(state, jnp.full(8, seed), key)
    assert result.reward.shape == (8,)


def test_a_batch_can_be_scanned_and_is_the_same_for_the_same_key() -> None:
    vec = envs.make_vec([helpers.make("game_2048"), toy.make()], 6, max_steps=3)

    @jax.jit
    def play(key: Array) -> Any:
        def step(state: Any, key: Array) -> Any:
            state, result = vec.step(state, vec.sample_actions(state, key), key)
            return state, result.reward

        return jax.lax.scan(step, vec.reset(key), jax.random.split(key, 8))

    one, again, other = play(jax.random.key(0)), play(jax.random.key(0)), play(jax.random.key(1))
    helpers.assert_trees_equal(one, again)
    assert (np.asarray(one[1]) != np.asarray(other[1])).any()
