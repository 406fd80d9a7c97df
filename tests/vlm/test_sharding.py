"""The sharding rules; and, on 8 fake devices in a subprocess, that results do not depend on sharding."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from g1jax import vlm
from g1jax.vlm import lora, qwen, sharding, weights
from tests.conftest import REPOSITORY
from tests.vlm import shapes

EIGHT = [shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(shape) == 8]
SOME = [(2, 2, 2), (1, 1, 8), (1, 8, 1)]


def on_eight_devices(config: str, meshes: Sequence[tuple[int, ...]], parts: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.vlm.on_eight_devices", config, json.dumps(meshes), parts]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "Involuntary full rematerialization" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert [tuple(result["shape"]) for result in found["results"]] == list(meshes)
    return found


def check_logits(found: dict[str, Any]) -> None:
    assert found["std"] > 0.5
    for result in found["results"]:
        assert result["logits"] < 1e-5, result
        _, fsdp, tensor = result["shape"]
        assert result["bytes"] < found["bytes"] / fsdp * (1.1 if tensor == 1 else 0.75), result


def check_all(found: dict[str, Any]) -> None:
    check_logits(found)
    for result in found["results"]:
        greedy, sampled, logprobs, scores = result["responses"]
        assert greedy == sampled == 0, result
        assert max(logprobs, scores) < 1e-5, result
        assert result["gradient"] < 1e-5, result


def test_logits_on_every_mesh_of_eight() -> None:
    assert len(EIGHT) == 10
    check_logits(on_eight_devices("plain", EIGHT, "logits"))


@pytest.mark.slow
def test_responses_scores_and_gradients_on_a_mesh() -> None:
    check_all(on_eight_devices("plain", SOME[:1], "logits,responses,gradient"))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["plain", "scanned"])
def test_everything_on_more_meshes(config: str) -> None:
    check_all(on_eight_devices(config, SOME, "logits,responses,gradient"))


@pytest.mark.slow
def test_logits_of_a_scanned_decoder_on_every_mesh() -> None:
    check_logits(on_eight_devices("scanned", EIGHT, "logits"))


def test_a_mesh_that_does_not_fit() -> None:
    count = len(jax.devices())
    wrong = rf"a mesh of data=1 × fsdp={count + 2} × tensor=1 is {count + 2} devices, and there are {count}"
    with pytest.raises(vlm.ConfigError, match=wrong):
        sharding.make_mesh(fsdp=count + 2)
    with pytest.raises(vlm.ConfigError, match="expected 1 or more for every axis"):
        sharding.make_mesh(tensor=0)
    assert sharding.make_mesh(data=count).shape == {"data": count, "fsdp": 1, "tensor": 1}


@dataclass(frozen=True)
class Chip:
    """What a mesh of TPU slices reads of a device."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def test_each_slice_has_its_share_of_data() -> None:
    chips: Any = [
        Chip(8 * index + x + 2 * y, index, (x, y, 0)) for y in range(4) for x in range(2) for index in range(2)
    ]
    assert sharding.num_slices(chips) == 2
    assert sharding.num_slices(jax.devices()) == 1
    assert sharding.num_slices([SimpleNamespace(platform="tpu")] * 8) == 1  # of a topology without devices
    for shape in ((2, 4, 2), (4, 4, 1), (16, 1, 1)):
        grid = sharding.grid_of_slices(shape, chips)
        assert grid.shape == shape
        assert len(set(grid.ravel().tolist())) == 16
        first, second = np.split(grid, 2)
        assert {chip.slice_index for chip in first.ravel()} == {0}
        assert {chip.slice_index for chip in second.ravel()} == {1}
    with pytest.raises(vlm.ConfigError, match="fsdp=16 × tensor=1 on 2 slices: data must be a multiple of 2"):
        sharding.grid_of_slices((1, 16, 1), chips)


def test_a_batch_that_does_not_divide() -> None:
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    batch = sharding.shard_batch(mesh, {"tokens": np.zeros((3, 2), np.int32)})
    assert batch["tokens"].sharding == sharding.batch_sharding(mesh)
    abstract: Any = mesh_of(1, 2, 1)
    with pytest.raises(vlm.ConfigError, match="a batch of 3 rows does not divide by data × fsdp = 2"):
        sharding.shard_batch(abstract, {"tokens": np.zeros((3, 2), np.int32)})


def mesh_of(*shape: int) -> AbstractMesh:
    return AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("model layers 0 self_attn q_proj kernel", (3584, 3584), ("fsdp", "tensor")),
        ("model layers 0 self_attn k_proj kernel", (3584, 512), ("fsdp", "tensor")),
        ("model layers 0 self_attn o_proj kernel", (3584, 3584), ("tensor", "fsdp")),
        ("model layers 0 mlp gate_proj kernel", (3584, 18944), ("fsdp", "tensor")),
        ("model layers 0 mlp down_proj kernel", (18944, 3584), ("tensor", "fsdp")),
        ("model layers mlp down_proj kernel", (28, 18944, 3584), (None, "tensor", "fsdp")),
        ("model layers 0 mlp down_proj lora_a", (18944, 16), ("tensor", None)),
        ("model layers 0 mlp down_proj lora_b", (16, 3584), (None, "fsdp")),
        ("model layers mlp up_proj lora_b", (28, 16, 18944), (None, None, "tensor")),
        ("model embed_tokens embedding", (152064, 3584), ("tensor", "fsdp")),
        ("lm_head kernel", (3584, 152064), ("fsdp", "tensor")),
        ("visual patch_embed proj kernel", (1176, 1280), (None, "fsdp")),
        ("visual blocks 3 attn qkv kernel", (1280, 3840), ("fsdp", "tensor")),
        ("visual blocks 3 attn proj kernel", (1280, 1280), ("tensor", "fsdp")),
        ("visual merger up kernel", (5120, 5120), ("fsdp", "tensor")),
        ("0 mu model layers 0 mlp up_proj kernel", (3584, 18944), ("fsdp", "tensor")),
        ("model layers 0 self_attn q_proj bias", (3584,), ()),
        ("model norm scale", (3584,), ()),
        ("model layers 0 self_attn q_proj kernel", (3585, 3584), (None, "tensor")),
    ],
)
def test_rules(path: str, shape: tuple[int, ...], spec: tuple[str | None, ...]) -> None:
    found = sharding.param_sharding(qwen.shape_of("7B"), mesh_of(1, 2, 4), path.split(), shape)
    assert found.spec == PartitionSpec(*spec)


def test_heads_are_never_split() -> None:
    config, kernel = qwen.shape_of("7B"), (3584, 512)
    for name, spec in (("k_proj", ("fsdp", None)), ("q_proj", ("fsdp", None)), ("up_proj", ("fsdp", "tensor"))):
        owner = "mlp" if name == "up_proj" else "self_attn"
        found = sharding.param_sharding(config, mesh_of(1, 1, 8), ("model", "layers", 0, owner, name, "kernel"), kernel)
        assert found.spec == PartitionSpec(*spec)  # 28 query and 4 key heads, which 8 does not divide


@pytest.mark.parametrize("name", ["3B", "7B"])
@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 4, 2), (1, 2, 4)])
def test_large_models_are_split_evenly(name: str, shape: tuple[int, ...]) -> None:
    config, mesh = qwen.shape_of(name), mesh_of(*shape)
    params = vlm.param_shapes(config)
    split = sharding.tree_shardings(config, mesh, params)
    parts = jax.tree.map(lambda leaf, how: math.prod(how.shard_shape(leaf.shape)), params, split)
    total = vlm.count_params(config)
    assert sum(jax.tree.leaves(parts)) < total / 8 * 1.07


def test_params_are_placed_when_loaded_and_initialized(tmp_path: Any) -> None:
    config = shapes.TINY
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    place = sharding.placer(config, mesh)
    params = vlm.init(config, jax.random.key(0), place=place)
    weights.save(config, params, tmp_path)
    loaded = weights.load_params(config, tmp_path, place=place)
    wanted = sharding.tree_shardings(config, mesh, params)
    for tree in (params, loaded):
        assert jax.tree.map(lambda leaf: leaf.sharding, tree) == wanted
    jax.tree.map(np.testing.assert_array_equal, params, loaded)
    lora_params = lora.init(config, lora.LoRA(rank=2), jax.random.key(0))
    assert len(jax.tree.leaves(sharding.tree_shardings(config, mesh, lora_params))) == 2 * 7 * config.text.num_layers
