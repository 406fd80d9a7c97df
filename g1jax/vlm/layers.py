"""Layers that the vision tower and the decoder share: linear maps, RMSNorm, SwiGLU."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Float, Float32, Int32

from g1jax.typing import Array
from g1jax.vlm.config import Config
from g1jax.vlm.sharding import BATCH, constrain


def zeros(config: Config, *shape: int) -> nnx.Param[Array]:
    """A placeholder param: `model.init` or `weights.load` gives the values."""
    return nnx.Param(jnp.zeros(shape, jnp.dtype(config.param_dtype)))


class Linear(nnx.Module):
    """A linear map, computed in the dtype of its input, plus a low-rank one after `add_lora`."""

    def __init__(self, config: Config, inputs: int, outputs: int, *, use_bias: bool = False) -> None:
        self.kernel = zeros(config, inputs, outputs)
        self.bias = zeros(config, outputs) if use_bias else None
        self.lora_a: nnx.Param[Array] | None = nnx.data(None)
        self.lora_b: nnx.Param[Array] | None = nnx.data(None)

    def add_lora(self) -> None:
        """Adds placeholders for the params of `lora.attach`, of any shape."""
        self.lora_a, self.lora_b = (nnx.data(nnx.Param(jnp.zeros(()))) for _ in range(2))

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        """The map of each vector."""
        # Flattened to a matrix: 1.4 times as fast on a CPU, also for gradients.
        flat = x.reshape(-1, x.shape[-1])
        out = flat @ self.kernel[...].astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            out += (flat @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[...].astype(x.dtype)
        out = out if self.bias is None else out + _along_last(self.bias[...], out)
        return out.reshape(*x.shape[:-1], -1)


class Embed(nnx.Module):
    """The embedding of tokens."""

    def __init__(self, config: Config) -> None:
        self.dtype = jnp.dtype(config.dtype)
        self.embedding = zeros(config, config.text.vocab_size, config.text.hidden_size)

    def __call__(self, tokens: Int32[Array, "*B"]) -> Float[Array, "*B D"]:
        """The vector of each token."""
        table = constrain(self.embedding[...], "tensor", None)  # whole rows, before the lookup by a sharded batch
        return constrain(table[tokens].astype(self.dtype), BATCH, *[None] * tokens.ndim)


def project(hidden: Float[Array, "*B D"], kernel: Float[Array, "..."], *, is_tied: bool) -> Float32[Array, "*B V"]:
    """The logits; `kernel` is [D, V], or [V, D] if it is tied to the embedding."""
    subscripts = "...d,vd->...v" if is_tied else "...d,dv->...v"
    return jnp.einsum(subscripts, hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _along_last(vector: Array, like: Array) -> Array:
    """[D] -> [1, …, 1, D], with the rank and dtype of `like`."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


class RMSNorm(nnx.Module):
    """Scales a vector to length √D in float32, then each element by its weight."""

    def __init__(self, config: Config, size: int, eps: float) -> None:
        self.scale = zeros(config, size)
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """The scaled vectors, with x's dtype."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * _along_last(self.scale[...], x)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config, size: int, inner: int, *, use_bias: bool) -> None:
        self.gate_proj = Linear(config, size, inner, use_bias=use_bias)
        self.up_proj = Linear(config, size, inner, use_bias=use_bias)
        self.down_proj = Linear(config, inner, size, use_bias=use_bias)

    def __call__(self, x: Float[Array, "*B D"], *, is_step: bool = False) -> Float[Array, "*B D"]:
        """The map of each vector; `is_step`: of one new token a sequence, see `separate`."""
        flat = x.reshape(-1, x.shape[-1])
        for_gate, for_up = separate(flat, 2) if is_step else (flat, flat)
        return self.down_proj(nnx.silu(self.gate_proj(for_gate)) * self.up_proj(for_up)).reshape(x.shape)


def separate(x: Float[Array, "*n"], count: int) -> list[Float[Array, "*n"]]:
    """The same array several times, as arrays that XLA does not know to be equal.

    XLA for GPUs merges products of one array with several weights into one product with the concatenated weights. Where
    few tokens are decoded at a time, reading the weights is all that a product costs, and concatenating them for every
    token costs twice as much again.
    """
    out = [x]
    while len(out) < count:
        out.append(lax.optimization_barrier(out[-1]))
    return out


def split_heads(x: Float[Array, "B S size"], num_heads: int) -> Float[Array, "B {num_heads} S size//{num_heads}"]:
    """Vectors of all heads to vectors of each head."""
    batch, length, size = x.shape
    return x.reshape(batch, length, num_heads, size // num_heads).transpose(0, 2, 1, 3)


def join_heads(x: Float[Array, "B h S d"]) -> Float[Array, "B S h*d"]:
    """The inverse of `split_heads`."""
    batch, num_heads, length, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, num_heads * size)
