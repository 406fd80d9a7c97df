"""Random walks and branches of mixed batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from tests.envs import helpers, toy

# ---- Walks -----------------------------------------------------------------------------------------------------------


def test_a_walk_takes_the_given_steps_in_each_environment() -> None:
    games = (helpers.make("game_2048", spawn_four=0.0), toy.make(most=1, start=9))
    vec = envs.make_vec(games, 40, autoreset="none")
    state = jax.jit(vec.reset)(jax.random.key(0))
    steps = np.arange(40, dtype=np.int32) % 8
    walk = jax.jit(functools.partial(vec.random_walk, legal=True))
    after = walk(state, jax.random.key(1), steps)
    before, now = jax.device_get(state.games), jax.device_get(after.games)
    # A legal move of 2048 only adds a 2 to the sum; a move of this countdown subtracts one.
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


def test_a_game_that_starts_after_moves() -> None:
    """No reward counts them, and those that end the game start it again."""
    games = (helpers.make("game_2048", spawn_four=0.0, start_moves=30), toy.make(most=1, start=3, start_moves=7))
    states = [jax.jit(jax.vmap(game.reset))(helpers.keys(40)) for game in games]
    boards = np.asarray(states[0].board)
    sums = np.where(boards > 0, 2.0**boards, 0).sum(axis=(1, 2))
    assert ((sums > 30) & (sums <= 4 + 2 * 30)).all()  # random actions: some are illegal
    assert not np.asarray(states[0].terminated).any()
    # The countdown from 3 ends at the third and the sixth move.
    np.testing.assert_array_equal(states[1].board[:, 0, 0], 2)
    plain = helpers.make("game_2048", spawn_four=0.0)
    assert plain != games[0]
    np.testing.assert_array_equal(jax.vmap(plain.reset)(helpers.keys(40)).seed, states[0].seed)


def test_games_that_end_in_a_walk_are_reset() -> None:
    vec = envs.make_vec(toy.make(most=1, start=3), 12, autoreset="none")
    state = jax.jit(vec.reset)(jax.random.key(0))
    steps = np.arange(12, dtype=np.int32)
    after = jax.jit(functools.partial(vec.random_walk, legal=True))(state, jax.random.key(1), steps)
    np.testing.assert_array_equal(after.games[0].board[:, 0, 0], 3 - steps % 3)
    assert not np.asarray(after.games[0].terminated).any()
    assert ((np.asarray(after.games[0].seed) != np.asarray(state.games[0].seed)) == (steps >= 3)).all()
    assert not np.asarray(after.num_steps).any()


def test_a_walk_of_any_actions_takes_illegal_ones_too() -> None:
    vec = envs.make_vec(helpers.make("game_2048", spawn_four=0.0), 200, autoreset="none")
    state = jax.jit(vec.reset)(jax.random.key(0))
    boards = np.asarray(jax.jit(vec.random_walk)(state, jax.random.key(1), 30).games[0].board)
    added = (np.where(boards > 0, 2.0**boards, 0).sum(axis=(1, 2)) - 4) / 2
    assert added.max() <= 30
    assert 20 < added.mean() < 29


@pytest.mark.parametrize(
    "mode", ["next_step", "pool", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("none", "same_step"))]
)
def test_environments_that_had_ended_play_again_after_a_walk(mode: envs.AutoReset) -> None:
    vec = envs.make_vec(toy.make(most=1, start=1), 4, autoreset=mode, pool_size=4)
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
    game = helpers.make("game_2048")
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


@pytest.mark.parametrize("common", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_branches_keep_the_batch_and_differ_by_key_or_action(common: bool) -> None:
    games = (helpers.make("game_2048"), toy.make(start=9))
    vec = envs.make_vec(games, 10)
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
    assert len(starts) == 5  # environments have their own keys
