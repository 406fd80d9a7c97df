"""The decoder: embeddings in, hidden states out, over a whole sequence or one token at a time with a cache."""

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from g1jax.typing import Array, Pytree
from g1jax.vlm.config import Config
from g1jax.vlm.layers import Embed, Linear, RMSNorm, SwiGLU, attend, join_heads, split_heads
from g1jax.vlm.rotary import rotate, text_angles

KeyValue = tuple[Array, Array]
"""The keys and values of one layer, [B, g, S, d] each; a cache is a tuple of them, one a layer."""
Turn = tuple[Array, Array]
"""Cosine and sine of the tokens' rotary angles, float32[B, 1, S, d / 2] each."""


class SelfAttention(nnx.Module):
    """Causal attention in which several heads share keys and values."""

    def __init__(self, config: Config) -> None:
        text = config.text
        self.config = config
        inner = text.num_kv_heads * text.head_dim
        self.q_proj = Linear(config, text.hidden_size, text.hidden_size, use_bias=True)
        self.k_proj = Linear(config, text.hidden_size, inner, use_bias=True)
        self.v_proj = Linear(config, text.hidden_size, inner, use_bias=True)
        self.o_proj = Linear(config, text.hidden_size, text.hidden_size)

    def __call__(
        self, x: Array, turn: Turn, mask: Array, cache: KeyValue | None, slot: Array | int
    ) -> tuple[Array, KeyValue]:
        """[B, S, D] -> [B, S, D] and the keys and values it looked at.

        mask: bool[B, S, T]. Without a cache T is S; with one, the tokens' own keys and values are put at `slot` first,
        and T is the cache's length.
        """
        text = self.config.text
        query = rotate(split_heads(self.q_proj(x), text.num_heads), *turn)
        key = rotate(split_heads(self.k_proj(x), text.num_kv_heads), *turn)
        value = split_heads(self.v_proj(x), text.num_kv_heads)
        if cache is not None:
            key = jax.lax.dynamic_update_slice_in_dim(cache[0], key, slot, axis=2)
            value = jax.lax.dynamic_update_slice_in_dim(cache[1], value, slot, axis=2)
        return self.o_proj(join_heads(attend(self.config, query, key, value, mask))), (key, value)


class DecoderLayer(nnx.Module):
    """Attention and SwiGLU, each added to the residual stream."""

    def __init__(self, config: Config) -> None:
        text = config.text
        self.input_layernorm = RMSNorm(config, text.hidden_size, text.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config, text.hidden_size, text.rms_norm_eps)
        self.mlp = SwiGLU(config, text.hidden_size, text.intermediate_size, use_bias=False)

    def __call__(
        self, x: Array, turn: Turn, mask: Array, cache: KeyValue | None, slot: Array | int
    ) -> tuple[Array, KeyValue]:
        """As `SelfAttention`."""
        attended, key_value = self.self_attn(self.input_layernorm(x), turn, mask, cache, slot)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), key_value


class Decoder(nnx.Module):
    """The layers between the embedding and the output layer."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.embed_tokens = Embed(config)
        self.layers = nnx.List([DecoderLayer(config) for _ in range(config.text.num_layers)])
        self.norm = RMSNorm(config, config.text.hidden_size, config.text.rms_norm_eps)

    def __call__(
        self,
        x: Array,
        positions: Array,
        mask: Array,
        cache: tuple[KeyValue, ...] | None = None,
        slot: Array | int = 0,
    ) -> tuple[Array, tuple[KeyValue, ...]]:
        """Embeddings [B, S, D] to normed hidden states [B, S, D], and each layer's keys and values.

        positions: int32[B, S, P]. mask: bool[B, S, T]. cache, slot: see `SelfAttention`.
        """
        angles = text_angles(self.config.text, positions)[:, None]
        turn = jnp.cos(angles), jnp.sin(angles)
        key_values = []
        for i, layer in enumerate(self.layers):
            x, key_value = self._run(layer, x, turn, mask, None if cache is None else cache[i], slot)
            key_values.append(key_value)
        return self.norm(x), tuple(key_values)

    def _run(
        self, layer: DecoderLayer, x: Array, turn: Turn, mask: Array, cache: KeyValue | None, slot: Array | int
    ) -> tuple[Array, KeyValue]:
        if not self.config.is_remat or cache is not None:
            return layer(x, turn, mask, cache, slot)
        graph, state = nnx.split(layer)

        def inside(state: Pytree, x: Array, turn: Turn, mask: Array) -> tuple[Array, KeyValue]:
            return nnx.merge(graph, state)(x, turn, mask, None, 0)

        return cast(tuple[Array, KeyValue], jax.checkpoint(inside)(state, x, turn, mask))


def causal_mask(mask: Array) -> Array:
    """What each token may see, bool[B, S] -> bool[B, S, S]: itself and what stands before it, but no padding.

    Two tokens of padding, then three of text; a row is what one token sees::

        · · · · ·
        · · · · ·
        · · x · ·
        · · x x ·
        · · x x x
    """
    length = mask.shape[1]
    place = jnp.arange(length, dtype=jnp.int32)
    return (place[:, None] >= place[None])[None] & mask[:, None, :]
