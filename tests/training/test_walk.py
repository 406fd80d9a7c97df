"""The sources of RL's states."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from g1jax.training.setup import Setup, load_params, make_setup
from g1jax.training.steps import init_state, start_rl, walk
from tests.training import tiny


def setup_of(model: str, workdir: Path, **changes: Any) -> Setup:
    """64 states of each game: fresh ones of 2048, walks of Shisen-Sho."""
    experiment = tiny.make_experiment(model, workdir, levels={}, rl__states=64, **changes)
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
