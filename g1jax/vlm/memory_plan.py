"""Estimates of the policy's memory per device, without allocating any.

Weights, master weights, moments, gradients, the reference and the cache are counted from shapes and shardings. The
activations of a training step come from the compiler's memory analysis for abstract arrays, so a laptop can plan for
eight GPUs (`XLA_FLAGS=--xla_force_host_platform_device_count=8`). The step is compiled in float32, since bfloat16 on a
CPU makes float32 copies of all weights; a bfloat16 model needs about half of the estimate, less with fused attention.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from g1jax.errors import ConfigError
from g1jax.typing import Array, Pytree
from g1jax.vlm import lora as low_rank
from g1jax.vlm import sharding
from g1jax.vlm.config import Config
from g1jax.vlm.lora import LoRA
from g1jax.vlm.model import Params, check_length, param_shapes
from g1jax.vlm.preprocess import grid_of
from g1jax.vlm.scoring import score


@dataclass(frozen=True, kw_only=True)
class Work:
    """Batch sizes and lengths; rows are summed over devices."""

    rows: int = 8
    """Rows of a training step, or of a microbatch of it."""
    samples: int = 8
    """Rows generated at once."""
    prompt_length: int = 512
    response_length: int = 512
    frame: tuple[int, int] = (280, 280)
    """Height and width of a row's image, in pixels."""
    has_reference: bool = True
    """Whether there is a reference policy, for a KL."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device."""

    params: int
    """The model's params, including LoRA's."""
    master: int
    """Float32 master weights of the trained params, if these have fewer bits."""
    moments: int
    """AdamW's two moments, float32; Muon has one per matrix."""
    reference: int
    """The reference policy's copy of the trained params."""
    gradients: int
    """The float32 sum over microbatches, and one microbatch's."""
    cache: int
    """Keys and values during generation."""
    activations: int | None
    """Temporary memory of a training step, in float32: an upper bound; None if it was not compiled."""

    @property
    def state(self) -> int:
        """What a training run always holds."""
        return self.params + self.master + self.moments + self.reference

    @property
    def inference(self) -> int:
        """While a trained policy generates: params and cache."""
        return self.params + self.cache

    @property
    def writing(self) -> int:
        """During generation in RL: the run's state and the cache."""
        return self.state + self.cache

    @property
    def training(self) -> int:
        """In a training step: the run's state, gradients and activations; the cache has been freed."""
        return self.state + self.gradients + (self.activations or 0)


def estimate(
    config: Config,
    work: Work,
    *,
    mesh: tuple[int, int, int] = (1, 1, 1),
    lora: LoRA | None = None,
    is_compiled: bool = True,
) -> Estimate:
    """The memory of a policy on a mesh of (data, fsdp, tensor) devices; with `lora`, only LoRA's params are trained.

    `is_compiled`: also compile a training step for its activations, which needs as many devices, possibly fake ones.
    With `is_scanned` and `is_remat` a model of billions of params compiles within a minute, otherwise in several.

    Raises:
        ConfigError: the work does not fit the model, or there are too few devices.
    """
    check_length(config, work.prompt_length, work.response_length)
    abstract = AbstractMesh(mesh, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    params = param_shapes(config)
    trained = params if lora is None else _lora_shapes(config, lora)
    wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), trained)
    model_bytes, trained_bytes, wide_bytes = (_bytes_per_device(config, abstract, t) for t in (params, trained, wide))
    return Estimate(
        params=model_bytes if lora is None else model_bytes + trained_bytes,
        master=0 if trained_bytes == wide_bytes else wide_bytes,
        moments=2 * wide_bytes,
        reference=trained_bytes if work.has_reference else 0,
        gradients=wide_bytes + trained_bytes,
        cache=_cache_bytes(config, work, abstract),
        activations=_activation_bytes(config, work, mesh, lora) if is_compiled else None,
    )


def _lora_shapes(config: Config, spec: LoRA) -> Params:
    """The LoRA params as shapes and dtypes."""
    shapes: Params = jax.eval_shape(lambda: low_rank.init(config, spec, jax.random.key(0)))
    return shapes


def _bytes_per_device(config: Config, mesh: AbstractMesh, shapes: Pytree) -> int:
    """A device's part of a tree of params or gradients."""
    shardings = sharding.tree_shardings(config, mesh, shapes)
    parts = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings)
    return sum(jax.tree.leaves(parts))


def _cache_bytes(config: Config, work: Work, mesh: AbstractMesh) -> int:
    """A device's part of the keys and values during generation, at full length."""
    text, rows = config.text, -(-work.samples // (mesh.shape["data"] * mesh.shape["fsdp"]))
    tensor = mesh.shape["tensor"]
    heads = text.num_kv_heads // tensor if text.num_kv_heads % tensor == 0 else text.num_kv_heads
    length = work.prompt_length + work.response_length
    return 2 * text.num_layers * rows * heads * length * text.head_dim * jnp.dtype(config.dtype).itemsize


def _activation_bytes(config: Config, work: Work, shape: tuple[int, int, int], lora: LoRA | None) -> int:
    """The compiler's temporary memory for a gradient of log-probabilities, without inputs and outputs."""
    count = math.prod(shape)
    ConfigError.require(
        count <= len(jax.devices()),
        f"an estimate for {count} devices needs as many, and there are {len(jax.devices())}: "
        f"set XLA_FLAGS=--xla_force_host_platform_device_count={count}, or is_compiled=False",
    )
    config = dataclasses.replace(config, dtype="float32", param_dtype="float32", attention="xla")
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[:count])
    params = _with_shardings(config, mesh, param_shapes(config))
    trained = params if lora is None else _with_shardings(config, mesh, _lora_shapes(config, lora))

    def loss(trained: Params, params: Params, *batch: Array) -> Array:
        full_params = trained if lora is None else low_rank.attach(params, trained, lora)
        return jnp.sum(score(config, full_params, *batch).logprobs)

    with jax.set_mesh(mesh):
        frozen = Params() if lora is None else params
        compiled = jax.jit(jax.grad(loss)).lower(trained, frozen, *_batch(config, mesh, work)).compile()
    analysis: Any = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes)


def _with_shardings(config: Config, mesh: Mesh, shapes: Pytree) -> Pytree:
    shardings = sharding.tree_shardings(config, mesh, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _batch(config: Config, mesh: Mesh, work: Work) -> tuple[Any, ...]:
    """Abstract arguments of `score` after the params."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    ConfigError.require(work.rows % parts == 0, f"rows={work.rows} do not divide by data × fsdp = {parts}")

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((work.rows, *shape), dtype, sharding=sharding.batch_sharding(mesh))

    frames = array(jnp.uint8, *work.frame, 3)
    count = math.prod(grid_of(config.vision, *work.frame))
    ConfigError.require(
        count <= work.prompt_length, f"prompt_length={work.prompt_length}: the image alone has {count} tokens"
    )
    prompt, response = (work.prompt_length,), (work.response_length,)
    return (*(array(kind, *size) for size in (prompt, response) for kind in (jnp.int32, jnp.bool_)), frames)
