"""Weights from and to a Hugging Face folder, one tensor at a time, so that host memory never holds the model twice."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from g1jax.errors import ConfigError, WeightsError
from g1jax.typing import Array
from g1jax.untrusted import file_inside, read_object
from g1jax.vlm import safetensors
from g1jax.vlm.config import Config, VisionConfig
from g1jax.vlm.config_hf import from_hf, to_hf
from g1jax.vlm.model import ParamPath, Params, param_paths, param_shapes
from g1jax.vlm.safetensors import Entry, join_names
from g1jax.vlm.stacking import layer_paths

Place = Callable[[ParamPath, np.ndarray], Array]
"""Puts a host array on devices, see `sharding.placer(config, mesh)`."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_ALIASES = (("model.language_model.", "model."), ("model.visual.", "visual."))
_HF_NAMES = {
    "merger.up": "merger.mlp.0",
    "merger.down": "merger.mlp.2",
    ".kernel": ".weight",
    ".scale": ".weight",
    ".embedding": ".weight",
}


def load(folder: str | Path, *, place: Place | None = None, **changes: Any) -> tuple[Config, Params]:
    """The config and params of a Hugging Face folder of Qwen2.5-VL: config.json and safetensors files.

    `changes` are fields of Config: `load(folder, dtype="bfloat16", param_dtype="bfloat16")`. All names and shapes are
    checked before weights are read.

    Raises:
        ConfigError: config.json is not one of a supported model.
        WeightsError: a file is missing or truncated; a tensor is missing, unknown, misshapen or not finite.
    """
    folder = Path(folder)
    config = load_config(folder, **changes)
    return config, load_params(config, folder, place=place)


def load_config(folder: str | Path, **changes: Any) -> Config:
    """The config of a folder's config.json.

    Raises:
        ConfigError: it is not one of a supported model.
        WeightsError: it is missing or not JSON.
    """
    file = Path(folder) / "config.json"
    content = read_object(file, error=WeightsError)
    try:
        return from_hf(content, **changes)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def load_params(config: Config, folder: str | Path, *, place: Place | None = None) -> Params:
    """The params of a folder's safetensors files; see `load`."""
    entries = _find_entries(Path(folder))
    num_blocks = config.text.num_layers + config.vision.depth
    if len(entries) < num_blocks:  # checked before a model of so many blocks is traced
        raise WeightsError(f"{folder}: {len(entries)} tensors, but the config has {num_blocks} blocks")
    _check(config, entries, Path(folder))
    dtype = np.dtype(safetensors.DTYPES[_dtype_name(config)])

    def read_part(path: ParamPath) -> np.ndarray:
        name = hf_name(path)
        host = _from_hf_layout(path, safetensors.read_tensor(entries[name], name))
        return np.ascontiguousarray(host, dtype)

    def read(path: ParamPath) -> Array:
        parts = layer_paths(config, path)
        host = read_part(path) if parts == [path] else np.stack([read_part(part) for part in parts])
        return jax.device_put(host) if place is None else place(path, host)

    shapes = param_shapes(config)
    params: Params = jax.tree.unflatten(jax.tree.structure(shapes), [read(path) for path in param_paths(shapes)])
    return params


def save(config: Config, params: Params, folder: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes a folder that `load` and transformers read: config.json, and safetensors files with an index.

    Raises:
        FileExistsError: the folder already has weights.
        WeightsError: the params do not match the config.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors")):
        raise FileExistsError(f"{folder} already has safetensors files")
    leaves, shapes = {}, _hf_shapes(config)
    for path, leaf in zip(param_paths(params), jax.tree.leaves(params), strict=True):
        parts = layer_paths(config, path)
        for layer, part in enumerate(parts):
            leaves[hf_name(part)] = (part, leaf, None if parts == [path] else layer)
    mismatched = [name for name in {**leaves, **shapes} if (name in leaves) != (name in shapes)]
    if mismatched:
        raise WeightsError(f"params that do not match the config (merge LoRA first): {join_names(mismatched)}")
    shapes = {name: shapes[name] for name in leaves}
    dtype = _dtype_name(config)

    def tensor(name: str) -> np.ndarray:
        path, leaf, layer = leaves[name]
        return _to_hf_layout(config.vision, path, np.asarray(jax.device_get(leaf if layer is None else leaf[layer])))

    shards = _shards(shapes, safetensors.DTYPES[dtype].itemsize, max_shard_bytes)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = [SINGLE] if len(shards) == 1 else files
    for file, names in zip(files, shards, strict=True):
        safetensors.write(folder / file, {name: shapes[name] for name in names}, dtype, tensor)
    if len(shards) > 1:
        total = sum(int(np.prod(shape)) for shape in shapes.values()) * safetensors.DTYPES[dtype].itemsize
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / "config.json", to_hf(config))


def _shards(shapes: dict[str, tuple[int, ...]], itemsize: int, limit: int) -> list[list[str]]:
    """The names of the tensors of each file, in order; a file has up to `limit` bytes, or one tensor."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * itemsize
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


# Names and layouts


def hf_name(path: ParamPath) -> str:
    """The name of a param in a checkpoint: ("visual", "merger", "up", "kernel") -> "visual.merger.mlp.0.weight"."""
    name = ".".join(map(str, path))
    for ours, theirs in _HF_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def hf_shape(vision: VisionConfig, path: ParamPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a param in a checkpoint; kernels have outputs before inputs."""
    if path[-3:] == ("patch_embed", "proj", "kernel"):
        return (shape[1], 3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    return shape[::-1] if path[-1] == "kernel" else shape


def _hf_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a checkpoint of this config."""
    shapes = param_shapes(dataclasses.replace(config, is_scanned=False))
    return {
        hf_name(path): hf_shape(config.vision, path, leaf.shape)
        for path, leaf in zip(param_paths(shapes), jax.tree.leaves(shapes), strict=True)
    }


def _from_hf_layout(path: ParamPath, host: np.ndarray) -> np.ndarray:
    return host.reshape(host.shape[0], -1).T if path[-1] == "kernel" else host


def _to_hf_layout(vision: VisionConfig, path: ParamPath, host: np.ndarray) -> np.ndarray:
    return host.T.reshape(hf_shape(vision, path, host.shape)) if path[-1] == "kernel" else host


def _dtype_name(config: Config) -> str:
    return {"float32": "F32", "bfloat16": "BF16"}[config.param_dtype]


# Reading a folder


def _find_entries(folder: Path) -> dict[str, Entry]:
    """All tensors of a folder by name, without the prefixes of newer transformers."""
    index = folder / INDEX
    if index.is_file():
        listed = read_object(index, error=WeightsError).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise WeightsError(f"{index}: expected a weight_map from tensor names to file names")
        files = sorted(set(listed.values()))
        invalid = [file for file in files if Path(file).name != file or len(file) > 200 or not file.isprintable()]
        WeightsError.require(not invalid, f"{index}: files outside the folder: {join_names(invalid)}")
    elif (folder / SINGLE).is_file():
        files, listed = [SINGLE], {}
    else:
        raise WeightsError(f"{folder}: has neither {SINGLE} nor {INDEX}")
    missing = [file for file in files if not (folder / file).is_file()]
    WeightsError.require(not missing, f"{folder}: missing files: {join_names(missing)}")
    found: dict[str, Entry] = {}
    for file in files:
        if listed:
            file_inside(folder, file, str(index), WeightsError)
        for name, entry in safetensors.read_header(folder / file).items():
            if _canonical_name(name) in found:
                first = found[_canonical_name(name)].file.name
                raise WeightsError(f"{folder}: {join_names([name])} is in {first} and in {file}")
            found[_canonical_name(name)] = entry
    lost = [name for name in listed if _canonical_name(name) not in found]
    WeightsError.require(not lost, f"{folder}: the index lists tensors that no file has: {join_names(lost)}")
    return found


def _canonical_name(name: str) -> str:
    for theirs, ours in _ALIASES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _check(config: Config, entries: dict[str, Entry], folder: Path) -> None:
    expected = _hf_shapes(config)
    redundant = {"lm_head.weight"} if config.text.is_tied else set()  # some files have a tied layer twice
    missing = [name for name in expected if name not in entries]
    extra = [name for name in entries if name not in expected and name not in redundant]
    misshapen = [
        f"{join_names([name])} is {list(entries[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in entries and entries[name].shape != shape
    ]
    problems = [("missing", missing), ("unknown", extra), ("misshapen", misshapen)]
    text = "; ".join(f"{len(names)} {kind} tensors: {join_names(names)}" for kind, names in problems if names)
    WeightsError.require(not text, f"{folder}: {text}")


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
