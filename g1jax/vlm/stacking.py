"""The decoder's params in two forms: a dict of layers, or, for `Config.is_scanned`, one layer of stacked arrays."""

from typing import Any

import jax
import jax.numpy as jnp

from g1jax.errors import ConfigError
from g1jax.vlm.config import Config

_LAYERS = ("model", "layers")
ParamPath = tuple[str | int, ...]
"""The keys to a param, for example ("model", "layers", 0, "mlp", "up_proj", "kernel")."""


def layer_paths(config: Config, path: ParamPath) -> list[ParamPath]:
    """The unstacked paths of a stacked param; for other params, their own path."""
    if not config.is_scanned or path[:2] != _LAYERS:
        return [path]
    return [(*_LAYERS, layer, *path[2:]) for layer in range(config.text.num_layers)]


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Params, LoRA params or gradients for a scanned decoder: {0: layer, 1: layer, …} to one stacked layer.

    Raises:
        ConfigError: the layers do not all have the same params, for example if only some have LoRA.
    """
    layers = params.get("model", {}).get("layers")
    if layers is None:
        return params
    parts = [layers[i] for i in sorted(layers)]
    structures = {jax.tree.structure(part) for part in parts}
    ConfigError.require(len(structures) == 1, "layers with different params cannot be stacked")
    return _with_layers(params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`."""
    layers = params.get("model", {}).get("layers")
    if layers is None:
        return params
    count = len(jax.tree.leaves(layers)[0])
    return _with_layers(params, {i: jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(count)})


def _with_layers(params: dict[str, Any], layers: dict[Any, Any]) -> dict[str, Any]:
    return {**params, "model": {**params["model"], "layers": layers}}
