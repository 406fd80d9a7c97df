"""LoRA: weights W + (alpha / rank) · A B of which only A and B are trained, for a W too large to train.

The trained params are a separate tree with the paths of the kernels they add to. `attach` puts them next to these
kernels, where the model finds them and adds x A B; `merge` adds A B to the kernels. A training step::

    lora_params = init(config, spec, key)
    gradient = jax.grad(lambda trained: loss(attach(params, trained, spec)))(lora_params)
"""

import fnmatch
import zlib
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from g1jax.errors import ConfigError, unknown
from g1jax.settings import Range, check
from g1jax.typing import Array, Key
from g1jax.vlm.config import Config
from g1jax.vlm.model import ParamPath, Params, param_paths, param_shapes

_LEAVES = ("lora_a", "lora_b")
_EXCLUDED = (("visual", "patch_embed", "proj"), ("lm_head",))  # not used as plain linear maps


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which linear maps get low-rank updates, and their rank. Hashable: a static argument of jit."""

    rank: Annotated[int, Range(0, 2**16)] = 16
    """0: no LoRA; all params are trained."""
    alpha: Annotated[float, Range(0, 1e6, is_above=True)] = 16.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("model.*_proj",)
    """Names of linear maps or ends of their paths, with `*` as a wildcard: `q_proj`, `mlp.up_proj`, `visual.*.qkv`,
    `model.layers.*.o_proj`. The default is all linear maps of the decoder's layers.
    """

    def __post_init__(self) -> None:
        is_tuple = type(self.targets) is tuple and len(self.targets) > 0  # a string would be iterated by letter
        ConfigError.require(is_tuple, f"LoRA: targets={self.targets!r}: expected a tuple of names")
        check(self, ConfigError, "LoRA: ")

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / self.rank


def targets(config: Config, spec: LoRA) -> list[ParamPath]:
    """The paths of the linear maps that match `spec.targets`.

    Raises:
        ConfigError: a target matches no linear map of the model.
    """
    linear = [path[:-1] for path in param_paths(param_shapes(config)) if path[-1] == "kernel"]
    linear = [path for path in linear if path not in _EXCLUDED]
    for target in spec.targets:
        names = sorted({str(path[-1]) for path in linear})
        ConfigError.require(any(_matches(target, path) for path in linear), unknown("LoRA target", target, names))
    return [path for path in linear if any(_matches(target, path) for target in spec.targets)]


def _matches(target: str, path: ParamPath) -> bool:
    name = ".".join(map(str, path))
    return fnmatch.fnmatchcase(name, target) or fnmatch.fnmatchcase(name, "*." + target)


def init(config: Config, spec: LoRA, key: Key) -> Params:
    """Initial LoRA params, float32: A normal with standard deviation 1/√inputs, B zero.

    For a kernel [inputs, outputs] they are `lora_a` [inputs, rank] and `lora_b` [rank, outputs]; those of a scanned
    decoder have a leading axis of layers.
    """
    shapes, params = param_shapes(config), Params()
    for path in targets(config, spec):
        *stack, inputs, outputs = _get(shapes, path)["kernel"].shape
        path_key = jax.random.fold_in(key, zlib.crc32(".".join(map(str, path)).encode()))
        lora_a = jax.random.normal(path_key, (*stack, inputs, spec.rank), jnp.float32) * inputs**-0.5
        lora_b = jnp.zeros((*stack, spec.rank, outputs), jnp.float32)
        params = _put(params, path, {"lora_a": lora_a, "lora_b": lora_b})
    return params


def attach(params: Params, lora_params: Params, spec: LoRA) -> Params:
    """The params of the model with LoRA, for `apply`, `generate` and `score`, inside or outside a jit.

    Raises:
        ConfigError: LoRA params for a linear map that the params do not have.
    """
    for path in _linear_paths(lora_params):
        leaves, kernel = _get(lora_params, path), _get(params, path).get("kernel")
        ConfigError.require(
            kernel is not None, f"LoRA params for {'.'.join(map(str, path))}, which the params do not have"
        )
        params = _put(params, path, {"lora_a": leaves["lora_a"], "lora_b": leaves["lora_b"] * spec.scale})
    return params


def merge(params: Params, lora_params: Params, spec: LoRA) -> Params:
    """Params of the equivalent plain model, with its dtype: for export and for long decoding."""
    attached = attach(params, lora_params, spec)
    for path in _linear_paths(lora_params):
        leaves = _get(attached, path)
        params = _put(params, path, {"kernel": _add(leaves["kernel"], leaves["lora_a"], leaves["lora_b"])})
    return params


@jax.jit
def _add(kernel: Array, lora_a: Array, lora_b: Array) -> Array:
    return (kernel.astype(jnp.float32) + lora_a @ lora_b).astype(kernel.dtype)


def split(params: Params) -> tuple[Params, Params]:
    """The inverse of `attach`: the LoRA params, with B scaled, and the params without them."""
    lora_params, rest = Params(), Params()
    for name, child in params.items():
        if isinstance(child, dict):
            child_lora, child_rest = split(child)
            lora_params.update({name: child_lora} if child_lora else {})
            rest.update({name: child_rest} if child_rest else {})
        else:
            (lora_params if name in _LEAVES else rest)[name] = child
    return lora_params, rest


def _linear_paths(lora_params: Params) -> list[ParamPath]:
    return [path[:-1] for path in param_paths(lora_params) if path[-1] == "lora_a"]


def _get(params: Params, path: ParamPath) -> Params:
    """The dict at a path, or an empty one."""
    for name in path:
        params = params.get(name, {})
    return params


def _put(params: Params, path: ParamPath, leaves: Params) -> Params:
    """A copy of params with leaves added or replaced at a path."""
    if not path:
        return {**params, **leaves}
    return {**params, path[0]: _put(params.get(path[0], {}), path[1:], leaves)}
