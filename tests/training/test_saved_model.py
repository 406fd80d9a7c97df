"""The folder of a model as a policy."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from g1jax.errors import ConfigError, ExperimentError
from g1jax.programs.evaluate import Options, evaluate
from g1jax.training import saved_model
from g1jax.training.saved_model import is_model, load_policy, save_policy
from tests.training import tiny


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "one")
    policy, params = load_policy(str(tmp_path / "one"))
    assert policy.templates == ()
    (tmp_path / "one" / "prompts.json").write_text(json.dumps({"swap": "Swap 😀", "game_2048": "{rows}"}))
    policy, params = load_policy(str(tmp_path / "one"))
    assert policy.templates == (("game_2048", "{rows}"), ("swap", "Swap 😀"))
    save_policy(policy, params, tmp_path / "two")
    again, same = load_policy(str(tmp_path / "two"))
    assert again.templates == policy.templates
    assert again.config == policy.config
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize("content", ["[]", '{"swap": 1}', "{", '{"swap": "\\ud800"}'])
def test_damaged_prompts_are_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(ConfigError, match=r"prompts\.json"):
        saved_model.prompts_of(tmp_path)


def test_models_and_what_is_none(tmp_path: Path) -> None:
    assert is_model("base")
    assert is_model("g1-nano")
    assert not is_model("nano")
    assert not is_model(str(tmp_path))
    assert dict(load_policy("base")[0].templates)["swap"] == "Swap"
    with pytest.raises(ExperimentError, match="unknown model, and no folder 'bas'; did you mean 'base'"):
        load_policy("bas")
    with pytest.raises(ExperimentError, match="nano is an untrained preset"):
        load_policy("nano")


def test_a_model_is_evaluated(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    (tmp_path / "model" / "prompts.json").write_text('{"game_2048": "2048"}')
    out = tmp_path / "out"
    evaluate(Options(player=str(tmp_path / "model"), games="game_2048:tiny", episodes=1, steps=1, out=out, record=0))
    about = json.loads((out / "results.json").read_text())["player"]
    assert about == {"name": "model", "kind": "model", "temperature": 1.0, "sees": False}
