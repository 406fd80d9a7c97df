"""The published shapes of Qwen2.5-VL with its own token ids."""

from typing import Any

from g1jax.errors import ConfigError, unknown
from g1jax.vlm.config import PUBLISHED, Config
from g1jax.vlm.config_hf import TOKENS

_NAMES = {"3B": "qwen2_5_vl_3b", "7B": "qwen2_5_vl_7b"}


def shape_of(name: str, **changes: Any) -> Config:
    """The config of Qwen2.5-VL `3B` or `7B`; `changes` are fields of Config, such as dtype.

    Raises:
        ConfigError: an unknown size.
    """
    ConfigError.require(name in _NAMES, unknown("size of Qwen2.5-VL", name, _NAMES))
    vision, text = PUBLISHED[_NAMES[name]]
    return Config(**{"vision": vision, "text": text, **TOKENS, **changes})
