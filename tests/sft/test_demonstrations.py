"""Demonstrations with another choice: the same states and rationales, other moves."""

from typing import Any

import jax
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import text
from g1jax.envs.batch import Batch
from g1jax.errors import G1Error
from g1jax.sft.demonstrations import next_demonstrations
from g1jax.teachers import Choice, core
from g1jax.training.setup import make_setup
from tests.training import tiny

CHOICES: tuple[Choice, ...] = ("teacher", "uniform")


def texts(column: Any) -> list[str]:
    return [text.decode(line) for line in np.asarray(column)]


def test_a_uniform_choice_changes_the_moves_alone() -> None:
    env = Batch(envs.make("game_2048"), 256, max_steps=10)
    states = (env.reset(jax.random.key(0)),)
    (taught, shown), (free, uniform) = (
        next_demonstrations((env,), 0.5, states, jax.random.key(1), choice=choice) for choice in CHOICES
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), taught, free))
    listed = [[line.rpartition("\n")[0] for line in texts(made[0].rationales)] for made in (shown, uniform)]
    assert listed[0] == listed[1]
    assert texts(shown[0].boards) == texts(uniform[0].boards)
    assert len(set(texts(uniform[0].answers))) == 4
    assert texts(shown[0].answers) != texts(uniform[0].answers)


def test_a_share_of_the_demonstrations_is_careless() -> None:
    env = Batch(envs.make("game_2048"), 256, max_steps=10)
    states = (env.reset(jax.random.key(0)),)
    taught, mixed, careless = (
        texts(
            next_demonstrations((env,), 0.5, states, jax.random.key(1), choice=choice, choice_share=share)[1][0].answers
        )
        for choice, share in (("teacher", 1.0), ("first", 0.6), ("first", 1.0))
    )
    assert set(careless) == {"<answer>0</answer>"}
    differs = [good not in careless for good in taught]
    kept = [found == good for found, good, is_told in zip(mixed, taught, differs, strict=True) if is_told]
    assert set(mixed) == set(taught)
    assert 0.3 < sum(kept) / len(kept) < 0.5


def test_a_game_without_a_uniform_choice_is_refused(model: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_WEAK_TEACHERS", {})
    with pytest.raises(G1Error, match="its teacher has no uniform choice"):
        make_setup(tiny.make_experiment(model, tmp_path / "run", cold_start__choice="uniform"))
    assert not (tmp_path / "run").exists()
