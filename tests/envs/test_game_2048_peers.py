"""2048 against the implementations of pgx and jumanji."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs.games import game_2048
from g1jax.typing import Array
from tests.envs import helpers

PGX_ACTION = (1, 2, 3, 0)  # up, right, down, left


def positions(num: int) -> np.ndarray:
    """Different boards met in random play, not over: int8[num, 4, 4]."""
    played = helpers.play(envs.make("game_2048"), 280, 100).by("legal").flat()
    boards = np.unique(np.asarray(played.states.board)[~np.asarray(played.states.terminated)], axis=0)
    return np.random.default_rng(0).permutation(boards)[:num]


def our_moves(boards: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slid boards [n, 4, 4, 4], rewards [n, 4] and legal moves [n, 4]."""

    @jax.jit
    @jax.vmap
    def moves(board: Array) -> Any:
        return *jax.vmap(game_2048.slide, (None, 0))(board, jnp.arange(4)), game_2048.legal_moves(board)

    slid, rewards, legal = moves(boards)
    return np.asarray(slid), np.asarray(rewards), np.asarray(legal)


def our_legal_moves(boards: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(game_2048.legal_moves))(boards.astype(np.int8)))


def assert_one_tile_was_added(after: np.ndarray, slid: np.ndarray) -> None:
    is_new = after != slid
    assert (is_new.sum((-2, -1)) == 1).all()
    assert (slid[is_new] == 0).all()
    assert np.isin(after[is_new], (1, 2)).all()


@pytest.mark.filterwarnings("ignore")
def test_pgx_plays_the_same_game() -> None:
    pgx = pytest.importorskip("pgx")
    boards = positions(2_000)
    assert len(boards) == 2_000
    slid, rewards, legal = our_moves(boards)
    env = pgx.make("2048")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        start = env.init(jax.random.key(0))

        def step(board: Array, action: Array, key: Array) -> Any:
            state = start.replace(_board=board.astype(jnp.int32).reshape(16), legal_action_mask=jnp.ones(4, bool))
            return env.step(state, action, key)

        keys = helpers.keys(len(boards) * 4).reshape(-1, 4)
        actions = jnp.array(PGX_ACTION)
        theirs = jax.jit(jax.vmap(jax.vmap(step, (None, 0, 0)), (0, None, 0)))(boards, actions, keys)
    after = np.asarray(theirs._board).reshape(-1, 4, 4, 4)
    np.testing.assert_array_equal(np.asarray(theirs.rewards)[..., 0][legal], rewards[legal])
    assert_one_tile_was_added(after[legal], slid[legal])
    their_mask = np.asarray(theirs.legal_action_mask)[legal][:, list(PGX_ACTION)]
    ours = our_legal_moves(after[legal])
    # An ended game's mask is all true in pgx, so that any action may follow.
    is_over = np.asarray(theirs.terminated)[legal]
    np.testing.assert_array_equal(is_over, ~ours.any(axis=1))
    np.testing.assert_array_equal(their_mask[~is_over], ours[~is_over])
    assert is_over.sum() > 10


@pytest.mark.filterwarnings("ignore")
def test_jumanji_plays_the_same_game() -> None:
    game_2048_of_jumanji = pytest.importorskip("jumanji.environments.logic.game_2048")
    boards = positions(2_000)
    slid, rewards, legal = our_moves(boards)
    env = game_2048_of_jumanji.Game2048()
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        start, _ = env.reset(jax.random.PRNGKey(0))

        def step(board: Array, mask: Array, action: Array, key: Array) -> Any:
            state = start.replace(board=board.astype(jnp.int32), action_mask=mask, key=key)
            after, timestep = env.step(state, action)
            return after.board, timestep.reward, after.action_mask, timestep.step_type

        keys = jax.random.split(jax.random.PRNGKey(1), len(boards) * 4).reshape(-1, 4, 2)
        batched = jax.vmap(jax.vmap(step, (None, None, 0, 0)), (0, 0, None, 0))
        after, their_rewards, masks, step_type = map(np.asarray, jax.jit(batched)(boards, legal, jnp.arange(4), keys))
    np.testing.assert_array_equal(their_rewards, rewards)
    np.testing.assert_array_equal(after[~legal], slid[~legal])
    assert_one_tile_was_added(after[legal], slid[legal])
    ours = our_legal_moves(after.reshape(-1, 4, 4)).reshape(masks.shape)
    np.testing.assert_array_equal(masks, ours)
    np.testing.assert_array_equal(step_type == 2, ~ours.any(axis=-1))
