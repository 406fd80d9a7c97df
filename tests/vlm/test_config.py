"""Configs: presets, the Hugging Face form, validation; and prompts and frames that do not fit."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import vlm
from g1jax.vlm.config import _estimated_params

HUB_3B = {  # the shapes of Qwen2.5-VL-3B-Instruct, in the hub's flat form
    "model_type": "qwen2_5_vl",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "image_token_id": 151655,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
        "hidden_size": 1280,
        "in_chans": 3,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    },
    "vocab_size": 151936,
}


@pytest.mark.parametrize(
    ("name", "least", "most"), [("nano", 0.7e6, 0.9e6), ("micro", 4.5e6, 5.5e6), ("small", 2e7, 3e7)]
)
def test_presets_have_their_size(name: str, least: float, most: float) -> None:
    config = vlm.preset(name)
    assert least < vlm.count_params(config) < most
    assert config.vision.token_size == 28
    assert hash(config) == hash(vlm.preset(name))


def test_the_hub_config_of_3b() -> None:
    config = vlm.from_hf(HUB_3B)
    assert vlm.count_params(config) == 3_754_622_976
    assert config.text.head_dim == 128
    assert config.text.is_tied
    assert vlm.from_hf(vlm.to_hf(config)) == config


@pytest.mark.parametrize("name", ["nano", "micro", "small"])
def test_hf_form_keeps_a_preset(name: str) -> None:
    config = vlm.preset(name, vocab_size=1000, dtype="bfloat16")
    assert vlm.from_hf(vlm.to_hf(config), dtype="bfloat16") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_vl"}, r"model_type='qwen2_vl': only qwen2_5_vl"),
        ({"num_attention_heads": 15}, r"hidden_size=2048 is not num_attention_heads=15"),
        ({"num_key_value_heads": 3}, r"num_heads=16 must be a multiple of num_kv_heads=3"),
        ({"use_sliding_window": True}, r"use_sliding_window=True: only False"),
        ({"hidden_act": "relu"}, r"hidden_act='relu': only 'silu'"),
        ({"rope_scaling": {"type": "yarn"}}, r"rope_type='yarn'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, r"mrope_section=\[1, 2, 3\].*add up to 64"),
        ({"vocab_size": None}, r"text_config: vocab_size=None: expected a whole number"),
        ({"vocab_size": 1000}, r"image_token_id=151655: not in the vocabulary of 1000"),
        ({"vision_config": None}, r"vision_config and text_config must be dicts"),
        ({"vision_config": {**HUB_3B["vision_config"], "num_heads": 7}}, r"vision: hidden_size=1280 .* num_heads=7"),  # type: ignore[dict-item]
        ({"vision_config": {**HUB_3B["vision_config"], "in_chans": 1}}, r"in_channels=1: frames have 3"),  # type: ignore[dict-item]
        ({"vision_config": {**HUB_3B["vision_config"], "out_hidden_size": 9}}, r"out_hidden_size=9, but .* 2048"),  # type: ignore[dict-item]
        ({"vision_config": {**HUB_3B["vision_config"], "fullatt_block_indexes": [32]}}, r"has block 32 of 32"),  # type: ignore[dict-item]
    ],
)
def test_invalid_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(vlm.ConfigError, match=message):
        vlm.from_hf({**HUB_3B, **changes})


WRONG: tuple[Any, ...] = (None, "", "8", 2.5, True, [], {}, -1, 0, 10**7, 10**200)


@pytest.mark.parametrize("key", [key for key in HUB_3B if key not in ("vision_config", "rope_scaling")])
@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:8])
def test_any_value_of_a_key_is_accepted_or_refused(key: str, value: object) -> None:
    check_outcome({**HUB_3B, key: value})


@pytest.mark.parametrize("key", cast(dict[str, Any], HUB_3B["vision_config"]))
@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:8])
def test_any_value_of_a_key_of_the_tower_is_accepted_or_refused(key: str, value: object) -> None:
    check_outcome({**HUB_3B, "vision_config": {**HUB_3B["vision_config"], key: value}})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [*WRONG, {"mrope_section": "abc"}, {"mrope_section": [1e9] * 3}, {"rope_theta": "a"}])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters", "text_config", "vision_config"])
def test_any_value_of_a_part_is_accepted_or_refused(key: str, value: object) -> None:
    check_outcome({**HUB_3B, key: value})


def check_outcome(hf: dict[str, Any]) -> None:
    """The result is a config or a one-line error, at little cost."""
    message = ""
    try:
        config = vlm.from_hf(hf)
    except vlm.ConfigError as error:
        message = str(error)
    else:
        assert max(config.text.num_layers, config.vision.depth) <= 128
        hash(config)
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text", "num_layers", 10**7),
        ("text", "num_heads", 0),
        ("text", "hidden_size", 128.0),
        ("text", "rms_norm_eps", float("nan")),
        ("text", "rope_theta", float("inf")),
        ("text", "is_tied", 1),
        ("text", "vocab_size", True),
        ("text", "mrope_section", [1, 2, 3]),
        ("vision", "depth", 10**7),
        ("vision", "num_heads", 0),
        ("vision", "num_places", -1),
        ("vision", "full_attention_blocks", (True,)),
    ],
)
def test_a_number_out_of_its_range_names_its_key(part: str, key: str, value: object) -> None:
    config = vlm.preset("nano")
    with pytest.raises(vlm.ConfigError, match=rf"^{part}: {key}[=\[]"):
        dataclasses.replace(getattr(config, part), **{key: value})


@pytest.mark.parametrize("name", vlm.preset_names())
def test_params_are_estimated_without_a_model(name: str) -> None:
    config = vlm.preset(name)
    assert _estimated_params(config.vision, config.text) == pytest.approx(vlm.count_params(config), rel=0.03)


def test_params_of_3b_are_estimated_and_too_many_are_refused() -> None:
    config = vlm.from_hf(HUB_3B)
    assert _estimated_params(config.vision, config.text) == pytest.approx(3_754_622_976, rel=0.01)
    text = dataclasses.replace(config.text, hidden_size=2**16, num_layers=128, num_heads=512, intermediate_size=2**18)
    with pytest.raises(vlm.ConfigError, match=r"a model of 7\.\de\+12 params: expected at most 1e\+12"):
        dataclasses.replace(config, text=text)


def test_missing_and_unknown_keys_are_named() -> None:
    with pytest.raises(vlm.ConfigError, match="num_hidden_layers is missing"):
        vlm.from_hf({key: value for key, value in HUB_3B.items() if key != "num_hidden_layers"})
    with pytest.raises(vlm.ConfigError, match=r"unknown preset 'nanno'; did you mean 'nano'"):
        vlm.preset("nanno")
    with pytest.raises(vlm.ConfigError, match=r"unknown field of Config 'dtyp'; did you mean 'dtype'"):
        vlm.preset("nano", dtyp="float32")
    with pytest.raises(vlm.ConfigError, match=r"dtype='float16': expected one of float32, bfloat16"):
        vlm.preset("nano", dtype="float16")
    with pytest.raises(vlm.ConfigError, match=r"cudnn.*bfloat16"):
        vlm.preset("nano", attention="cudnn")


def test_init_is_deterministic_and_typed() -> None:
    config = vlm.preset("nano", param_dtype="bfloat16")
    first, second = vlm.init(config, jax.random.key(3)), vlm.init(config, jax.random.key(3))
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.array_equal(a, b), first, second))
    assert {leaf.dtype for leaf in jax.tree.leaves(first)} == {jnp.dtype("bfloat16")}
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), first)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), vlm.param_shapes(config))


def prompt(config: vlm.Config, num_image: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.array([[0, 3, *[config.image_token_id] * num_image, 4, 9]])
    return tokens, tokens != 0


def test_bad_prompts_are_refused_on_the_host() -> None:
    config = vlm.preset("nano")
    frames = np.zeros((1, 56, 84, 3), np.uint8)
    vlm.check_prompts(config, *prompt(config, 6), frames)
    with pytest.raises(vlm.ConfigError, match="row 0: 5 image tokens, but its images have 6"):
        vlm.check_prompts(config, *prompt(config, 5), frames)
    with pytest.raises(vlm.ConfigError, match="a sequence of 4109 tokens is longer than the context, 4096"):
        vlm.check_prompts(config, *prompt(config, 6), frames, num_new=4100)
    with pytest.raises(vlm.ConfigError, match="1 prompts, but frames for 2"):
        vlm.check_prompts(config, *prompt(config, 6), np.zeros((2, 56, 84, 3), np.uint8))
    tokens, mask = prompt(config, 6)
    tokens[0, -1] = 512
    with pytest.raises(vlm.ConfigError, match=r"row 0: token \[512\] is not in the vocabulary"):
        vlm.check_prompts(config, tokens, mask, frames)


def test_frames_that_are_no_images() -> None:
    vision = vlm.preset("nano").vision
    with pytest.raises(vlm.ConfigError, match="an image of 57×0 pixels: both sides must be above 0"):
        vlm.patches(vision, np.zeros((1, 57, 0, 3), np.uint8))
    with pytest.raises(vlm.ConfigError, match=r"frames: expected uint8\[n, H, W, 3\], not float32\[1, 56, 84, 3\]"):
        vlm.patches(vision, np.zeros((1, 56, 84, 3), np.float32))
