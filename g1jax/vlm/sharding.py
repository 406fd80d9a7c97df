"""Sharding: a mesh of (data, fsdp, tensor) devices, and the mesh axis of each axis of each param.

Batches are sharded over `data` and `fsdp`. `fsdp` also shards weights, which are gathered where they are used; `tensor`
shards heads, the hidden units of MLPs and the vocabulary. The same programs run with and without a mesh::

    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    config, params = load(folder, place=placer(config, mesh))
    with jax.set_mesh(mesh):
        response = generate(config, params, *shard_batch(mesh, (tokens, mask, frames)), key, max_new_tokens=64)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from g1jax.errors import ConfigError
from g1jax.typing import Array, ArrayLike, Pytree
from g1jax.vlm.config import Config

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
"""The mesh axes that the rows of a batch are sharded over."""
Axis = str | tuple[str, ...] | None

_RULES: dict[str, tuple[Axis, Axis]] = {
    # Axes of (inputs, outputs) of a linear map's kernel, by name; of an embedding, (vocabulary, width).
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "qkv", "up", "lm_head"), ("fsdp", "tensor")),
    **dict.fromkeys(("o_proj", "down_proj", "proj", "down"), ("tensor", "fsdp")),
    "embed_tokens": ("tensor", "fsdp"),
    "patch_embed.proj": (None, "fsdp"),
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices, or of the given ones. Of several TPU slices each has its share of `data`.

    Raises:
        ConfigError: the product of the axes is not the number of devices, or `data` does not divide into slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = (data, fsdp, tensor)
    text = " × ".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
    ConfigError.require(min(shape) > 0, f"a mesh of {text}: expected 1 or more for every axis")
    needed = math.prod(shape)
    ConfigError.require(needed == len(devices), f"a mesh of {text} is {needed} devices, and there are {len(devices)}")
    axis_types = (AxisType.Auto,) * len(AXES)
    if num_slices(devices) > 1:
        return Mesh(grid_of_slices(shape, devices), AXES, axis_types=axis_types)
    return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices)


def num_slices(devices: Sequence[Any]) -> int:
    """The number of TPU slices that devices belong to; 1 for other devices.

    The devices of a single slice that programs are only compiled for have no index.
    """
    return len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1


def grid_of_slices(shape: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """The devices of several slices in a mesh's shape: each slice has its share of `data`.

    Raises:
        ConfigError: `data` does not divide into slices.
    """
    (data, fsdp, tensor), slices = shape, num_slices(devices)
    ConfigError.require(
        data % slices == 0,
        f"a mesh of data={data} × fsdp={fsdp} × tensor={tensor} on {slices} slices: data must be a multiple of "
        f"{slices}, since the network between slices is too slow for fsdp and tensor",
    )
    return mesh_utils.create_hybrid_device_mesh((data // slices, fsdp, tensor), (slices, 1, 1), devices)


def param_sharding(
    config: Config, mesh: Mesh | jax.sharding.AbstractMesh, path: Sequence[Any], shape: Sequence[int]
) -> NamedSharding:
    """The sharding of a param, or a moment of it; `path` may have other keys before the param's own.

    Matrices are sharded by the rules above along the axes that divide, but heads are never split. Vectors are
    replicated.
    """
    *owner, leaf = (str(key) for key in path)
    names = [name for name in (".".join(owner[-2:]), *owner[-1:]) if name in _RULES]
    if leaf not in ("kernel", "embedding", "lora_a", "lora_b") or not names or len(shape) < 2:
        return NamedSharding(mesh, PartitionSpec())
    inputs, outputs = _RULES[names[0]]
    if _num_heads(config, names[0]) % mesh.shape["tensor"]:
        inputs, outputs = (None if axis == "tensor" else axis for axis in (inputs, outputs))
    axes: tuple[Axis, ...] = {"lora_a": (inputs, None), "lora_b": (None, outputs)}.get(leaf, (inputs, outputs))
    axes = (None,) * (len(shape) - 2) + axes  # the layer axis is not sharded
    return NamedSharding(mesh, _fit(mesh.shape, shape, axes))


def _num_heads(config: Config, name: str) -> int:
    """Heads along a projection's `tensor` axis; 0 if there are none, so that any number of devices divides."""
    if name in ("q_proj", "o_proj"):
        return config.text.num_heads
    if name in ("k_proj", "v_proj"):
        return config.text.num_kv_heads
    return config.vision.num_heads if name in ("qkv", "proj") else 0


def tree_shardings(config: Config, mesh: Mesh | jax.sharding.AbstractMesh, tree: Pytree) -> Pytree:
    """The sharding of each array or shape in a tree of params, LoRA params, gradients or optimizer state."""

    def sharding_of(path: Any, leaf: Any) -> NamedSharding:
        return param_sharding(config, mesh, [_key(entry) for entry in path], leaf.shape)

    return jax.tree.map_with_path(sharding_of, tree)


def _key(entry: Any) -> Any:
    """The key, index or name in an entry of a tree path."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def placer(config: Config, mesh: Mesh) -> Callable[[Sequence[Any], ArrayLike], Array]:
    """The `place` argument of `init` and `weights.load`, which shards each param as soon as it exists."""

    def place(path: Sequence[Any], leaf: ArrayLike) -> Array:
        sharding = param_sharding(config, mesh, path, leaf.shape)
        if isinstance(leaf, np.ndarray):  # each host takes its own part
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
        return jax.device_put(leaf, sharding)

    return place


def batch_sharding(mesh: Mesh | jax.sharding.AbstractMesh) -> NamedSharding:
    """Rows sharded over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def shard_batch(mesh: Mesh | jax.sharding.AbstractMesh, batch: Pytree) -> Pytree:
    """Shards the rows of a batch's arrays over the mesh.

    Raises:
        ConfigError: the rows do not divide by the number of devices.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    for leaf in jax.tree.leaves(batch):
        ConfigError.require(
            leaf.shape[0] % parts == 0, f"a batch of {leaf.shape[0]} rows does not divide by data × fsdp = {parts}"
        )
    return jax.device_put(batch, batch_sharding(mesh))


def num_shards(num_rows: int) -> int:
    """The devices that the rows of a batch are sharded over under `jax.set_mesh`; 1 if they do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.axis_names != AXES or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return 1
    shards = math.prod(mesh.shape[axis] for axis in BATCH)
    return shards if num_rows % shards == 0 else 1


def constrain(x: Array, *axes: Axis) -> Array:
    """Constrains the sharding of x along axes that divide, in a jit under `jax.set_mesh`; a no-op without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.axis_names != AXES or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return x
    return jax.lax.with_sharding_constraint(x, _fit(mesh.shape, x.shape, axes))


def _fit(sizes: Mapping[str, int], shape: Sequence[int], axes: Sequence[Axis]) -> PartitionSpec:
    """The axes that divide their dimension, and None for the others."""
    spec: list[Axis] = []
    for size, axis in zip(shape, axes, strict=True):
        names = (axis,) if isinstance(axis, str) else axis or ()
        spec.append(axis if size % math.prod(sizes[name] for name in names) == 0 else None)
    return PartitionSpec(*spec)
