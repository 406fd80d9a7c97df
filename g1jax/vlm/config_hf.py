"""The Hugging Face `config.json` of Qwen2.5-VL, to and from `Config`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from g1jax.errors import ConfigError, unknown
from g1jax.foreign import excerpt
from g1jax.vlm.config import Config, TextConfig, VisionConfig


def from_hf(hf: Mapping[str, Any], **changes: Any) -> Config:
    """The config of a Qwen2.5-VL `config.json`, given as a dict: the hub's flat form or the nested one.

    `changes` are fields of Config, such as dtype.

    Raises:
        ConfigError: another architecture, a key that is missing or of the wrong type, a size out of range, or an
            unsupported option.
    """
    ConfigError.require(isinstance(hf, Mapping), f"expected a JSON object, not {type(hf).__name__}")
    model_type = hf.get("model_type")
    ConfigError.require(model_type == "qwen2_5_vl", f"model_type={excerpt(model_type)}: only qwen2_5_vl is supported")
    vision_hf, text_hf = hf.get("vision_config"), hf.get("text_config", hf)
    if not isinstance(vision_hf, Mapping) or not isinstance(text_hf, Mapping):
        raise ConfigError("vision_config and text_config must be dicts")
    is_tied = [bool(_get(part, "config", "tie_word_embeddings", _is_flag, None)) for part in (hf, text_hf)]
    text = _text_from_hf(text_hf, is_tied=any(is_tied))
    positions = hf.get("g1jax_positions", "mrope")
    names = ["mrope", "sequence"]
    ConfigError.require(positions in names, unknown("g1jax_positions", str(positions)[:80], names))
    if positions == "sequence":
        text = dataclasses.replace(text, positions="sequence", mrope_section=())
    out_size = _get(vision_hf, "vision_config", "out_hidden_size", _is_integer)
    ConfigError.require(
        out_size == text.hidden_size,
        f"vision_config: out_hidden_size={excerpt(out_size)}, but the text model is {text.hidden_size} wide",
    )
    tokens = {
        key: _get(hf, "config", key, _is_integer, default)
        for key, default in (
            ("image_token_id", 151655),
            ("video_token_id", 151656),
            ("vision_start_token_id", 151652),
            ("vision_end_token_id", 151653),
        )
    }
    return Config(**{"vision": _vision_from_hf(vision_hf), "text": text, **tokens, **changes})


def _vision_from_hf(hf: Mapping[str, Any]) -> VisionConfig:
    where = "vision_config"
    _require_value(hf, where, "hidden_act", "silu")
    channels = hf.get("in_channels", hf.get("in_chans", 3))
    ConfigError.require(channels == 3, f"{where}: in_channels={excerpt(channels)}: frames have 3")
    rope = _get(hf, where, "rope_parameters", _is_object, None) or {}
    return VisionConfig(
        depth=_get(hf, where, "depth", _is_integer),
        hidden_size=_get(hf, where, "hidden_size", _is_integer),
        intermediate_size=_get(hf, where, "intermediate_size", _is_integer),
        num_heads=_get(hf, where, "num_heads", _is_integer),
        full_attention_blocks=tuple(_get(hf, where, "fullatt_block_indexes", _is_integers)),
        window_size=_get(hf, where, "window_size", _is_integer),
        patch_size=_get(hf, where, "patch_size", _is_integer),
        merge_size=_get(hf, where, "spatial_merge_size", _is_integer, 2),
        temporal_patch_size=_get(hf, where, "temporal_patch_size", _is_integer, 2),
        rope_theta=float(_get(rope, where, "rope_theta", _is_number, 10_000.0)),
        num_places=_get(hf, where, "g1jax_num_places", _is_integer, 0),
    )


def _text_from_hf(hf: Mapping[str, Any], *, is_tied: bool) -> TextConfig:
    where = "text_config"
    _require_value(hf, where, "hidden_act", "silu")
    _require_value(hf, where, "attention_dropout", 0.0)
    _require_value(hf, where, "use_sliding_window", False)
    ropes = [_get(hf, where, key, _is_object, None) or {} for key in ("rope_scaling", "rope_parameters")]
    rope = {**ropes[0], **ropes[1]}
    kind = rope.get("rope_type", rope.get("type", "default"))
    is_supported = kind in ("default", "mrope")
    ConfigError.require(is_supported, f"{where}: rope_type={excerpt(kind)}: only 'default' and 'mrope' are supported")
    num_heads = _get(hf, where, "num_attention_heads", _is_integer)
    hidden_size = _get(hf, where, "hidden_size", _is_integer)
    ConfigError.require(num_heads > 0, f"{where}: num_attention_heads={excerpt(num_heads)}: expected a number above 0")
    head_dim = _get(hf, where, "head_dim", _is_integer, None) or hidden_size // num_heads
    ConfigError.require(
        head_dim * num_heads == hidden_size,
        f"{where}: hidden_size={excerpt(hidden_size)} is not num_attention_heads={excerpt(num_heads)} × "
        f"head_dim={excerpt(head_dim)}",
    )
    theta = _get(hf, where, "rope_theta", _is_number, 1_000_000.0)
    return TextConfig(
        vocab_size=_get(hf, where, "vocab_size", _is_integer),
        hidden_size=hidden_size,
        intermediate_size=_get(hf, where, "intermediate_size", _is_integer),
        num_layers=_get(hf, where, "num_hidden_layers", _is_integer),
        num_heads=num_heads,
        num_kv_heads=_get(hf, where, "num_key_value_heads", _is_integer, None) or num_heads,
        positions="mrope",
        mrope_section=tuple(_get(rope, where, "mrope_section", _is_integers, (16, 24, 24))),
        is_tied=is_tied,
        max_length=_get(hf, where, "max_position_embeddings", _is_integer, 32_768),
        rms_norm_eps=float(_get(hf, where, "rms_norm_eps", _is_number, 1e-5)),
        rope_theta=float(_get(rope, where, "rope_theta", _is_number, theta)),
    )


# Keys and their types


def _is_integer(value: object) -> str:
    return "" if type(value) is int else "a whole number"


def _is_number(value: object) -> str:
    return "" if type(value) in (int, float) else "a number"


def _is_flag(value: object) -> str:
    return "" if type(value) is bool else "true or false"


def _is_object(value: object) -> str:
    return "" if isinstance(value, Mapping) else "an object"


def _is_integers(value: object) -> str:
    is_valid = isinstance(value, list | tuple) and all(type(item) is int for item in value)
    return "" if is_valid else "a list of whole numbers"


_MISSING = object()


def _get(
    hf: Mapping[str, Any], where: str, key: str, check: Callable[[object], str], default: object = _MISSING
) -> Any:
    """The value of a key, or its default. A null is valid only if the default is None.

    `check` returns what is expected, or an empty string for a valid value.

    Raises:
        ConfigError: the key is missing or its value is invalid.
    """
    ConfigError.require(key in hf or default is not _MISSING, f"{where}: {key} is missing")
    value = hf.get(key, default)
    if value is None and default is None:
        return None
    expected = "" if key not in hf else check(value)
    ConfigError.require(not expected, f"{where}: {key}={excerpt(value)}: expected {expected}")
    return value


def _require_value(hf: Mapping[str, Any], where: str, key: str, value: object) -> None:
    found = hf.get(key, value)
    is_supported = found == value or (found is None and not value)
    ConfigError.require(is_supported, f"{where}: {key}={excerpt(found)}: only {value!r} is supported")


def to_hf(config: Config) -> dict[str, Any]:
    """The `config.json` of a config, in the nested form. `from_hf` is its inverse, except for compute settings.

    With `sequence` positions, transformers computes the same if it is given no `mm_token_type_ids`.
    """
    vision, text = config.vision, config.text
    third = text.head_dim // 6
    section = list(text.mrope_section) or [text.head_dim // 2 - 2 * third, third, third]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": config.param_dtype,
        "g1jax_positions": text.positions,
        "tie_word_embeddings": text.is_tied,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "max_position_embeddings": text.max_length,
            "rms_norm_eps": text.rms_norm_eps,
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta, "mrope_section": section},
            "bos_token_id": None,
            "eos_token_id": None,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            "depth": vision.depth,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "fullatt_block_indexes": list(vision.full_attention_blocks),
            "window_size": vision.window_size,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "out_hidden_size": text.hidden_size,
            "in_channels": 3,
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
            "g1jax_num_places": vision.num_places,
        },
    }
