"""Valid, damaged and untrusted checkpoint folders; needs no torch."""

import dataclasses
import json
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import vlm
from g1jax.errors import WeightsError
from g1jax.vlm import safetensors, weights
from g1jax.vlm.model import ParamPath

VISION = vlm.VisionConfig(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, full_attention_blocks=(0,))
TEXT = vlm.TextConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1,
    positions="mrope", mrope_section=(2, 1, 1), is_tied=False,
)  # fmt: skip
CONFIG = vlm.Config(vision=VISION, text=TEXT)
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights.save(CONFIG, vlm.init(CONFIG, jax.random.key(0)), tmp_path / "model", max_shard_bytes=20_000)
    return tmp_path / "model"


def shard_of(folder: Path, name: str = NAME) -> Path:
    index = json.loads((folder / weights.INDEX).read_text())
    return folder / str(index["weight_map"][name])


def rewrite(file: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Rewrites a file with changed tensors."""
    tensors = {name: safetensors.read_tensor(entry, name) for name, entry in safetensors.read_header(file).items()}
    change(tensors)
    safetensors.write(file, {name: x.shape for name, x in tensors.items()}, "F32", lambda name: tensors[name])


@pytest.mark.parametrize("max_shard_bytes", [1, 20_000, 10**9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_loaded(tmp_path: Path, max_shard_bytes: int, dtype: str) -> None:
    config = vlm.Config(vision=VISION, text=TEXT, param_dtype=dtype)  # type: ignore[arg-type]
    params = vlm.init(config, jax.random.key(1))
    weights.save(config, params, tmp_path, max_shard_bytes=max_shard_bytes)
    again_config, again = weights.load(tmp_path, param_dtype=dtype)
    assert again_config == config
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), again, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {jnp.dtype(dtype)}
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == (max_shard_bytes == 10**9)
    with pytest.raises(FileExistsError):
        weights.save(config, params, tmp_path)


def test_the_safetensors_package_reads_our_files(folder: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    for file in folder.glob("*.safetensors"):
        for name, tensor in package.load_file(file).items():
            entry = safetensors.read_header(file)[name]
            np.testing.assert_array_equal(tensor, safetensors.read_tensor(entry, name))


def test_place_is_called_for_every_tensor(folder: Path) -> None:
    seen = []

    def place(path: ParamPath, host: np.ndarray) -> jax.Array:
        seen.append(path)
        return jnp.asarray(host)

    _, params = weights.load(folder, place=place)
    assert len(seen) == len(set(seen)) == len(jax.tree.leaves(params))
    assert ("model", "layers", 0, "self_attn", "q_proj", "kernel") in seen


def test_host_memory_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    config = vlm.preset("small")
    weights.save(config, vlm.init(config, jax.random.key(0)), tmp_path, max_shard_bytes=30_000_000)
    largest = max(leaf.size for leaf in jax.tree.leaves(vlm.param_shapes(config))) * 4

    nothing = jnp.zeros(1)  # as if moved to a device, so that the host array is freed

    def place(path: ParamPath, host: np.ndarray) -> jax.Array:
        return nothing

    tracemalloc.start()
    weights.load_params(config, tmp_path, place=place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * largest + 2_000_000


def test_names_of_newer_and_older_files(folder: Path) -> None:
    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            for ours, theirs in (("model.", "model.language_model."), ("visual.", "model.visual.")):
                if name.startswith(ours):
                    tensors[theirs + name.removeprefix(ours)] = tensors.pop(name)

    expected = weights.load_params(CONFIG, folder)
    index = json.loads((folder / weights.INDEX).read_text())
    for file in folder.glob("*.safetensors"):
        rewrite(file, rename)
    index["weight_map"] = {
        name: file.name for file in folder.glob("*.safetensors") for name in safetensors.read_header(file)
    }
    (folder / weights.INDEX).write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, weights.load_params(CONFIG, folder), expected)


def test_a_tied_layer_may_be_stored_twice(tmp_path: Path, folder: Path) -> None:
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**hf, "tie_word_embeddings": True}))
    config, params = weights.load(folder)
    assert config.text.is_tied
    assert "lm_head" not in params


def drop(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors[NAME]

    rewrite(shard_of(folder), change)


def drop_from_index_too(folder: Path) -> None:
    drop(folder)
    index = json.loads((folder / weights.INDEX).read_text())
    del index["weight_map"][NAME]
    (folder / weights.INDEX).write_text(json.dumps(index))


def add(folder: Path) -> None:
    rewrite(shard_of(folder), lambda tensors: tensors.update({"model.extra.weight": np.zeros(3, np.float32)}))


def misshape(folder: Path) -> None:
    rewrite(shard_of(folder), lambda tensors: tensors.update({NAME: tensors[NAME].T.copy()}))


def poison(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[NAME][3, 5] = np.inf

    rewrite(shard_of(folder), change)


def truncate(folder: Path) -> None:
    file = shard_of(folder)
    file.write_bytes(file.read_bytes()[:-8])


def truncate_in_the_header(folder: Path) -> None:
    file = shard_of(folder)
    file.write_bytes(file.read_bytes()[:20])


def empty(folder: Path) -> None:
    shard_of(folder).write_bytes(b"")


def scramble_header(folder: Path) -> None:
    file = shard_of(folder)
    content = bytearray(file.read_bytes())
    content[8:40] = b"x" * 32
    file.write_bytes(content)


def remove_file(folder: Path) -> None:
    shard_of(folder).unlink()


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(vlm.to_hf(CONFIG)))


def point_outside(folder: Path) -> None:
    index = json.loads((folder / weights.INDEX).read_text())
    index["weight_map"][NAME] = "../other.safetensors"
    (folder / weights.INDEX).write_text(json.dumps(index))


def name_a_folder(folder: Path) -> None:
    index = json.loads((folder / weights.INDEX).read_text())
    index["weight_map"][NAME] = ".."
    (folder / weights.INDEX).write_text(json.dumps(index))


def link_outside(folder: Path) -> None:
    file = shard_of(folder)
    file.rename(folder.parent / "other.safetensors")
    file.symlink_to(folder.parent / "other.safetensors")


def deep_index(folder: Path) -> None:
    (folder / weights.INDEX).write_text('{"weight_map": ' + "[" * 200_000)


def break_index(folder: Path) -> None:
    (folder / weights.INDEX).write_text('{"weight_map": [')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, f"the index lists tensors that no file has: {NAME}"),
        (drop_from_index_too, f"1 missing tensors: {NAME}"),
        (add, "1 unknown tensors: model.extra.weight"),
        (misshape, rf"1 misshapen tensors: {NAME} is \[16, 24\], not \[24, 16\]"),
        (poison, f"{NAME} has an infinity or NaN"),
        (truncate, "truncated: .* without model"),
        (truncate_in_the_header, "truncated or not a safetensors file: 20 bytes"),
        (empty, "truncated or not a safetensors file: 0 bytes"),
        (scramble_header, "not a safetensors header"),
        (remove_file, "missing files: model-0"),
        (remove_all, "neither model.safetensors nor"),
        (point_outside, "files outside the folder: ../other.safetensors"),
        (name_a_folder, r"missing files: \.\."),
        (link_outside, r"model.safetensors.index.json: model-0.* is outside the folder"),
        (deep_index, r"model.safetensors.index.json: line 1, byte 79 of the text: nested deeper than 64 levels"),
        (break_index, "model.safetensors.index.json: column 17: not JSON"),
    ],
)
def test_a_damaged_folder_is_an_error_that_says_where(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(WeightsError, match=message):
        weights.load(folder)


# Headers


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def header(content: object, length: int = 16) -> bytes:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(length)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (header({"a": ONE, "b": ONE}, 8), "b at byte .* overlaps a, to byte"),
        (header({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, 12), "b at byte .* overlaps a, to byte"),
        (header({"a": ONE, "b": {**ONE, "data_offsets": [12, 20]}}, 20), "b at byte .* leaves a gap after a"),
        (header({"a": {**ONE, "data_offsets": [8, 16]}}), "a at byte .* leaves a gap after the header"),
        (header({"a": ONE}), "8 bytes after a belong to no tensor"),
        (header({"a": {**ONE, "data_offsets": [8, 0]}}), r"a: -8 bytes do not hold F32\[2\]"),
        (header({"a": {**ONE, "data_offsets": [-8, 0]}}), r"a has shape \[2\] at \[-8, 0\]"),
        (header({"a": {**ONE, "data_offsets": [False, 8]}}), "a has shape"),
        (header({"a": {**ONE, "data_offsets": [0, 8.0]}}), "a has shape"),
        (header({"a": {**ONE, "data_offsets": [0, 10**200]}}), "bytes do not hold"),
        (header({"a": {**ONE, "shape": "22"}}), "a has shape '22'"),
        (header({"a": {**ONE, "shape": [1] * 100_000 + [2]}}), "a has shape .{,90} at"),
        (header({"a": {**ONE, "shape": [2**62, 4], "data_offsets": [0, 0]}}), "a: 0 bytes do not hold"),
        (header({"a": {**ONE, "dtype": []}}), r"a has type \[\]: expected one of F32, F16, BF16"),
        (header({"a": {**ONE, "dtype": "I64"}}), "a has type 'I64'"),
        (header({"a": []}), "a: expected exactly a dtype"),
        (header({"a": {"dtype": "F32"}}), "a: expected exactly a dtype"),
        (header({"\x1b[2J\n": {**ONE, "dtype": "I64"}}), r"'\\x1b\[2J\\n' has type"),
        (header(b'{"a": {"dtype": "F32"}, "a": {}}'), "the key 'a' occurs twice"),
        (header([]), "not a safetensors header: not an object"),
        (header(b"{" * 100_000), "nested deeper than 4 levels"),
        (header(b'{"\xff": 1}'), "not UTF-8"),
        (struct.pack("<Q", 2**63) + b"{}", "a header of 9223372036854775808"),
        (header(b" " * 2**24 + b"{}"), "a header of 16777218"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_invalid_headers(raw: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(raw)
    with pytest.raises(WeightsError, match=message) as fault:
        safetensors.read_header(file)
    assert str(fault.value).startswith(f"{file}: ")
    assert str(fault.value).isprintable()
    assert len(str(fault.value)) < 500


def test_too_few_tensors_are_refused_before_tracing(folder: Path) -> None:
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, num_layers=128))
    start = time.process_time()
    with pytest.raises(WeightsError, match="tensors, but the config has 129 blocks"):
        weights.load_params(config, folder)
    assert time.process_time() - start < 1


def test_a_config_names_its_file(folder: Path) -> None:
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**hf, "model_type": "other"}))
    with pytest.raises(vlm.ConfigError, match=r"config\.json: model_type='other'"):
        weights.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"config\.json: expected a JSON object"):
        weights.load(folder)
