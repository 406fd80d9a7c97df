"""The sources of RL's states."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs.batch import Batch
from g1jax.errors import ExperimentError
from g1jax.training.config import check_experiment
from g1jax.training.setup import Setup, load_params, make_setup
from g1jax.training.state_source import hard_actions, walk
from g1jax.training.steps import init_state, start_rl
from tests.training import tiny


def setup_of(model: str, workdir: Path, **changes: Any) -> Setup:
    """64 states of each game: fresh ones of 2048, walks of Shisen-Sho."""
    experiment = tiny.make_experiment(model, workdir, games=tiny.BOTH, levels={}, rl__states=64, **changes)
    steps = {"shisen_sho": 17, "game_2048": 0}
    return make_setup(dataclasses.replace(experiment, rl=dataclasses.replace(experiment.rl, walk_steps=steps)))


def cover_all_stages(boards: Any) -> bool:
    """Whether Shisen-Sho boards cover most even numbers of tiles from 2 to 36."""
    tiles = (np.asarray(boards.states.board) > 0).sum((1, 2))
    assert (tiles % 2 == 0).all()
    return len(set(tiles.tolist())) > 9


def test_legal_walks_cover_all_stages(model: str, tmp_path: Path) -> None:
    setup = setup_of(model, tmp_path, rl__source="legal_walk")
    boards, fresh = (walk(setup.rl.source, i, jax.random.key(0)) for i in (1, 0))
    assert cover_all_stages(boards)
    assert ((np.asarray(fresh.states.board) > 0).sum((1, 2)) == 2).all()


@pytest.mark.slow
@pytest.mark.parametrize("cold_steps", [0, 60])
def test_the_policys_own_play_starts_at_all_stages(model: str, tmp_path: Path, cold_steps: int) -> None:
    setup = setup_of(model, tmp_path, rl__source="play", cold_start__steps=cold_steps)
    state, _ = init_state(setup, load_params(setup))
    assert (state.play_envs == ()) == (cold_steps > 0)
    state = start_rl(setup, state) if cold_steps else state
    assert cover_all_stages(state.play_envs[1])


@pytest.mark.parametrize(
    "name", ["shisen_sho", *(pytest.param(name, marks=pytest.mark.slow) for name in ("game_2048", "swap"))]
)
def test_hard_play_stays_where_responses_differ(name: str) -> None:
    """Of three equal boards: all responses are legal, some are, none is."""
    game = envs.make(name)
    batch = Batch(game, 3, max_steps=100)
    start = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], 3, axis=0), game.reset(jax.random.key(3)))
    first = dataclasses.replace(jax.jit(batch.reset)(jax.random.key(0)), states=start)
    legal = np.asarray(game.legal_actions(jax.tree.map(lambda leaf: leaf[0], start)))
    taken = int(np.flatnonzero(legal)[0])
    is_legal = jnp.array([[True, True], [True, False], [False, False]])
    actions = jnp.array([taken, taken, game.invalid_action], jnp.int32)
    chosen = np.asarray(hard_actions(batch, start, is_legal, actions, jax.random.key(1)))
    assert chosen[:2].tolist() == [taken, game.invalid_action]
    assert legal[chosen[2]]
    after, _ = jax.jit(batch.step)(first, chosen, jax.random.key(2))
    boards = np.asarray(jax.vmap(game.describe)(after.states))
    same = (boards == np.asarray(game.describe(jax.tree.map(lambda leaf: leaf[0], start)))).all(axis=1)
    assert same.tolist() == [False, True, False]
    assert np.asarray(after.num_steps).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("setting", "value"), [("source", "hard_play"), ("decoding", "joint")])
def test_settings_for_single_steps(setting: str, value: str, tmp_path: Path) -> None:
    experiment = tiny.make_experiment("nano", tmp_path, **{f"rl__{setting}": value})
    check_experiment(experiment)
    several = dataclasses.replace(experiment, rl=dataclasses.replace(experiment.rl, num_steps=2))
    with pytest.raises(ExperimentError, match=rf"rl\.{setting}={value}: it needs rl\.num_steps=1, not 2"):
        check_experiment(several)
