"""The config of the policy: shapes, positions and computation. From a preset or a config.json."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from g1jax.errors import ConfigError, unknown
from g1jax.settings import Range, check, show

Positions = Literal["mrope", "sequence"]
"""A token's rotary position.

`mrope`: Qwen2.5-VL's (time, row, column). `sequence`: its index in the sequence, also for image tokens, so that the
cells to the right and below are at constant offsets: small models learn to read a board with it in a minute.
"""
MAX_PARAMS = 10**12
Width = Annotated[int, Range(1, 2**16)]
Size = Annotated[int, Range(1, 2**18)]
Heads = Annotated[int, Range(1, 2**10)]
Depth = Annotated[int, Range(1, 128)]
TokenId = Annotated[int, Range(0, 2**22)]
Theta = Annotated[float, Range(0, 1e12, is_above=True)]
# The ranges end well above every known model: they bound the time and memory spent on a config before it is used.
DType = Literal["float32", "bfloat16"]
ImageSize = tuple[Annotated[int, Range(1, 2**14)], ...]
Attention = Literal["xla", "blockwise", "cudnn"]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The special tokens of the presets; a token's id is its index here. The names are Qwen2.5-VL's."""
_IDS = {token: index for index, token in enumerate(SPECIAL_TOKENS)}


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower: one visual token per merge_size × merge_size patches of pixels."""

    depth: Depth
    hidden_size: Width
    intermediate_size: Size
    num_heads: Heads
    full_attention_blocks: tuple[Annotated[int, Range(0, 127)], ...]
    """Blocks in which a patch attends to the whole image; in the others it attends to its window."""
    window_size: Annotated[int, Range(1, 2**14)] = 112
    """Side of an attention window, in pixels."""
    patch_size: Annotated[int, Range(1, 2**9)] = 14
    """Side of a patch, in pixels."""
    merge_size: Annotated[int, Range(1, 2**6)] = 2
    """Side of a visual token, in patches."""
    temporal_patch_size: Annotated[int, Range(1, 2**6)] = 2
    """Frames per patch. A still image is repeated, which is computed as one frame with summed weights."""
    rope_theta: Theta = 10_000.0
    num_places: Annotated[int, Range(0, 2**12)] = 0
    """Rows and columns with a learned embedding that is added to their visual tokens, so that a small model locates
    tiles easily; 0: none, as in Qwen2.5-VL, which has only rotary positions.
    """
    image_size: ImageSize = ()
    """(height, width) in pixels that every image is resized to; empty: its own size. Either is rounded to whole tokens.
    """

    def __post_init__(self) -> None:
        check(self, ConfigError, "vision: ")
        _require_at_most("vision: full_attention_blocks", self.full_attention_blocks, self.depth)
        _require_heads("vision", self.hidden_size, self.num_heads, multiple=4)
        ConfigError.require(
            len(self.image_size) in (0, 2), f"vision: image_size={list(self.image_size)}: expected a height and a width"
        )
        for block in self.full_attention_blocks:
            ConfigError.require(block < self.depth, f"vision: full_attention_blocks has block {block} of {self.depth}")
        ConfigError.require(
            self.window_size >= self.token_size,
            f"vision: window_size={self.window_size} is smaller than a visual token, {self.token_size} pixels",
        )

    @property
    def token_size(self) -> int:
        """Side of a visual token, in pixels."""
        return self.patch_size * self.merge_size

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values in a patch of one frame: 3 · patch_size²."""
        return 3 * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The decoder."""

    vocab_size: Annotated[int, Range(1, 2**22)]
    hidden_size: Width
    intermediate_size: Size
    num_layers: Depth
    num_heads: Heads
    num_kv_heads: Heads
    positions: Positions
    mrope_section: tuple[Annotated[int, Range(0, 2**16)], ...] = ()
    """Numbers of rotary frequencies for time, row and column; they sum to half a head. Only for `mrope`."""
    is_tied: bool = True
    """Whether the output layer is the embedding."""
    max_length: Annotated[int, Range(1, 2**24)] = 32_768
    """Context length, in tokens."""
    rms_norm_eps: Annotated[float, Range(0, 1, is_above=True)] = 1e-6
    rope_theta: Theta = 1_000_000.0

    def __post_init__(self) -> None:
        check(self, ConfigError, "text: ")
        _require_at_most("text: mrope_section", self.mrope_section, 3)
        _require_heads("text", self.hidden_size, self.num_heads, multiple=2)
        ConfigError.require(
            self.num_heads % self.num_kv_heads == 0,
            f"text: num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}",
        )
        if self.positions == "mrope":
            section, half = self.mrope_section, self.head_dim // 2
            ConfigError.require(
                len(section) == 3 and sum(section) == half,
                f"text: mrope_section={list(section)}: expected three parts that add up to {half}, half a head",
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
    image_token_id: TokenId = _IDS["<|image_pad|>"]
    """The token whose embedding a visual token replaces."""
    video_token_id: TokenId = _IDS["<|video_pad|>"]
    vision_start_token_id: TokenId = _IDS["<|vision_start|>"]
    vision_end_token_id: TokenId = _IDS["<|vision_end|>"]
    dtype: DType = "float32"
    """The compute dtype; norms, softmax and logits are always float32."""
    param_dtype: DType = "float32"
    """The dtype of the params."""
    is_remat: bool = False
    """Whether gradients recompute each layer's activations."""
    is_scanned: bool = False
    """Whether the decoder scans one compiled layer over stacked params, so that large models compile faster."""
    attention: Attention = "xla"
    """`xla`: plain, on any device. `blockwise`: a block of queries at a time, for long sequences on any device.
    `cudnn`: fused attention on NVIDIA GPUs, bfloat16 only."""

    def __post_init__(self) -> None:
        check(self, ConfigError)
        ConfigError.require(
            self.attention != "cudnn" or self.dtype == "bfloat16", "attention='cudnn' needs dtype='bfloat16'"
        )
        for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            token, size = getattr(self, key), self.text.vocab_size
            ConfigError.require(token < size, f"{key}={token}: not in the vocabulary of {size} tokens")
        count = _estimated_params(self.vision, self.text)
        ConfigError.require(count <= MAX_PARAMS, f"a model of {count:.1e} params: expected at most {MAX_PARAMS:.0e}")


def _require_at_most(name: str, values: Any, most: int) -> None:
    is_valid = type(values) is tuple and len(values) <= most
    ConfigError.require(is_valid, f"{name}={show(values)}: expected a tuple of up to {most}")


def _estimated_params(vision: VisionConfig, text: TextConfig) -> int:
    """The number of matrix params, without building the model."""
    width, inner = vision.hidden_size, vision.token_size**2 * 3
    merged = vision.hidden_size * vision.merge_size**2
    tower = vision.depth * (4 * width**2 + 3 * width * vision.intermediate_size)
    tower += inner * width // vision.merge_size**2 + merged * (merged + text.hidden_size)
    width, kv_width = text.hidden_size, text.head_dim * text.num_kv_heads
    layer = 2 * width * (width + kv_width) + 3 * width * text.intermediate_size
    return tower + text.num_layers * layer + text.vocab_size * width * (1 if text.is_tied else 2)


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


_QWEN_VISION = VisionConfig(
    depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, full_attention_blocks=(7, 15, 23, 31)
)
_QWEN_TEXT = TextConfig(
    vocab_size=151_936, hidden_size=2048, intermediate_size=11_008, num_layers=36, num_heads=16, num_kv_heads=2,
    positions="mrope", mrope_section=(16, 24, 24), max_length=128_000, is_tied=True,
)  # fmt: skip
PUBLISHED: dict[str, tuple[VisionConfig, TextConfig]] = {
    "qwen2_5_vl_3b": (_QWEN_VISION, _QWEN_TEXT),
    "qwen2_5_vl_7b": (
        _QWEN_VISION,
        dataclasses.replace(
            _QWEN_TEXT, vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_layers=28, num_heads=28,
            num_kv_heads=4, is_tied=False,
        ),
    ),
}  # fmt: skip
"""The shapes of Qwen2.5-VL, for plans and timings; real weights have their own config.json."""


def preset(name: str, *, vocab_size: int | None = None, **changes: Any) -> Config:
    """A small model: `nano` (0.8M), `mini` (1.8M), `micro` (5M) or `small` (26M), one visual token per 28×28 pixels.

    `mini` is a plain Qwen2.5-VL, without `num_places` or `sequence` positions. Half of its params are in the vision
    tower: four full-attention blocks, one patch per visual token.

    `qwen2_5_vl_3b` and `qwen2_5_vl_7b` have the published shapes, and their vocabulary whatever the tokenizer.

    `vocab_size` is that of a tokenizer with the special tokens `SPECIAL_TOKENS`; `changes` are fields of Config.

    Raises:
        ConfigError: an unknown preset or field.
    """
    known_presets = {**_PRESETS, **PUBLISHED}
    ConfigError.require(name in known_presets, unknown("preset", name, known_presets))
    vision, text = known_presets[name]
    if vocab_size is not None and name not in PUBLISHED:
        text = dataclasses.replace(text, vocab_size=vocab_size)
    known = [field.name for field in dataclasses.fields(Config)]
    for key in changes:
        ConfigError.require(key in known, unknown("field of Config", key, known))
    return Config(**{"vision": vision, "text": text, **changes})


def preset_names() -> tuple[str, ...]:
    """The names of the presets."""
    return (*_PRESETS, *PUBLISHED)
