"""Where RL's states come from."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from g1jax.training.setup import make_setup
from g1jax.training.steps import walk
from tests.training import tiny


def test_legal_walks_show_boards_of_all_stages(model: str, tmp_path: Path) -> None:
    experiment = tiny.make_experiment(model, tmp_path, levels={}, rl__states=64, rl__source="legal_walk")
    experiment = dataclasses.replace(
        experiment, rl=dataclasses.replace(experiment.rl, walk_steps={"shisen_sho": 17, "game_2048": 0})
    )
    setup = make_setup(experiment)
    boards, fresh = (walk(setup, i, jax.random.key(0)) for i in (1, 0))
    tiles = (np.asarray(boards.games[0].board) > 0).sum((1, 2))
    assert (tiles % 2 == 0).all()
    assert len(set(tiles.tolist())) > 9  # of the even numbers from 2 to 36
    assert ((np.asarray(fresh.games[0].board) > 0).sum((1, 2)) == 2).all()
