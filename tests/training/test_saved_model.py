"""The folder of a model as a policy."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from g1jax import envs, vlm
from g1jax.errors import ConfigError, ExperimentError
from g1jax.programs.evaluate import Options, evaluate
from g1jax.training import saved_model
from g1jax.training.saved_model import is_model, load_policy, save_policy
from g1jax.vlm.preprocess import pixel_values
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


@pytest.mark.parametrize("name", saved_model.SHIPPED)
def test_the_models_that_ship_have_the_files_of_their_processor(name: str, tmp_path: Path) -> None:
    policy, params = load_policy(name)
    save_policy(policy, params, tmp_path)
    for file in ("preprocessor_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / file).read_text() == (saved_model.SHIPPED[name] / file).read_text(), file


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_transformers_makes_our_prompts_and_pixels(tmp_path: Path) -> None:
    """By its image processor for PIL and its tokenizer, which need no torch."""
    pil = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    transformers = pytest.importorskip("transformers")
    policy, params = load_policy("g1-nano")
    save_policy(policy, params, tmp_path)
    game = envs.make("swap")
    frame = np.asarray(game.render(game.reset(jax.random.key(0))))
    processor = pil.Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    found = processor(Image.fromarray(frame), return_tensors="np")
    expected = pixel_values(policy.config.vision, frame[None])
    np.testing.assert_allclose(found["pixel_values"], expected, atol=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": dict(policy.templates)["swap"]}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    count = len(expected) // policy.config.vision.merge_size**2
    tokens = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * count), add_special_tokens=False)["input_ids"]
    assert tokens == policy.prompt_tokens(game).tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", saved_model.SHIPPED)
def test_auto_processor_and_torchs_logits(name: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("torchvision")  # the processor's videos need it
    policy, params = load_policy(name)
    save_policy(policy, params, tmp_path)
    game = envs.make("shisen_sho")
    frame = np.asarray(game.render(game.reset(jax.random.key(0))))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": dict(policy.templates)["shisen_sho"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.fromarray(frame)], return_tensors="pt")
    tokens = policy.prompt_tokens(game)
    assert inputs["input_ids"][0].tolist() == tokens.tolist()
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    with torch.no_grad():
        found = model(**inputs).logits.numpy()
    expected = vlm.apply(policy.config, params, *policy.prompts(game, 1), frame[None])
    np.testing.assert_allclose(found, expected, atol=1e-4)
