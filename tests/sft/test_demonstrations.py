"""Demonstrations with a uniform choice: the same states and rationales, other moves."""

from typing import Any

import jax
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import text
from g1jax.envs.batch import Batch
from g1jax.errors import G1Error
from g1jax.sft.demonstrations import next_demonstrations
from g1jax.teachers import core
from g1jax.training.setup import make_setup
from tests.training import tiny


def texts(column: Any) -> list[str]:
    return [text.decode(line) for line in np.asarray(column)]


def test_a_uniform_choice_changes_the_moves_alone() -> None:
    env = Batch(envs.make("game_2048"), 32, max_steps=10)
    states = (env.reset(jax.random.key(0)),)
    (taught, shown), (free, uniform) = (
        next_demonstrations((env,), 0.5, states, jax.random.key(1), is_uniform=is_uniform)
        for is_uniform in (False, True)
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), taught, free))
    listed = [[line.rpartition("\n")[0] for line in texts(made[0].rationales)] for made in (shown, uniform)]
    assert listed[0] == listed[1]
    assert texts(shown[0].boards) == texts(uniform[0].boards)
    assert len(set(texts(uniform[0].answers))) == 4
    assert texts(shown[0].answers) != texts(uniform[0].answers)


def test_a_game_without_a_uniform_choice_is_refused(model: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_UNIFORM_TEACHERS", {})
    with pytest.raises(G1Error, match="its teacher has no uniform choice"):
        make_setup(tiny.make_experiment(model, tmp_path / "run", cold_start__choice="uniform"))
    assert not (tmp_path / "run").exists()
