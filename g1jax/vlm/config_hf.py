"""The Hugging Face `config.json` of Qwen2.5-VL, to and from `Config`."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from g1jax.errors import ConfigError
from g1jax.settings import why_invalid
from g1jax.untrusted import excerpt
from g1jax.vlm.config import Config, Positions, TextConfig, TokenId, VisionConfig

_TEXT = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "max_position_embeddings": "max_length",
    "rms_norm_eps": "rms_norm_eps",
}
_VISION = {
    "depth": "depth",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_heads",
    "fullatt_block_indexes": "full_attention_blocks",
    "window_size": "window_size",
    "patch_size": "patch_size",
    "spatial_merge_size": "merge_size",
    "temporal_patch_size": "temporal_patch_size",
    "g1jax_num_places": "num_places",
    "g1jax_image_size": "image_size",
}
"""Keys of `text_config` and `vision_config`, with the fields they give."""
_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,  # as many as heads
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "g1jax_num_places": 0,
    "g1jax_image_size": (),
}
TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
"""The special tokens of the published models, by the field of Config."""
_HINTS: dict[type[TextConfig | VisionConfig], dict[str, Any]] = {
    kind: typing.get_type_hints(kind, include_extras=True) for kind in (TextConfig, VisionConfig)
}


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
    is_tied = [bool(_get(part, "config", "tie_word_embeddings", bool, None)) for part in (hf, text_hf)]
    text = _text_from_hf(text_hf, is_tied=any(is_tied))
    if _get(hf, "config", "g1jax_positions", Positions, "mrope") == "sequence":
        text = dataclasses.replace(text, positions="sequence", mrope_section=())
    out_size = _get(vision_hf, "vision_config", "out_hidden_size", _HINTS[TextConfig]["hidden_size"])
    ConfigError.require(
        out_size == text.hidden_size,
        f"vision_config: out_hidden_size={out_size}, but the text model is {text.hidden_size} wide",
    )
    tokens = {key: _get(hf, "config", key, TokenId, default) for key, default in TOKENS.items()}
    return Config(**{"vision": _vision_from_hf(vision_hf), "text": text, **tokens, **changes})


def _vision_from_hf(hf: Mapping[str, Any]) -> VisionConfig:
    where = "vision_config"
    _require_value(hf, where, "hidden_act", "silu")
    channels = hf.get("in_channels", hf.get("in_chans", 3))
    ConfigError.require(channels == 3, f"{where}: in_channels={excerpt(channels)}: frames have 3")
    rope = _get(hf, where, "rope_parameters", Mapping[str, Any], None) or {}
    theta = _get(rope, where, "rope_theta", _HINTS[VisionConfig]["rope_theta"], 10_000.0)
    return VisionConfig(**_fields(hf, where, VisionConfig, _VISION), rope_theta=float(theta))


def _text_from_hf(hf: Mapping[str, Any], *, is_tied: bool) -> TextConfig:
    where, hints = "text_config", _HINTS[TextConfig]
    _require_value(hf, where, "hidden_act", "silu")
    _require_value(hf, where, "attention_dropout", 0.0)
    _require_value(hf, where, "use_sliding_window", False)
    ropes = [_get(hf, where, key, Mapping[str, Any], None) or {} for key in ("rope_scaling", "rope_parameters")]
    rope = {**ropes[0], **ropes[1]}
    kind = rope.get("rope_type", rope.get("type", "default"))
    is_supported = kind in ("default", "mrope")
    ConfigError.require(is_supported, f"{where}: rope_type={excerpt(kind)}: only 'default' and 'mrope' are supported")
    fields = _fields(hf, where, TextConfig, _TEXT)
    num_heads, hidden_size = fields["num_heads"], fields["hidden_size"]
    head_dim = _get(hf, where, "head_dim", hints["hidden_size"], None) or hidden_size // num_heads
    ConfigError.require(
        head_dim * num_heads == hidden_size,
        f"{where}: hidden_size={hidden_size} is not num_attention_heads={num_heads} × head_dim={head_dim}",
    )
    theta = _get(hf, where, "rope_theta", hints["rope_theta"], 1_000_000.0)
    return TextConfig(
        **{
            **fields,
            "num_kv_heads": fields["num_kv_heads"] or num_heads,
            "rms_norm_eps": float(fields["rms_norm_eps"]),
        },
        positions="mrope",
        mrope_section=tuple(_get(rope, where, "mrope_section", hints["mrope_section"], (16, 24, 24))),
        is_tied=is_tied,
        rope_theta=float(_get(rope, where, "rope_theta", hints["rope_theta"], theta)),
    )


def _fields(
    hf: Mapping[str, Any], where: str, kind: type[TextConfig | VisionConfig], keys: Mapping[str, str]
) -> dict[str, Any]:
    """The fields of a part, from the values of its keys."""
    values = {
        field: _get(hf, where, key, _HINTS[kind][field], _DEFAULTS.get(key, _MISSING)) for key, field in keys.items()
    }
    return {field: tuple(value) if isinstance(value, list) else value for field, value in values.items()}


_MISSING = object()


def _get(hf: Mapping[str, Any], where: str, key: str, hint: Any, default: object = _MISSING) -> Any:
    """The value of a key, or its default. A null is valid only if the default is None.

    Raises:
        ConfigError: the key is missing, or its value does not fit the type hint.
    """
    ConfigError.require(key in hf or default is not _MISSING, f"{where}: {key} is missing")
    value = hf.get(key, default)
    if value is None and default is None:
        return None
    invalid = why_invalid(f"{where}: {key}", value, hint)
    ConfigError.require(not invalid, invalid)
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
        **{key: getattr(config, key) for key in TOKENS},
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            **{key: getattr(text, field) for key, field in _TEXT.items()},
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta, "mrope_section": section},
            "bos_token_id": None,
            "eos_token_id": None,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            **{key: getattr(vision, field) for key, field in _VISION.items()},
            "fullatt_block_indexes": list(vision.full_attention_blocks),
            "g1jax_image_size": list(vision.image_size),
            "out_hidden_size": text.hidden_size,
            "in_channels": 3,
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
        },
    }
