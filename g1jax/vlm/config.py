"""The one config of the policy: its shapes, its positions, how it computes. From a preset or a config.json."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from g1jax.errors import ConfigError, unknown

Positions = Literal["mrope", "sequence"]
"""What a token's rotary position is.

`mrope`: Qwen2.5-VL's (time, row, column). `sequence`: its place in the sequence, image tokens too, so that the next
cell of a row and the cell below are constant offsets: small models learn to read a board from it in a minute.
"""
MAX_PARAMS = 10**12
_MOST = {
    "depth": 128,
    "num_layers": 128,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_heads": 2**10,
    "num_kv_heads": 2**10,
    "vocab_size": 2**22,
    "max_length": 2**24,
    "window_size": 2**14,
    "patch_size": 2**9,
    "merge_size": 2**6,
    "temporal_patch_size": 2**6,
    "num_places": 2**12,
    "rope_theta": 1e12,
    "rms_norm_eps": 1.0,
}
"""The most a number may be, well above every known model's: what is computed of a config, before anything is allocated,
takes time and memory as these are."""
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
        _check_numbers(self, "vision", can_be_zero=("num_places",))
        _require_integers("vision", "full_attention_blocks", self.full_attention_blocks, self.depth)
        _require_heads("vision", self.hidden_size, self.num_heads, multiple=4)
        for block in self.full_attention_blocks:
            ConfigError.require(
                0 <= block < self.depth, f"vision: full_attention_blocks names block {block} of {self.depth}"
            )
        ConfigError.require(
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
        _check_numbers(self, "text")
        _require_integers("text", "mrope_section", self.mrope_section, 3)
        ConfigError.require(type(self.is_tied) is bool, f"text: is_tied={self.is_tied!r}: true or false")
        _require_heads("text", self.hidden_size, self.num_heads, multiple=2)
        ConfigError.require(
            self.num_heads % self.num_kv_heads == 0,
            f"text: num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}",
        )
        ConfigError.require(
            self.positions in ("mrope", "sequence"), unknown("text: positions", self.positions, ["mrope", "sequence"])
        )
        if self.positions == "mrope":
            section, half = self.mrope_section, self.head_dim // 2
            ConfigError.require(
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
            ConfigError.require(getattr(self, key) in known, unknown(key, getattr(self, key), known))
        ConfigError.require(
            self.attention == "xla" or self.dtype == "bfloat16", "attention='cudnn' computes in bfloat16 only"
        )
        for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            token, size = getattr(self, key), self.text.vocab_size
            is_token = type(token) is int and 0 <= token < size
            ConfigError.require(is_token, f"{key}={_shown(token)}: not in the vocabulary of {size} tokens")
        count = _estimated_params(self.vision, self.text)
        ConfigError.require(count <= MAX_PARAMS, f"a model of {count:.1e} params, and the largest has {MAX_PARAMS:.0e}")


def _check_numbers(part: VisionConfig | TextConfig, name: str, can_be_zero: tuple[str, ...] = ()) -> None:
    """Whether each number has its type and its range."""
    for field in dataclasses.fields(part):
        value, most = getattr(part, field.name), _MOST.get(field.name)
        if most is not None:
            kinds = (int, float) if type(most) is float else (int,)
            ConfigError.require(type(value) in kinds, f"{name}: {field.name}={_shown(value)}: a number above 0")
            is_least = value > 0 or (field.name in can_be_zero and value == 0)
            least = "0 or more" if field.name in can_be_zero else "a number above 0"
            ConfigError.require(is_least, f"{name}: {field.name}={_shown(value)}: {least}")
            ConfigError.require(value <= most, f"{name}: {field.name}={_shown(value)}: {most} at most")


def _require_integers(name: str, key: str, values: tuple[int, ...], most: int) -> None:
    is_right = type(values) is tuple and len(values) <= most and all(type(value) is int for value in values)
    ConfigError.require(is_right, f"{name}: {key}={_shown(values)}: up to {most} whole numbers")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _estimated_params(vision: VisionConfig, text: TextConfig) -> int:
    """How many numbers the matrices have, without building the model."""
    width, inner = vision.hidden_size, vision.token_size**2 * 3
    merged = vision.hidden_size * vision.merge_size**2
    seen = vision.depth * (4 * width**2 + 3 * width * vision.intermediate_size)
    seen += inner * width // vision.merge_size**2 + merged * (merged + text.hidden_size)
    width, kv_width = text.hidden_size, text.head_dim * text.num_kv_heads
    layer = 2 * width * (width + kv_width) + 3 * width * text.intermediate_size
    return seen + text.num_layers * layer + text.vocab_size * width * (1 if text.is_tied else 2)


def _require_heads(name: str, hidden_size: int, num_heads: int, multiple: int) -> None:
    ConfigError.require(
        hidden_size % num_heads == 0,
        f"{name}: hidden_size={hidden_size} must be a multiple of num_heads={num_heads}",
    )
    head_dim = hidden_size // num_heads
    ConfigError.require(
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
    "mini": (
        VisionConfig(
            depth=4, hidden_size=128, intermediate_size=320, num_heads=4, full_attention_blocks=(0, 1, 2, 3),
            patch_size=28, merge_size=1, temporal_patch_size=1,
        ),
        TextConfig(
            vocab_size=512, hidden_size=128, intermediate_size=352, num_layers=3, num_heads=4, num_kv_heads=2,
            positions="mrope", mrope_section=(6, 5, 5), rope_theta=10_000.0, max_length=4096,
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
    """A small model: `nano` (0.8M), `mini` (1.8M), `micro` (5M) or `small` (26M), one visual token per 28×28 pixels.

    `mini` is a plain Qwen2.5-VL, without places or positions of our own. Half of its params are in the vision tower:
    four blocks that see the whole board, one patch a visual token.

    `vocab_size` is the tokenizer's, whose special tokens are `SPECIAL_TOKENS`; `changes` are fields of Config.

    Raises:
        ConfigError: no such preset or field.
    """
    ConfigError.require(name in _PRESETS, unknown("preset", name, _PRESETS))
    vision, text = _PRESETS[name]
    if vocab_size is not None:
        text = dataclasses.replace(text, vocab_size=vocab_size)
    known = [field.name for field in dataclasses.fields(Config)]
    for key in changes:
        ConfigError.require(key in known, unknown("field of Config", key, known))
    return Config(**{"vision": vision, "text": text, **changes})


def preset_names() -> tuple[str, ...]:
    """The names that `preset` knows."""
    return tuple(_PRESETS)
