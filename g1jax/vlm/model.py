"""The policy as pure functions of a plain dict of params: `init`, `apply` and their building blocks.

The modules are defined with nnx and split once: `init` returns a dict of arrays, keyed as in Qwen2.5-VL's checkpoints,
and inside a jit `bind` merges dict and modules again, which costs nothing once compiled.
"""

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8

from g1jax.errors import ConfigError
from g1jax.typing import Array, ArrayLike, Key
from g1jax.vlm.accumulation import is_narrow
from g1jax.vlm.attention import Causal
from g1jax.vlm.cache import Cache, Prefix
from g1jax.vlm.config import Config
from g1jax.vlm.decoder import Decoder
from g1jax.vlm.layers import Linear, project
from g1jax.vlm.preprocess import grid_of, patches
from g1jax.vlm.rotary import text_positions, token_positions
from g1jax.vlm.row_selection import take_rows
from g1jax.vlm.sharding import BATCH, constrain
from g1jax.vlm.stacking import ParamPath as ParamPath
from g1jax.vlm.stacking import layer_paths
from g1jax.vlm.vision import VisionTower

Params = dict[Any, Any]
"""Nested dicts of arrays; a list of layers is a dict keyed 0, 1, … For scanned layers see `stacking`."""
Images = UInt8[ArrayLike, "_ _ _ 3"] | UInt8[ArrayLike, "_ _ _ _ 3"]
"""One image per row, uint8[B, H, W, 3], or several, uint8[B, I, H, W, 3]."""
Frames = Images | Sequence[Images]
"""The images of a batch, or a sequence of them, one per game, with their rows in this order. With several times as many
rows as frames, the rows of a frame are adjacent.
"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecoderOutput:
    """Hidden states and cache of a sequence."""

    hidden: Float[Array, "B S D"]  # from the first token asked for
    cache: Cache
    next_position: Int32[Array, "B"]  # the position of the next token


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefilled:
    """Prompts that have been computed: their keys and values, and all else that text after them needs."""

    cache: Prefix
    hidden: Float[Array, "n D"]  # of the last token, which predicts the first token after it
    next_position: Int32[Array, "n"]
    mask: Bool[Array, "n P"]

    def of_rows(self, index: Int32[Array, "shards b"]) -> "Prefilled":
        """The prompts at each device's indices, as `take_rows`; gradients of copies are summed in float32."""

        def take(x: Array, axis: int = 0) -> Array:
            wide = x.astype(jnp.float32) if is_narrow(x) else x
            return take_rows(wide, index, axis).astype(x.dtype)

        cache = jax.tree.map(lambda x: take(x, -4), self.cache)
        return Prefilled(cache, *(take(x) for x in (self.hidden, self.next_position, self.mask)))


def alternating(prompts: Sequence[Prefilled]) -> Prefilled:
    """The prompts of several batches of equal size in one, padded on the left to the longest.

    `[a b], [c d] -> [a c b d]`: sharded rows stay on their devices.
    """
    longest = max(of_batch.mask.shape[1] for of_batch in prompts)

    def put(*parts: Array, axis: int, padded: int | None = None) -> Array:
        axis %= parts[0].ndim
        if padded is not None:
            widths = [[(0, 0)] * x.ndim for x in parts]
            for x, width in zip(parts, widths, strict=True):
                width[padded] = (longest - x.shape[padded], 0)
            parts = tuple(map(jnp.pad, parts, widths))
        together = jnp.stack(parts, axis=axis + 1)
        return together.reshape(*parts[0].shape[:axis], -1, *parts[0].shape[axis + 1 :])

    return Prefilled(
        jax.tree.map(functools.partial(put, axis=-4, padded=-2), *(of_batch.cache for of_batch in prompts)),
        put(*(of_batch.hidden for of_batch in prompts), axis=0),
        put(*(of_batch.next_position for of_batch in prompts), axis=0),
        put(*(of_batch.mask for of_batch in prompts), axis=0, padded=1),
    )


class VLM(nnx.Module):
    """The whole policy. It is created with zeros; `bind` sets params from `init` or `weights.load`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.visual = VisionTower(config)
        self.model = Decoder(config)
        if not config.text.is_tied:
            self.lm_head = Linear(config, config.text.hidden_size, config.text.vocab_size)

    def encode_images(self, frames: Frames) -> Float[Array, "n t D"]:
        """Frames to visual tokens, in reading order. Rows of smaller images are padded with zeros."""
        groups = [self._encode_group(group) for group in _groups(frames)]
        longest = max(group.shape[1] for group in groups)
        return jnp.concatenate([jnp.pad(g, ((0, 0), (0, longest - g.shape[1]), (0, 0))) for g in groups])

    def _encode_group(self, frames: ArrayLike) -> Array:
        rows = frames.shape[0]
        if frames.ndim == 5:
            frames = frames.reshape(-1, *frames.shape[2:])
        grid = grid_of(self.config.vision, frames.shape[1], frames.shape[2])
        tokens = self.visual(patches(self.config.vision, frames), grid)
        return tokens.reshape(rows, -1, tokens.shape[-1])

    def embed(
        self,
        tokens: Int32[Array, "B S"],
        is_image: Bool[Array, "B S"],
        frames: Frames | None,
        visual_tokens: Float[Array, "n t D"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Embeddings of tokens, with visual tokens in place of image tokens. Without frames, all tokens are text."""
        text = self.model.embed_tokens(tokens)
        if frames is None:
            return constrain(text, BATCH, None, None)
        visual = _for_rows(self.encode_images(frames) if visual_tokens is None else visual_tokens, tokens.shape[0])
        index = jnp.cumsum(is_image.astype(jnp.int32), axis=1) - 1
        index = jnp.clip(index, 0, visual.shape[1] - 1)
        mixed = jnp.where(is_image[:, :, None], jnp.take_along_axis(visual, index[:, :, None], axis=1), text)
        return constrain(mixed, BATCH, None, None)

    def forward(
        self,
        tokens: Int32[Array, "B S"],
        mask: Bool[Array, "B S"],
        frames: Frames | None,
        prompt_length: int | None = None,
        start: int = 0,
        visual_tokens: Float[Array, "n t D"] | None = None,
    ) -> DecoderOutput:
        """Frames and tokens to hidden states. Without frames, the vision tower is not run.

        Only the first `prompt_length` tokens can be replaced by visual ones, since an image token in a response is
        text; None: all can. start: the first token whose hidden state is returned. visual_tokens: those of the frames,
        if already computed.
        """
        is_image = (tokens == self.config.image_token_id) & mask
        if prompt_length is not None:
            is_image &= (jnp.arange(tokens.shape[1], dtype=jnp.int32) < prompt_length)[None]
        if frames is None:
            is_image = jnp.zeros_like(is_image)
        grids = (_for_rows(grid, tokens.shape[0]) for grid in row_grids(self.config, frames))
        positions, next_position = token_positions(self.config, is_image, mask, *grids)
        embeddings = self.embed(tokens, is_image, frames, visual_tokens)
        return DecoderOutput(*self.model(embeddings, positions, Causal(mask), start=start), next_position)

    def prefill(
        self,
        tokens: Int32[Array, "n P"],
        mask: Bool[Array, "n P"],
        frames: Frames | None,
        visual_tokens: Float[Array, "n t D"] | None = None,
    ) -> Prefilled:
        """Prompts whose padding is on the left, as `left_pad` makes it; arguments as of `forward`."""
        out = self.forward(tokens, mask, frames, start=tokens.shape[1] - 1, visual_tokens=visual_tokens)
        return Prefilled(out.cache, out.hidden[:, 0], out.next_position, mask)

    def extend(
        self, prompts: Prefilled, tokens: Int32[Array, "B S"], mask: Bool[Array, "B S"]
    ) -> Float[Array, "B S+1 D"]:
        """The hidden states of the prompts' last tokens and of the text after them.

        B / n adjacent rows follow the same prompt; their padding is on the right. The states equal those of `forward`
        on prompts and text together, but each prompt is computed only once.
        """
        rows, length = tokens.shape
        first, prompt_mask, position = (
            _for_rows(x, rows) for x in (prompts.hidden, prompts.mask, prompts.next_position)
        )
        positions = text_positions(self.config, position, length)
        embeddings = constrain(self.model.embed_tokens(tokens), BATCH, None, None)
        causal = Causal(jnp.concatenate([prompt_mask, mask], axis=1), start=prompt_mask.shape[1])
        hidden = self.model(embeddings, positions, causal, prefix=prompts.cache)[0] if length else embeddings
        return jnp.concatenate([first[:, None], hidden], axis=1)

    @property
    def output_kernel(self) -> Array:
        """The weights of the output layer, [D, V], or the embedding, [V, D]."""
        return self.model.embed_tokens.embedding[...] if self.config.text.is_tied else self.lm_head.kernel[...]

    def logits(self, hidden: Float[Array, "*B D"]) -> Float32[Array, "*B V"]:
        """The output layer."""
        logits = project(hidden, self.output_kernel, is_tied=self.config.text.is_tied)
        return constrain(logits, BATCH, *[None] * (logits.ndim - 2), "tensor")


def apply(
    config: Config, params: Params, tokens: Int32[Array, "B S"], mask: Bool[Array, "B S"], frames: Frames
) -> Float32[Array, "B S V"]:
    """The logits of the token after each token.

    mask: False for padding, on either side. The image tokens of a row are replaced by the visual tokens of its frames;
    `check_prompts` checks that their numbers match. To be jitted with `config` static.
    """
    model = bind(config, params)
    return model.logits(model.forward(tokens, mask, frames).hidden)


def see(config: Config, params: Params, frames: Frames) -> Float[Array, "n t D"]:
    """The visual tokens of frames, which `score` accepts. To be jitted with `config` static."""
    return bind(config, params).encode_images(frames)


def init(config: Config, key: Key, *, place: Callable[[ParamPath, Array], Array] | None = None) -> Params:
    """Random params: matrices normal with standard deviation 0.02, biases 0, norms 1.

    A param depends only on the key and its path, so a scanned decoder has the values of a plain one. `place` is called
    with each param, for example to shard it: see `sharding.placer`.
    """
    shapes = param_shapes(config)
    leaves = []
    for path, shape in zip(param_paths(shapes), jax.tree.leaves(shapes), strict=True):
        parts = layer_paths(config, path)
        if parts == [path]:
            leaf = _init_leaf(path, shape.shape, shape.dtype, key)
        else:
            leaf = jnp.stack([_init_leaf(part, shape.shape[1:], shape.dtype, key) for part in parts])
        leaves.append(leaf if place is None else place(path, leaf))
    params: Params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return params


def _init_leaf(path: ParamPath, shape: tuple[int, ...], dtype: Any, key: Key) -> Array:
    if path[-1] in ("scale", "bias"):
        return jnp.full(shape, 1.0 if path[-1] == "scale" else 0.0, dtype)
    count = math.prod(shape)
    path_key = jax.random.fold_in(key, zlib.crc32(".".join(map(str, path)).encode()))
    normals = _normal(path_key, max(2**16, 1 << (count - 1).bit_length()))  # few lengths, so few programs to compile
    leaf: Array = (normals[:count].reshape(shape) * 0.02).astype(dtype)
    return leaf


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: Key, count: int) -> Array:
    return jax.random.normal(key, (count,), jnp.float32)


def bind(config: Config, params: Params) -> VLM:
    """The model with these params, for use within one jit; with LoRA where the params have it, see `lora.attach`."""
    with_lora = frozenset(path[:-1] for path in param_paths(params) if path[-1] == "lora_a")
    return nnx.merge(_abstract(config, with_lora)[0], params)


@functools.lru_cache(maxsize=64)
def _abstract(config: Config, with_lora: frozenset[ParamPath]) -> tuple[nnx.GraphDef[VLM], Params]:
    def make() -> VLM:
        model = VLM(config)
        for path, module in nnx.iter_modules(model):
            if path in with_lora and isinstance(module, Linear):
                module.add_lora()
        return model

    graph, state = nnx.split(nnx.eval_shape(make))
    return graph, nnx.to_pure_dict(state)


def param_shapes(config: Config) -> Params:
    """The shapes and dtypes of the params, `jax.ShapeDtypeStruct`; allocates nothing."""
    shapes: Params = jax.tree.map(lambda leaf: leaf, _abstract(config, frozenset())[1])  # a copy of cached dicts
    return shapes


def param_paths(params: Params) -> list[ParamPath]:
    """The path of every leaf, in the order of `jax.tree.leaves`."""
    return [tuple(entry.key for entry in path) for path, _ in jax.tree.leaves_with_path(params)]


def count_params(config: Config) -> int:
    """The number of params."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(config)))


# Frames and prompts


def _for_rows(values: Array, num_rows: int) -> Array:
    """Values of frames, repeated for the adjacent rows that share them: [I, …] -> [B, …]."""
    if values.shape[0] == num_rows:
        return values
    ConfigError.require(
        num_rows % values.shape[0] == 0,
        f"{num_rows} rows are not a multiple of the frames or prompts of {values.shape[0]}",
    )
    return jnp.repeat(values, num_rows // values.shape[0], axis=0)


def _groups(frames: Frames) -> list[ArrayLike]:
    return [frames] if isinstance(frames, jax.Array | np.ndarray) else list(frames)


def row_grids(config: Config, frames: Frames | None) -> tuple[Int32[Array, "B"], Int32[Array, "B"]]:
    """Rows and columns of each row's images, in visual tokens; a single 1 for rows without images."""
    if frames is None:
        return jnp.ones(1, jnp.int32), jnp.ones(1, jnp.int32)
    grids = [(*grid_of(config.vision, *group.shape[-3:-1]), group.shape[0]) for group in _groups(frames)]
    heights, widths = (np.repeat([g[i] for g in grids], [g[2] for g in grids]).astype(np.int32) for i in (0, 1))
    return jnp.asarray(heights), jnp.asarray(widths)


def num_visual_tokens(config: Config, frames: Frames) -> Int[np.ndarray, "B"]:
    """The number of image tokens that each row's prompt must have."""
    counts = []
    for group in _groups(frames):
        images = group.shape[1] if group.ndim == 5 else 1
        counts += [math.prod(grid_of(config.vision, *group.shape[-3:-1])) * images] * group.shape[0]
    return np.array(counts)


def check_prompts(config: Config, tokens: ArrayLike, mask: ArrayLike, frames: Frames, num_new: int = 0) -> None:
    """Checks on the host, before any device work, that prompts fit the model and their frames.

    Raises:
        ConfigError: an unknown token, a row whose image tokens do not match its images, or a sequence that with
            `num_new` more tokens is longer than the context.
    """
    tokens, mask = np.asarray(tokens), np.asarray(mask, bool)
    ConfigError.require(
        tokens.ndim == 2 and tokens.shape == mask.shape,
        f"tokens and mask: expected equal shapes [B, S], not {tokens.shape} and {mask.shape}",
    )
    expected = num_visual_tokens(config, frames)
    ConfigError.require(len(expected) == len(tokens), f"{len(tokens)} prompts, but frames for {len(expected)}")
    check_length(config, int(mask.sum(axis=1).max(initial=0)), num_new)
    for row, (line, line_mask) in enumerate(zip(tokens, mask, strict=True)):
        line = line[line_mask]
        is_known = (line >= 0) & (line < config.text.vocab_size)
        ConfigError.require(bool(is_known.all()), f"row {row}: token {line[~is_known][:1]} is not in the vocabulary")
        found = int((line == config.image_token_id).sum())
        ConfigError.require(
            found == expected[row], f"row {row}: {found} image tokens, but its images have {expected[row]}"
        )


def check_length(config: Config, prompt_length: int, num_new: int) -> None:
    """Checks that prompt and new tokens fit the context; needs no arrays, so it works while tracing.

    Raises:
        ConfigError: they do not fit.
    """
    longest, limit = prompt_length + num_new, config.text.max_length
    parts = f"{prompt_length} of the prompt and {num_new} new ones"
    ConfigError.require(
        longest <= limit, f"a sequence of {longest} tokens is longer than the context, {limit}: {parts}"
    )


def left_pad(tokens: Int32[Array, "B S"], mask: Bool[Array, "B S"]) -> tuple[Int32[Array, "B S"], Bool[Array, "B S"]]:
    """Moves the padding of every row to the left.

    `[7 8 · 9 ·] -> [· · 7 8 9]`
    """
    order = jnp.argsort(mask, axis=1, stable=True)
    return jnp.take_along_axis(tokens, order, axis=1), jnp.take_along_axis(mask, order, axis=1)
