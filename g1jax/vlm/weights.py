"""Weights from and to a Hugging Face folder, one tensor at a time: host memory never holds the model twice."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from g1jax.errors import ConfigError, WeightsError
from g1jax.foreign import file_inside, read_json
from g1jax.typing import Array
from g1jax.vlm import safetensors
from g1jax.vlm.config import Config, VisionConfig
from g1jax.vlm.config_hf import from_hf, to_hf
from g1jax.vlm.model import ParamPath, Params, param_paths, param_shapes
from g1jax.vlm.safetensors import Entry, join_names
from g1jax.vlm.stacking import layer_paths

Place = Callable[[ParamPath, np.ndarray], Array]
"""Puts a host array on devices: `sharding.placer(config, mesh)`."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_ALIASES = (("model.language_model.", "model."), ("model.visual.", "visual."))
_RENAMED = {
    "merger.up": "merger.mlp.0",
    "merger.down": "merger.mlp.2",
    ".kernel": ".weight",
    ".scale": ".weight",
    ".embedding": ".weight",
}


def load(folder: str | Path, *, place: Place | None = None, **changes: Any) -> tuple[Config, Params]:
    """The config and params of a Hugging Face folder of Qwen2.5-VL: config.json, safetensors in one file or more.

    `changes` are fields of Config: `load(folder, dtype="bfloat16", param_dtype="bfloat16")`. All names and shapes are
    checked before any weights are read.

    Raises:
        ConfigError: config.json is of another model.
        WeightsError: a file is missing or cut short; a tensor is missing, unknown, misshapen or not finite.
    """
    folder = Path(folder)
    config = load_config(folder, **changes)
    return config, load_params(config, folder, place=place)


def load_config(folder: str | Path, **changes: Any) -> Config:
    """The config of a folder's config.json.

    Raises:
        ConfigError: it is of another model, or of none.
        WeightsError: there is none, or it is no JSON.
    """
    file = Path(folder) / "config.json"
    content = _read_json(file)
    try:
        return from_hf(content, **changes)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def load_params(config: Config, folder: str | Path, *, place: Place | None = None) -> Params:
    """The params of a folder's safetensors files; see `load`."""
    entries = _find_entries(Path(folder))
    num_blocks = config.text.num_layers + config.vision.depth
    if len(entries) < num_blocks:  # said before a model of so many blocks is laid out
        raise WeightsError(f"{folder}: {len(entries)} tensors, and the config is of a model of {num_blocks} blocks")
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

    structure = jax.tree.structure(param_shapes(config))
    params: Params = jax.tree.unflatten(structure, [read(path) for path in param_paths(param_shapes(config))])
    return params


def save(config: Config, params: Params, folder: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes a folder that `load` and transformers read: config.json, and safetensors files with an index.

    Raises:
        FileExistsError: the folder has weights already.
        WeightsError: the params are not those of the config.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors")):
        raise FileExistsError(f"{folder} has safetensors files already")
    leaves, shapes = {}, _hf_shapes(config)
    for path, leaf in zip(param_paths(params), jax.tree.leaves(params), strict=True):
        parts = layer_paths(config, path)
        for layer, part in enumerate(parts):
            leaves[hf_name(part)] = (part, leaf, None if parts == [path] else layer)
    unlike = [name for name in {**leaves, **shapes} if (name in leaves) != (name in shapes)]
    if unlike:
        raise WeightsError(f"params that are not the config's (is LoRA to be merged?): {join_names(unlike)}")
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
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    _write_json(folder / "config.json", to_hf(config))


def _shards(shapes: dict[str, tuple[int, ...]], itemsize: int, limit: int) -> list[list[str]]:
    """Names of the tensors of each file, in order, each file up to `limit` bytes or one tensor."""
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
    for ours, theirs in _RENAMED.items():
        name = name.replace(ours, theirs)
    return name


def hf_shape(vision: VisionConfig, path: ParamPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a param in a checkpoint: of a kernel, outputs before inputs."""
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
    """All tensors of a folder by their name, prefixes of newer transformers taken off."""
    index = folder / INDEX
    if index.is_file():
        listed = _read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise WeightsError(f"{index}: no weight_map from tensor names to file names")
        files = sorted(set(listed.values()))
        strange = [file for file in files if Path(file).name != file or len(file) > 200 or not file.isprintable()]
        if strange:
            raise WeightsError(f"{index}: files outside of the folder: {join_names(strange)}")
    elif (folder / SINGLE).is_file():
        files, listed = [SINGLE], {}
    else:
        raise WeightsError(f"{folder}: neither {SINGLE} nor {INDEX}")
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise WeightsError(f"{folder}: missing files: {join_names(absent)}")
    found: dict[str, Entry] = {}
    for file in files:
        if listed:
            file_inside(folder, file, str(index), WeightsError)
        for name, entry in safetensors.read_header(folder / file).items():
            if _own_name(name) in found:
                first = found[_own_name(name)].file.name
                raise WeightsError(f"{folder}: {join_names([name])} is in {first} and in {file}")
            found[_own_name(name)] = entry
    unkept = [name for name in listed if _own_name(name) not in found]
    if unkept:
        raise WeightsError(f"{folder}: the index lists tensors that no file has: {join_names(unkept)}")
    return found


def _own_name(name: str) -> str:
    for theirs, ours in _ALIASES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _check(config: Config, entries: dict[str, Entry], folder: Path) -> None:
    wanted = _hf_shapes(config)
    needless = {"lm_head.weight"} if config.text.is_tied else set()  # some write a tied layer twice
    missing = [name for name in wanted if name not in entries]
    extra = [name for name in entries if name not in wanted and name not in needless]
    misshapen = [
        f"{join_names([name])} is {list(entries[name].shape)} and not {list(shape)}"
        for name, shape in wanted.items()
        if name in entries and entries[name].shape != shape
    ]
    problems = [("missing", missing), ("unknown", extra), ("misshapen", misshapen)]
    text = "; ".join(f"{len(names)} {kind} tensors: {join_names(names)}" for kind, names in problems if names)
    if text:
        raise WeightsError(f"{folder}: {text}")


def _read_json(file: Path) -> dict[str, Any]:
    content = read_json(file, error=WeightsError)
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: a JSON object is wanted")
    return content


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
