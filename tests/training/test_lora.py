"""A LoRA run: its policy is a plain model with LoRA merged."""

import runpy
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs, vlm
from g1jax.evaluation import play
from g1jax.programs.evaluate import player_named
from g1jax.training import policy_of_run, run
from g1jax.training.saved_run import open_run
from g1jax.vlm import lora, safetensors
from g1jax.vlm.lora import LoRA
from tests.conftest import REPOSITORY
from tests.training import tiny

FEW = {
    "games": ("game_2048",),
    "lora": LoRA(rank=2, alpha=6.0, targets=("model.*_proj", "visual.*.qkv")),
    "cold_start__steps": 4,
    "rl__iterations": 0,
    "evaluation__episodes": 0,
}


@pytest.fixture(scope="module")
def folder(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny.make_experiment(model, tmp_path_factory.mktemp("runs") / "lora", **FEW))


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of the last merge: the model's params, LoRA's, and the LoRA settings."""
    seen: list[Any] = []
    merge = lora.merge

    def see(*args: Any) -> Any:
        seen[:] = args
        return merge(*args)

    monkeypatch.setattr(lora, "merge", see)
    return seen


def logits(config: vlm.Config, params: vlm.Params) -> np.ndarray:
    image, tokens_of_text = np.full(4, config.image_token_id), np.arange(300, 312)
    tokens = jnp.asarray(np.concatenate([tokens_of_text, image, tokens_of_text])[None].astype(np.int32))
    frames = jax.random.bits(jax.random.key(0), (1, 56, 56, 3), jnp.uint8)
    return np.asarray(jax.jit(vlm.apply, static_argnums=0)(config, params, tokens, tokens >= 0, frames))


def test_its_policy_has_merged_weights(folder: Path, parts: list[Any]) -> None:
    policy, params = policy_of_run(folder)
    base, own, spec = parts
    chex.assert_trees_all_equal_shapes_and_dtypes(params, vlm.param_shapes(policy.config))
    chex.assert_trees_all_equal(params, open_run(folder).params(4))
    merged, plain, added = (tree["model"]["layers"][0]["mlp"]["up_proj"] for tree in (params, base, own))
    by_hand = plain["kernel"] + 3.0 * np.asarray(added["lora_a"]) @ np.asarray(added["lora_b"])
    assert np.abs(by_hand - plain["kernel"]).max() > 1e-3
    np.testing.assert_allclose(merged["kernel"], by_hand, atol=1e-6)
    attached = logits(policy.config, lora.attach(base, own, spec))
    np.testing.assert_allclose(logits(policy.config, params), attached, atol=1e-5, rtol=0)
    assert np.abs(attached - logits(policy.config, base)).max() > 1e-2


def test_it_is_exported_merged(
    folder: Path, parts: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["export_run.py", str(folder), str(tmp_path / "out")])
    runpy.run_path(str(REPOSITORY / "scripts" / "export_run.py"), run_name="__main__")
    assert "parameters" in capsys.readouterr().out
    assert not [name for name in safetensors.read_header(tmp_path / "out" / "model.safetensors") if "lora" in name]
    config, params = vlm.load(tmp_path / "out")
    attached = logits(config, lora.attach(*parts))
    np.testing.assert_allclose(logits(config, params), attached, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_it_plays(folder: Path) -> None:
    """In an evaluation, loaded from its folder."""
    game = envs.make("game_2048", rows=2, cols=2)
    episodes = play(game, player_named(str(folder), [game]), 2, 2, 0)
    assert episodes.score.shape == (2, 2)
