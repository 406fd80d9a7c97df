"""The decoder: embeddings to hidden states, for a whole sequence or a token at a time with a KV cache."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Float32, Int32

from g1jax.typing import Array, Pytree
from g1jax.vlm.accumulation import is_narrow
from g1jax.vlm.attention import Causal, Filled, Mask, attend, attend_to_cache
from g1jax.vlm.cache import Cache, CachedLayer, KeyValue, Prefix, PrefixKeyValue
from g1jax.vlm.config import Config
from g1jax.vlm.layers import Embed, Linear, RMSNorm, SwiGLU, join_heads, separate, split_heads
from g1jax.vlm.rotary import rotate, text_angles
from g1jax.vlm.sharding import BATCH, constrain

Rotation = tuple[Float32[Array, "B 1 S half"], Float32[Array, "B 1 S half"]]
"""Cosine and sine of the tokens' rotary angles, one for each pair of a head's numbers."""


class SelfAttention(nnx.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: Config) -> None:
        text = config.text
        self.config = config
        inner = text.num_kv_heads * text.head_dim
        self.q_proj = Linear(config, text.hidden_size, text.hidden_size, use_bias=True)
        self.k_proj = Linear(config, text.hidden_size, inner, use_bias=True)
        self.v_proj = Linear(config, text.hidden_size, inner, use_bias=True)
        self.o_proj = Linear(config, text.hidden_size, text.hidden_size)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        rotation: Rotation,
        mask: Mask,
        cache: CachedLayer | None,
        slot: Int32[Array, ""] | int,
        start: int = 0,
        prefix: PrefixKeyValue | None = None,
    ) -> tuple[Float[Array, "B S-{start} D"], KeyValue]:
        """Hidden states from `start` on, and the keys and values.

        Without a cache T is S. With one, new keys and values are first written to it at `slot`, and T is its length.
        Tokens before `start` have keys and values but no queries. With a prefix, its keys and values come before the
        new ones; each of its rows is that of B / n adjacent rows.
        """
        text = self.config.text
        for_query, for_key, for_value = (x, x, x) if cache is None else separate(x, 3)
        query = rotate(
            split_heads(self.q_proj(for_query[:, start:]), text.num_heads), *(part[:, :, start:] for part in rotation)
        )
        key = rotate(split_heads(self.k_proj(for_key), text.num_kv_heads), *rotation)
        value = split_heads(self.v_proj(for_value), text.num_kv_heads)
        query, key, value = (constrain(part, BATCH, "tensor", None, None) for part in (query, key, value))
        if cache is not None:
            cache = cache.write(key, value, slot)
            attended = attend_to_cache(self.config, query, cache, _from(mask, start))
            return self.o_proj(join_heads(attended)), cache.key_value
        if prefix is not None:
            key, value = (_after(before, new) for before, new in zip(prefix, (key, value), strict=True))
        return self.o_proj(join_heads(attend(self.config, query, key, value, _from(mask, start)))), (key, value)


class DecoderLayer(nnx.Module):
    """Attention and SwiGLU, each added to the residual stream."""

    def __init__(self, config: Config) -> None:
        text = config.text
        self.input_layernorm = RMSNorm(config, text.hidden_size, text.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config, text.hidden_size, text.rms_norm_eps)
        self.mlp = SwiGLU(config, text.hidden_size, text.intermediate_size, use_bias=False)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        rotation: Rotation,
        mask: Mask,
        cache: CachedLayer | None,
        slot: Int32[Array, ""] | int,
        start: int = 0,
        prefix: PrefixKeyValue | None = None,
    ) -> tuple[Float[Array, "B S-{start} D"], KeyValue]:
        """As `SelfAttention`."""
        attended, key_value = self.self_attn(self.input_layernorm(x), rotation, mask, cache, slot, start, prefix)
        x = constrain(x[:, start:] + attended, BATCH, None, None)
        x = x + self.mlp(self.post_attention_layernorm(x), is_step=cache is not None)
        return constrain(x, BATCH, None, None), key_value


class Decoder(nnx.Module):
    """The layers between the embedding and the output layer."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.embed_tokens = Embed(config)
        self.layers: Any = (
            _stacked(config)
            if config.is_scanned
            else nnx.List([DecoderLayer(config) for _ in range(config.text.num_layers)])
        )
        self.norm = RMSNorm(config, config.text.hidden_size, config.text.rms_norm_eps)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        positions: Int32[Array, "B S axes"],
        mask: Mask,
        cache: Cache | None = None,
        slot: Int32[Array, ""] | int = 0,
        start: int = 0,
        prefix: Prefix | None = None,
    ) -> tuple[Float[Array, "B S-{start} D"], Cache]:
        """Embeddings to normalized hidden states, and each layer's keys and values.

        cache, slot, prefix: see `SelfAttention`; a cache or a prefix, not both. start: the first token whose hidden
        state is returned; the last layer skips the queries before it.
        """
        angles = text_angles(self.config.text, positions)[:, None]
        rotation = jnp.cos(angles), jnp.sin(angles)
        if self.config.is_scanned:
            x, stacked = (
                self._scan(x, rotation, mask, None if prefix is None else prefix[0])
                if cache is None
                else self._step(x, rotation, mask, cache[0], slot)
            )
            return self.norm(x[:, start:]), (stacked,)
        key_values = []
        for i, layer in enumerate(self.layers):
            layer_cache = None if cache is None else CachedLayer(cache[i])
            layer_prefix = None if prefix is None else prefix[i]
            first = start if i == self.config.text.num_layers - 1 else 0
            x, key_value = self._run(layer, x, rotation, mask, layer_cache, slot, first, layer_prefix)
            key_values.append(key_value)
        return self.norm(x), tuple(key_values)

    def _run(
        self,
        layer: DecoderLayer,
        x: Array,
        rotation: Rotation,
        mask: Mask,
        cache: CachedLayer | None,
        slot: Array | int,
        start: int,
        prefix: PrefixKeyValue | None,
    ) -> tuple[Array, KeyValue]:
        if not self.config.is_remat or cache is not None:
            return layer(x, rotation, mask, cache, slot, start, prefix)
        graph, state = nnx.split(layer)

        def run(
            state: Pytree, x: Array, rotation: Rotation, mask: Mask, prefix: PrefixKeyValue | None
        ) -> tuple[Array, KeyValue]:
            return nnx.merge(graph, state)(x, rotation, mask, None, 0, start, prefix)

        return cast(tuple[Array, KeyValue], jax.checkpoint(run)(state, x, rotation, mask, prefix))

    def _scan(self, x: Array, rotation: Rotation, mask: Mask, prefix: PrefixKeyValue | None) -> tuple[Array, KeyValue]:
        """All layers over a whole sequence; keys and values are [layers, B, g, T, d]."""
        graph, state = nnx.split(self.layers)

        def run(x: Array, layer: tuple[Pytree, PrefixKeyValue | None]) -> tuple[Array, KeyValue]:
            return nnx.merge(graph, layer[0])(x, rotation, mask, None, 0, prefix=layer[1])

        run = jax.checkpoint(run, prevent_cse=False) if self.config.is_remat else run
        return jax.lax.scan(run, x, (state, prefix))

    def _step(
        self, x: Array, rotation: Rotation, mask: Mask, cache: KeyValue, slot: Array | int
    ) -> tuple[Array, KeyValue]:
        """All layers over new tokens. The cache is part of the carry, so that it is updated in place."""
        graph, state = nnx.split(self.layers)

        def run(carry: tuple[Array, KeyValue], layer: tuple[Array, Pytree]) -> tuple[tuple[Array, KeyValue], None]:
            x, cache = carry
            i, state = layer
            return nnx.merge(graph, state)(x, rotation, mask, CachedLayer(cache, i), slot), None

        indices = jnp.arange(self.config.text.num_layers, dtype=jnp.int32)
        carry, _ = jax.lax.scan(run, (x, cache), (indices, state))
        return carry


def _stacked(config: Config) -> DecoderLayer:
    """A layer whose params have a leading axis of layers, to be split, scanned over and merged."""
    graph, state = nnx.split(DecoderLayer(config))
    layers = config.text.num_layers
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.broadcast_to(x[None], (layers, *x.shape)), state))


def _after(prefix: Float[Array, "n g P d"], new: Float[Array, "B g S d"]) -> Float[Array, "B g P+S d"]:
    """New keys or values with those of their prompts before them; gradients of a prompt are summed in float32."""
    wide = prefix.astype(jnp.float32) if is_narrow(prefix) else prefix
    repeated = jnp.repeat(wide, new.shape[0] // prefix.shape[0], axis=0).astype(new.dtype)
    return constrain(jnp.concatenate([repeated, new], axis=2), BATCH, "tensor", None, None)


def _from(mask: Mask, start: int) -> Mask:
    """The mask of the queries from `start` on."""
    if isinstance(mask, Causal):
        return dataclasses.replace(mask, start=mask.start + start)
    return mask if mask is None or isinstance(mask, Filled) or start == 0 else mask[:, start:]
