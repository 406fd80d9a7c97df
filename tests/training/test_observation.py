"""Runs that are shown captions, or text alone: their setup, their steps, and whole runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax.errors import ConfigError, G1Error
from g1jax.evaluation import load
from g1jax.programs.analyze import Options as AnalyzeOptions
from g1jax.programs.analyze import analyze
from g1jax.programs.evaluate import Options, evaluate
from g1jax.rl.observation import PICTURE, Observation, Shown
from g1jax.training import policy_of_run, run
from g1jax.training.config import check_experiment
from g1jax.training.precompile import _constants_template, batches_template
from g1jax.training.run_folder import CONFIG, read_config
from g1jax.training.saved_model import OBSERVATION, load_policy, observation_of, save_policy
from g1jax.training.setup import Setup, make_setup
from g1jax.training.steps import cold_step, rl_step, template
from tests.training import tiny
from tests.training.test_run import stop_at

FEW: dict[str, Any] = {
    "games": ("game_2048",),
    "cold_start__steps": 2,
    "rl__iterations": 2,
    "rl__num_steps": 2,
    "evaluation__episodes": 1,
}
TEXT, BOTH = Observation.of(("caption",)), Observation.of(("picture", "caption"))


def setup_of(model: str, shown: Shown, folder: Path) -> Setup:
    return make_setup(tiny.make_experiment(model, folder, **FEW, observation=shown))


def test_both_steps_read_it(model: str, tmp_path: Path) -> None:
    """Their shapes agree, also those that are compiled ahead of time; nothing is computed."""
    setup = setup_of(model, TEXT.shown, tmp_path)
    assert setup.policy.observation == TEXT
    batches, constants = batches_template(setup), _constants_template(setup)
    assert batches[0].boards is not None
    with jax.set_mesh(setup.mesh):
        after, _ = cold_step.eval_shape(setup.cold, template(setup, 0), constants, batches)
        _, _, (rollout,) = rl_step.eval_shape(setup.rl, template(setup, 3), constants)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, template(setup, 1))
    assert rollout.boards.shape == (2 * 16, setup.games[0].board_text.length)


def test_a_model_keeps_it(model: str, tmp_path: Path) -> None:
    """In its folder, for evaluation and for runs that start from it; an older folder has the default."""
    policy, params = load_policy(model)
    assert policy.observation == PICTURE
    save_policy(policy, params, tmp_path / "plain")
    assert not (tmp_path / "plain" / OBSERVATION).exists()
    save_policy(dataclasses.replace(policy, observation=TEXT), params, tmp_path / "text")
    assert load_policy(str(tmp_path / "text"))[0].observation == TEXT
    assert setup_of(str(tmp_path / "text"), (), tmp_path).policy.observation == TEXT
    assert setup_of(str(tmp_path / "text"), ("picture",), tmp_path).policy.observation == PICTURE
    for damaged in ("[]", '{"observation": "caption"}', '{"observation": ["sound"]}', '{"observation": ["no_goal"]}'):
        (tmp_path / OBSERVATION).write_text(damaged)
        with pytest.raises(ConfigError, match="observation"):
            observation_of(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": ("no_rules",)}, "observation: show the picture, the caption, or both"),
        ({"observation": ("captoin",)}, r"observation\[0\]='captoin': expected one of .*did you mean 'caption'"),
        ({"observation": ("caption",), "cold_start__facts_weight": 1.0}, "facts_weight=1: a policy without pictures"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(G1Error, match=message):
        check_experiment(tiny.make_experiment("base", "", **changes))


def test_a_part_that_a_prompt_lacks_is_refused_before_the_run(model: str, tmp_path: Path) -> None:
    with pytest.raises(G1Error, match="game_2048: the prompt has no rules to leave out"):
        setup_of(model, ("picture", "no_rules"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("observation", [TEXT, BOTH], ids=["text", "both"])
def test_a_run_is_resumed_and_evaluated(observation: Observation, model: str, tmp_path: Path) -> None:
    """With what it was trained with, or another observation."""

    def experiment(name: str) -> Any:
        return tiny.make_experiment(model, tmp_path / name, **FEW, observation=observation.shown)

    whole = run(experiment("whole"))
    run(experiment("stopped"), progress=stop_at(3))
    assert not (tmp_path / "stopped" / "evaluation").exists()
    stopped = run(experiment("stopped"))
    assert tiny.metrics_of(stopped) == tiny.metrics_of(whole)
    name = f"final ({', '.join(observation.shown)})"
    final = load(whole / "evaluation" / "final")
    assert final.title == name
    assert f"| {name.replace('_', chr(92) + '_')} |" in (whole / "evaluation" / "final.md").read_text("utf-8")
    with pytest.raises(G1Error, match="is a run with another config: observation"):
        run(dataclasses.replace(experiment("whole"), observation=("picture",)))
    policy, params = policy_of_run(whole)
    assert policy.observation == observation
    save_policy(policy, params, tmp_path / "model")
    trials: tuple[tuple[Path, Shown], ...] = ((whole, ()), (tmp_path / "model", ()), (whole, ("picture",)))
    for player, shown in trials:
        out = tmp_path / f"out_{player.name}_{len(shown)}"
        evaluate(Options(player=str(player), games="game_2048", episodes=1, steps=2, out=out, observation=shown))
        found = load(out)
        assert found.observation == (() if shown else observation.shown)
        if player == whole and not shown:
            analysis = analyze(AnalyzeOptions(runs=(whole,), out=tmp_path / "analysis", episodes=1, steps=1))
            assert f"whole is shown {', '.join(observation.shown)}." in analysis.notes
            for key, sums in final.games["game_2048"].sums.items():
                np.testing.assert_array_equal(found.games["game_2048"].sums[key].above, sums.above)


def test_an_older_run_has_the_default(model: str, tmp_path: Path) -> None:
    """Its config does not have the setting."""
    experiment = tiny.make_experiment(model, tmp_path)
    config = dataclasses.asdict(experiment)
    del config["observation"]
    (tmp_path / CONFIG).write_text(json.dumps(config, default=str))
    assert read_config(tmp_path).observation == ()
