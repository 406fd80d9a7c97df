"""The one config of the policy: its shapes, its positions, how it computes. From a preset or a config.json."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from g1jax.errors import G1Error

Positions = Literal["mrope", "sequence"]
"""What a token's rotary position is.

`mrope`: Qwen2.5-VL's (time, row, column). `sequence`: its place in the sequence, image tokens too, so that the next
cell of a row and the cell below are constant offsets: small models learn to read a board from it in a minute.
"""
DType = Literal["float32", "bfloat16"]
Attention = Literal["xla", "cudnn"]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The special tokens of the presets; a token's id is its place here. The names are Qwen2.5-VL's."""


class ConfigError(G1Error):
    """A config that no model can have, or one this package does not know; the message names the key and says why."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower: patches of pixels to one visual token per merge_size × merge_size patches."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    full_attention_blocks: tuple[int, ...]
    """Blocks in which a patch sees the whole image; in the others it sees its window."""
    window_size: int = 112
    """Side of an attention window in pixels."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    merge_size: int = 2
    """Side of a visual token in patches."""
    temporal_patch_size: int = 2
    """Frames of a patch. A still image is repeated, which the model computes as one frame with the weights summed."""
    rope_theta: float = 10_000.0
    num_places: int = 0
    """Rows and columns that have an embedding of their own, added to their visual tokens, so that a small model finds
    where a tile stands in one look; 0: none, as in Qwen2.5-VL, whose positions are rotary alone.
    """

    def __post_init__(self) -> None:
        _require_positive(self, "vision", optional=("full_attention_blocks", "num_places"))
        require(self.num_places >= 0, f"vision: num_places={self.num_places}: 0 (none) or more")
        _require_heads("vision", self.hidden_size, self.num_heads, multiple=4)
        for block in self.full_attention_blocks:
            require(0 <= block < self.depth, f"vision: full_attention_blocks names block {block} of {self.depth}")
        require(
            self.window_size >= self.token_size,
            f"vision: window_size={self.window_size} is less than a visual token, {self.token_size} pixels",
        )

    @property
    def token_size(self) -> int:
        """Side of a visual token in pixels."""
        return self.patch_size * self.merge_size

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch of one frame: 3 · patch_size²."""
        return 3 * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    positions: Positions
    mrope_section: tuple[int, ...] = ()
    """Rotary frequencies that turn by time, row and column; they add up to half a head. Only for `mrope`."""
    is_tied: bool = True
    """Whether the embedding is also the output layer."""
    max_length: int = 32_768
    """Tokens a sequence may have."""
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0

    def __post_init__(self) -> None:
        _require_positive(self, "text", optional=("mrope_section", "is_tied", "positions"))
        _require_heads("text", self.hidden_size, self.num_heads, multiple=2)
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"text: num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}",
        )
        require(
            self.positions in ("mrope", "sequence"), unknown("text: positions", self.positions, ["mrope", "sequence"])
        )
        if self.positions == "mrope":
            section, half = self.mrope_section, self.head_dim // 2
            require(
                len(section) == 3 and sum(section) == half and min(section) >= 0,
                f"text: mrope_section={list(section)}: three parts that add up to {half}, half a head",
            )

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class Config:
    """A vision-language policy of the Qwen2.5-VL architecture. Hashable: a static argument of jit.

    >>> from g1jax import vlm
    >>> config = vlm.preset("nano")
    >>> vlm.count_params(config)
    860480
    """

    vision: VisionConfig
    text: TextConfig
    image_token_id: int = SPECIAL_TOKENS.index("<|image_pad|>")
    """The token whose embedding a visual token replaces."""
    video_token_id: int = SPECIAL_TOKENS.index("<|video_pad|>")
    vision_start_token_id: int = SPECIAL_TOKENS.index("<|vision_start|>")
    vision_end_token_id: int = SPECIAL_TOKENS.index("<|vision_end|>")
    dtype: DType = "float32"
    """What it computes in; norms, softmax and logits are float32 all the same."""
    param_dtype: DType = "float32"
    """What its weights are held in."""
    is_remat: bool = False
    """Whether a gradient computes each layer's inside again instead of holding it."""
    is_scanned: bool = False
    """Whether the decoder is one layer compiled once and run over stacked params: large models compile sooner."""
    attention: Attention = "xla"
    """`cudnn`: the fused attention of NVIDIA cards, where one can be used (bfloat16); `xla`: plain, anywhere."""

    def __post_init__(self) -> None:
        for key, known in (
            ("dtype", ["float32", "bfloat16"]),
            ("param_dtype", ["float32", "bfloat16"]),
            ("attention", ["xla", "cudnn"]),
        ):
            require(getattr(self, key) in known, unknown(key, getattr(self, key), known))
        require(self.attention == "xla" or self.dtype == "bfloat16", "attention='cudnn' computes in bfloat16 only")
        for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            token, size = getattr(self, key), self.text.vocab_size
            require(0 <= token < size, f"{key}={token}: not in the vocabulary of {size} tokens")


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The message for an unknown name: it, the near ones, and all there are."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return f"unknown {what} {name!r}{hint} There are: {', '.join(known)}"


def _require_positive(part: VisionConfig | TextConfig, name: str, optional: tuple[str, ...]) -> None:
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name not in optional:
            kinds = (int, float) if field.type in (float, "float") else (int,)
            is_number = isinstance(value, kinds) and not isinstance(value, bool)
            require(is_number and value > 0, f"{name}: {field.name}={value!r}: a number above 0")


def _require_heads(name: str, hidden_size: int, num_heads: int, multiple: int) -> None:
    require(
        hidden_size % num_heads == 0,
        f"{name}: hidden_size={hidden_size} must be a multiple of num_heads={num_heads}",
    )
    head_dim = hidden_size // num_heads
    require(
        head_dim % multiple == 0,
        f"{name}: a head is {head_dim} wide (hidden_size / num_heads); rotary positions need a multiple of {multiple}",
    )


# Presets

_PRESETS: dict[str, tuple[VisionConfig, TextConfig]] = {
    "nano": (
        VisionConfig(
            depth=2, hidden_size=64, intermediate_size=160, num_heads=4, full_attention_blocks=(1,),
            temporal_patch_size=1, num_places=32,
        ),
        TextConfig(
            vocab_size=512, hidden_size=128, intermediate_size=352, num_layers=3, num_heads=4, num_kv_heads=2,
            positions="sequence", rope_theta=10_000.0, max_length=4096,
        ),
    ),
    "micro": (
        VisionConfig(
            depth=3, hidden_size=96, intermediate_size=256, num_heads=4, full_attention_blocks=(2,),
            temporal_patch_size=1, num_places=32,
        ),
        TextConfig(
            vocab_size=512, hidden_size=256, intermediate_size=704, num_layers=6, num_heads=8, num_kv_heads=4,
            positions="sequence", rope_theta=10_000.0, max_length=4096,
        ),
    ),
    "small": (
        VisionConfig(
            depth=4, hidden_size=192, intermediate_size=512, num_heads=4, full_attention_blocks=(1, 3),
            temporal_patch_size=1, num_places=32,
        ),
        TextConfig(
            vocab_size=512, hidden_size=512, intermediate_size=1408, num_layers=8, num_heads=8, num_kv_heads=2,
            positions="sequence", rope_theta=10_000.0, max_length=4096,
        ),
    ),
}  # fmt: skip


def preset(name: str, *, vocab_size: int | None = None, **changes: Any) -> Config:
    """A small model: `nano` (0.8M), `micro` (5M) or `small` (26M), one visual token per 28×28 pixels.

    `vocab_size` is the tokenizer's, whose special tokens are `SPECIAL_TOKENS`; `changes` are fields of Config.

    Raises:
        ConfigError: no such preset or field.
    """
    require(name in _PRESETS, unknown("preset", name, _PRESETS))
    vision, text = _PRESETS[name]
    if vocab_size is not None:
        text = dataclasses.replace(text, vocab_size=vocab_size)
    known = [field.name for field in dataclasses.fields(Config)]
    for key in changes:
        require(key in known, unknown("field of Config", key, known))
    return Config(**{"vision": vision, "text": text, **changes})


def preset_names() -> tuple[str, ...]:
    """The names that `preset` knows."""
    return tuple(_PRESETS)


# Hugging Face's config.json


def from_hf(hf: Mapping[str, Any], **changes: Any) -> Config:
    """The config of a Qwen2.5-VL `config.json`, read as a dict: the hub's flat form or the nested one.

    `changes` are fields of Config, such as dtype. A folder that `weights.export` wrote gives back its own config.

    Raises:
        ConfigError: another architecture, a missing key, or an option this package does not have.
    """
    model_type = hf.get("model_type")
    require(model_type == "qwen2_5_vl", f"model_type={model_type!r}: only qwen2_5_vl is known here")
    vision_hf, text_hf = hf.get("vision_config"), hf.get("text_config", hf)
    if not isinstance(vision_hf, Mapping) or not isinstance(text_hf, Mapping):
        raise ConfigError("vision_config and text_config must be dicts")
    text = _text_from_hf(text_hf, is_tied=bool(hf.get("tie_word_embeddings") or text_hf.get("tie_word_embeddings")))
    if hf.get("g1jax_positions", "mrope") == "sequence":
        text = dataclasses.replace(text, positions="sequence", mrope_section=())
    out_size = _get(vision_hf, "vision_config", "out_hidden_size")
    require(
        out_size == text.hidden_size,
        f"vision_config: out_hidden_size={out_size}, but the text model is {text.hidden_size} wide",
    )
    tokens = {
        key: int(hf.get(key, default))
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
    require(channels == 3, f"{where}: in_channels={channels!r}: frames have 3")
    rope = hf.get("rope_parameters") or {}
    return VisionConfig(
        depth=_get(hf, where, "depth"),
        hidden_size=_get(hf, where, "hidden_size"),
        intermediate_size=_get(hf, where, "intermediate_size"),
        num_heads=_get(hf, where, "num_heads"),
        full_attention_blocks=tuple(_get(hf, where, "fullatt_block_indexes")),
        window_size=_get(hf, where, "window_size"),
        patch_size=_get(hf, where, "patch_size"),
        merge_size=hf.get("spatial_merge_size", 2),
        temporal_patch_size=hf.get("temporal_patch_size", 2),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
        num_places=hf.get("g1jax_num_places", 0),
    )


def _text_from_hf(hf: Mapping[str, Any], *, is_tied: bool) -> TextConfig:
    where = "text_config"
    _require_value(hf, where, "hidden_act", "silu")
    _require_value(hf, where, "attention_dropout", 0.0)
    _require_value(hf, where, "use_sliding_window", False)
    rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    require(kind in ("default", "mrope"), f"{where}: rope_type={kind!r}: only 'default' and 'mrope' are known here")
    num_heads = _get(hf, where, "num_attention_heads")
    hidden_size = _get(hf, where, "hidden_size")
    head_dim = hf.get("head_dim") or hidden_size // num_heads
    require(
        head_dim * num_heads == hidden_size,
        f"{where}: hidden_size={hidden_size} is not num_attention_heads={num_heads} × head_dim={head_dim}",
    )
    return TextConfig(
        vocab_size=_get(hf, where, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_get(hf, where, "intermediate_size"),
        num_layers=_get(hf, where, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=hf.get("num_key_value_heads") or num_heads,
        positions="mrope",
        mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
        is_tied=is_tied,
        max_length=hf.get("max_position_embeddings", 32_768),
        rms_norm_eps=float(hf.get("rms_norm_eps", 1e-5)),
        rope_theta=float(rope.get("rope_theta", hf.get("rope_theta", 1_000_000.0))),
    )


def _get(hf: Mapping[str, Any], where: str, key: str) -> Any:
    require(key in hf, f"{where}: {key} is missing")
    return hf[key]


def _require_value(hf: Mapping[str, Any], where: str, key: str, value: object) -> None:
    found = hf.get(key, value)
    require(found == value or (found is None and not value), f"{where}: {key}={found!r}: only {value!r} is known here")


def to_hf(config: Config) -> dict[str, Any]:
    """The `config.json` of a config, in the nested form; `from_hf` is its inverse but for dtype and the like.

    With `sequence` positions transformers loads the weights too, and computes the same if it is given no
    `mm_token_type_ids`: then its positions are the sequence's.
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
