"""How much memory the policy takes on each device, before any of it is there.

Weights, master weights, moments, gradients, the reference and the cache are counted from shapes and shardings. What a
training step holds besides is asked of the compiler, which plans it for abstract arrays: nothing is allocated, so a
laptop can plan for eight GPUs (`XLA_FLAGS=--xla_force_host_platform_device_count=8`). It is asked in float32, since a
CPU's plan for bfloat16 holds float32 copies of all weights; so a model in bfloat16 takes about half of what is planned
here, and less with fused attention.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from g1jax.errors import ConfigError
from g1jax.typing import Array, Pytree
from g1jax.vlm import lora as low_rank
from g1jax.vlm import sharding
from g1jax.vlm.config import Config
from g1jax.vlm.lora import LoRA
from g1jax.vlm.model import Params, check_length, num_visual_tokens, param_shapes
from g1jax.vlm.scoring import score


@dataclass(frozen=True, kw_only=True)
class Work:
    """The batch that is written and learnt from; rows are of all devices together."""

    rows: int = 8
    """Rows of a training step, or of one of its microbatches."""
    samples: int = 8
    """Rows being written at once."""
    prompt_length: int = 512
    response_length: int = 512
    frame: tuple[int, int] = (280, 280)
    """Height and width of a row's image in pixels."""
    has_reference: bool = True
    """Whether a reference policy is held, for a KL."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device."""

    params: int
    """The weights that are computed with, with LoRA's."""
    master: int
    """Float32 weights of those that are trained, if they are computed with in fewer bits."""
    moments: int
    """AdamW's two, float32; Muon has one for a matrix."""
    reference: int
    """The reference policy's copy of what is trained."""
    gradients: int
    """Their sum over microbatches, float32, and one microbatch's."""
    cache: int
    """Keys and values while writing."""
    activations: int | None
    """What a training step holds besides, in float32: an upper bound; None if it was not compiled."""

    @property
    def state(self) -> int:
        """What a run holds all the time."""
        return self.params + self.master + self.moments + self.reference

    @property
    def inference(self) -> int:
        """While a trained policy writes responses: weights and cache."""
        return self.params + self.cache

    @property
    def writing(self) -> int:
        """While an iteration of RL writes responses: the run's state and the cache."""
        return self.state + self.cache

    @property
    def training(self) -> int:
        """In a training step: the run's state, gradients and activations; the cache is gone by then."""
        return self.state + self.gradients + (self.activations or 0)


def estimate(
    config: Config,
    work: Work,
    *,
    mesh: tuple[int, int, int] = (1, 1, 1),
    lora: LoRA | None = None,
    is_compiled: bool = True,
) -> Estimate:
    """The memory of a policy on a mesh of (data, fsdp, tensor) devices; with `lora`, only that is trained.

    `is_compiled`: also compile a training step for its activations, which needs as many devices, fake ones too. Scanned
    and with remat a model of billions of parameters takes some seconds to a minute, else many.

    Raises:
        ConfigError: the work does not fit the model, or the devices are too few.
    """
    check_length(config, work.prompt_length, work.response_length)
    abstract = AbstractMesh(mesh, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    params = param_shapes(config)
    trained = params if lora is None else lora_shapes(config, lora)
    wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), trained)
    held, own, wide_own = (bytes_each(config, abstract, tree) for tree in (params, trained, wide))
    return Estimate(
        params=held if lora is None else held + own,
        master=0 if own == wide_own else wide_own,
        moments=2 * wide_own,
        reference=own if work.has_reference else 0,
        gradients=wide_own + own,
        cache=cache_bytes(config, work, abstract),
        activations=step_bytes(config, work, mesh, lora) if is_compiled else None,
    )


def lora_shapes(config: Config, spec: LoRA) -> Params:
    """The LoRA params as shapes and dtypes."""
    shapes: Params = jax.eval_shape(lambda: low_rank.init(config, spec, jax.random.key(0)))
    return shapes


def bytes_each(config: Config, mesh: Mesh | AbstractMesh, shapes: Pytree) -> int:
    """What a device holds of a tree of params, gradients or the like."""
    split = sharding.tree_shardings(config, mesh, shapes)
    parts = jax.tree.map(lambda x, how: math.prod(how.shard_shape(x.shape)) * x.dtype.itemsize, shapes, split)
    return sum(jax.tree.leaves(parts))


def cache_bytes(config: Config, work: Work, mesh: Mesh | AbstractMesh) -> int:
    """What a device holds of the keys and values of the rows being written, at their longest."""
    text, rows = config.text, -(-work.samples // (mesh.shape["data"] * mesh.shape["fsdp"]))
    tensor = mesh.shape["tensor"]
    heads = text.num_kv_heads // tensor if text.num_kv_heads % tensor == 0 else text.num_kv_heads
    length = work.prompt_length + work.response_length
    return 2 * text.num_layers * rows * heads * length * text.head_dim * jnp.dtype(config.dtype).itemsize


def step_bytes(config: Config, work: Work, shape: tuple[int, int, int], lora: LoRA | None) -> int:
    """What the compiler plans for a gradient of responses' log-probabilities, besides its inputs and outputs."""
    count = math.prod(shape)
    ConfigError.require(
        count <= len(jax.devices()),
        f"a plan for {count} devices needs as many, and there are {len(jax.devices())}: "
        f"set XLA_FLAGS=--xla_force_host_platform_device_count={count}, or is_compiled=False",
    )
    config = dataclasses.replace(config, dtype="float32", param_dtype="float32", attention="xla")
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[:count])
    params = _placed(config, mesh, param_shapes(config))
    own = params if lora is None else _placed(config, mesh, lora_shapes(config, lora))

    def loss(trained: Params, params: Params, *batch: Array) -> Array:
        whole = trained if lora is None else low_rank.attach(params, trained, lora)
        found = score(config, whole, *batch)
        return jnp.sum(found.logprobs)

    with jax.set_mesh(mesh):
        frozen = Params() if lora is None else params
        compiled = jax.jit(jax.grad(loss)).lower(own, frozen, *_batch(config, mesh, work)).compile()
    plan: Any = compiled.memory_analysis()
    return int(plan.temp_size_in_bytes)


def _placed(config: Config, mesh: Mesh, shapes: Pytree) -> Pytree:
    split = sharding.tree_shardings(config, mesh, shapes)
    return jax.tree.map(lambda x, how: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=how), shapes, split)


def _batch(config: Config, mesh: Mesh, work: Work) -> tuple[Any, ...]:
    """The arguments of `score` after the params, abstract."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    ConfigError.require(work.rows % parts == 0, f"rows={work.rows} do not divide over data × fsdp = {parts}")
    rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH))

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((work.rows, *shape), dtype, sharding=rows)

    frames = array(jnp.uint8, *work.frame, 3)
    seen = int(num_visual_tokens(config, [frames])[0])  # type: ignore[list-item]
    ConfigError.require(
        seen <= work.prompt_length, f"prompt_length={work.prompt_length}: the image alone is {seen} tokens"
    )
    prompt, response = (work.prompt_length,), (work.response_length,)
    return (*(array(kind, *size) for size in (prompt, response) for kind in (jnp.int32, jnp.bool_)), frames)
