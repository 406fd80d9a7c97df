"""The published shapes of Qwen2.5-VL, for estimates and random weights; real weights have their own config.json."""

from typing import Any

from g1jax.errors import ConfigError, unknown
from g1jax.vlm.config import Config, TextConfig, VisionConfig
from g1jax.vlm.config_hf import TOKENS

_VISION = VisionConfig(
    depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, full_attention_blocks=(7, 15, 23, 31)
)
_TEXT: dict[str, TextConfig] = {
    "3B": TextConfig(
        vocab_size=151_936, hidden_size=2048, intermediate_size=11_008, num_layers=36, num_heads=16, num_kv_heads=2,
        positions="mrope", mrope_section=(16, 24, 24), max_length=128_000, is_tied=True,
    ),
    "7B": TextConfig(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_layers=28, num_heads=28, num_kv_heads=4,
        positions="mrope", mrope_section=(16, 24, 24), max_length=128_000, is_tied=False,
    ),
}  # fmt: skip


def shape_of(name: str, **changes: Any) -> Config:
    """The config of Qwen2.5-VL `3B` or `7B`; `changes` are fields of Config, such as dtype.

    Raises:
        ConfigError: an unknown size.
    """
    ConfigError.require(name in _TEXT, unknown("size of Qwen2.5-VL", name, _TEXT))
    return Config(**{"vision": _VISION, "text": _TEXT[name], **TOKENS, **changes})
