"""All readers of untrusted files: a valid example of each, and a function that reads it.

A new reader of untrusted files is added to `READERS`; the fuzzer does the rest.
"""

import contextlib
import functools
import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from g1jax import envs, vlm
from g1jax.endpoint.client import Client
from g1jax.endpoint.exchanges import ExchangeLog
from g1jax.endpoint.transport import read_body
from g1jax.envs import images
from g1jax.envs.level import keys_of
from g1jax.errors import G1Error
from g1jax.evaluation import EvaluationError, report, results
from g1jax.evaluation.statistics import Interval, Sums
from g1jax.rl.policy import Policy
from g1jax.sft.dataset import JSONL, PARQUET, Example, read_dataset
from g1jax.sft.dataset_writer import ABOUT, DatasetWriter
from g1jax.teachers.endpoint import reply_of
from g1jax.training import checksums, metrics_file, saved_model, saved_setup
from g1jax.training import run_folder as run_folder
from g1jax.untrusted import UntrustedError
from g1jax.untrusted_images import open_image
from g1jax.vlm import weights
from tests.conftest import REPOSITORY
from tests.envs import cifar10_files as cifar
from tests.fuzz.mutations import Mutation, mutate_bytes, mutate_json, mutate_json_lines, mutate_toml
from tests.training import tiny
from tests.vlm.test_tokenizer import write_qwen_folder


@dataclass(frozen=True)
class Reader:
    """One reader: `make` writes a valid example to a folder, `read` reads it, the files of `mutations` are damaged."""

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    mutations: dict[str, Mutation]
    """How to damage each file, by its name in the folder."""
    is_slow: bool = False
    """Whether one file takes 0.1 seconds or more."""


# Models

SMALL = vlm.Config(
    vision=vlm.VisionConfig(depth=1, hidden_size=8, intermediate_size=8, num_heads=1, full_attention_blocks=(0,)),
    text=vlm.TextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
        positions="sequence", max_length=64,
    ),
)  # fmt: skip


def make_model(folder: Path, max_shard_bytes: int = 10**9) -> None:
    shapes = vlm.param_shapes(SMALL)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    weights.save(SMALL, params, folder, max_shard_bytes=max_shard_bytes)


def read_weights(folder: Path) -> None:
    weights.load_params(SMALL, folder, place=lambda path, host: jnp.asarray(host))


TEXTS = ("Red circle | -\n- | Blue star", "<perception>é</perception><answer>(0, 1) (1, 1)</answer>")


def make_tokenizer(folder: Path) -> None:
    tiny.TOKENIZER.save(folder)
    (folder / "tokenizer_config.json").unlink()


def read_tokenizer(folder: Path) -> None:
    tokenizer = vlm.Tokenizer.load(folder)
    with contextlib.suppress(vlm.ConfigError):  # about a text, which has no file
        tokenizer.encode_batch(TEXTS)
        tokenizer.prompt("Play.", 4)
        vlm.token_bytes(tokenizer)


# Datasets

GAME = envs.make("game_2048", rows=2, cols=2)
POLICY = Policy(tiny.CONFIG, tiny.TOKENIZER, budget=48, templates=(("game_2048", "2048"),))


def make_dataset(folder: Path, form: Any = "jsonl") -> None:
    height, width, _ = GAME.frame_shape
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
    board = "2 | 4\n- | 2"
    response = f"<perception>{board}</perception><think>So.</think><answer>1</answer>"
    with DatasetWriter(folder, form, {"seed": 0}) as writer:
        for i in range(3):
            writer.add(Example(GAME.id, '{"rows": 2}', GAME.prompt, board, response, i % 4, 4.0, pixels[i]))
        writer.finish()


def read_rows(folder: Path) -> None:
    (book,) = read_dataset(folder, [GAME], POLICY)
    book.batch(POLICY, 0, 0, 3)


def read_about(folder: Path) -> None:
    DatasetWriter(folder, "jsonl", {"seed": 0})


# Images


def make_pictures(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    for name in ("PNG", "JPEG", "WEBP"):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, name)
        (folder / name).write_bytes(out.getvalue())


def read_pictures(folder: Path) -> None:
    for file in folder.iterdir():
        with open_image(file, str(file)) as picture:
            picture.convert("RGB")


def make_cifar(folder: Path, files: dict[str, bytes]) -> None:
    for name, contents in files.items():
        (folder / name).write_bytes(contents)


def make_cifar_archive(folder: Path) -> None:
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz", compresslevel=1) as archive:
        for name, contents in cifar.python_files().items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))


def read_cifar(folder: Path) -> None:
    images.load_images(str(folder), 1)


# Presets


def make_presets(folder: Path) -> None:
    for game_id in envs.game_ids():
        shipped = REPOSITORY / "envs" / f"{game_id}.toml"
        (folder / shipped.name).write_bytes(shipped.read_bytes())


def read_presets(folder: Path) -> None:
    before = os.environ.get("G1JAX_ENVS")
    os.environ["G1JAX_ENVS"] = str(folder)
    try:
        for game_id in ("game_2048", "swap"):
            for name in list(envs.presets(game_id))[:3]:
                envs.make(game_id, preset=name)
    finally:
        del os.environ["G1JAX_ENVS"]
        if before is not None:
            os.environ["G1JAX_ENVS"] = before


# Runs and evaluations


def make_results(folder: Path) -> None:
    sums = Sums(np.arange(4.0), np.full(4, 3.0))
    metrics = {"score": Interval(1.5, 1.0, 2.0), "reasoning": Interval(float("nan"), float("nan"), float("nan"))}
    game = results.GameResult("swap", {"rows": 4}, "score", metrics, {"reward": [0.0, None]}, {"score": sums})
    results.save(results.Result({"name": "a"}, {"episodes": 4, "steps": 2, "seed": 0}, {"swap": game}), folder)


def read_results(folder: Path) -> None:
    found = results.load(folder)
    with contextlib.suppress(EvaluationError):  # about two results, which are named instead of the file
        results.compare(found, found)


def make_metrics(folder: Path) -> None:
    line = '{"step": %d, "phase": "rl", "swap/perception": 0.5, "swap/reasoning": null, "swap/reward": 0.25}\n'
    (folder / "metrics.jsonl").write_text("".join(line % step for step in range(1, 6)))


def read_curves(folder: Path) -> None:
    report.read_curves(folder)


def make_run(folder: Path) -> None:
    run_folder.RunFolder(tiny.make_experiment("model", folder)).create()
    known: dict[str, dict[str, Any]] = cast(Any, tiny.LEVELS)
    levels = {game_id: keys_of(envs.make(game_id, **keys).level) for game_id, keys in known.items()}
    (folder / saved_setup.LEVELS).parent.mkdir(parents=True)
    (folder / saved_setup.LEVELS).write_text(json.dumps(levels))
    (folder / saved_setup.MODEL).mkdir()
    (folder / saved_setup.MODEL / saved_model.PROMPTS).write_text(json.dumps(tiny.PROMPTS))
    (folder / saved_setup.SOURCES).write_text('{"format": 1, "pictures": {"swap": "0123"}}')
    make_metrics(folder)
    checksums.write(folder)


def read_config(folder: Path) -> None:
    """As in analysis and when resuming a run."""
    run_folder.read_config(folder)
    run_folder.RunFolder(tiny.make_experiment("model", folder))


def read_levels(folder: Path) -> None:
    saved_setup.read_games(folder, tiny.LEVELS)
    saved_model.prompts_of(folder / saved_setup.MODEL)


def read_metrics(folder: Path) -> None:
    """As when resuming at step 3: unreadable lines are removed, and all others can be read."""
    metrics_file.cut_after(folder / "metrics.jsonl", 3)
    assert all(line["step"] <= 3 for line in metrics_file.read_lines(folder / "metrics.jsonl"))


def check_files(folder: Path) -> None:
    checksums.check(folder)


def make_exchanges(folder: Path) -> None:
    with ExchangeLog(folder / "log.jsonl", {"model": "a", "seed": 0}) as log:
        for step in range(4):
            log.append({"episode": 0, "step": step, "board": "2 | -", "response": "<answer>1</answer>", "tries": 1})


def read_exchanges(folder: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()), ExchangeLog(folder / "log.jsonl", {"model": "a", "seed": 0}) as log:
        for line in log.answered.values():
            reply_of(line)


def make_body(folder: Path) -> None:
    message = {"role": "assistant", "content": "<answer>1</answer>", "reasoning_content": "So."}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    body = {"id": "a", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
    (folder / "body.json").write_text(json.dumps(body))


def read_completion(folder: Path) -> None:
    """As a client reads a server's reply: errors that it treats as a failed attempt count as rejections."""
    client = cast(Client, SimpleNamespace(redact=lambda text: text))
    try:
        reply = Client._parse(client, read_body((folder / "body.json").read_bytes()))
    except (UntrustedError, TypeError, AttributeError, LookupError) as error:
        raise G1Error(f"{folder}: {error!r:.200}") from None
    assert len(json.dumps(vars(reply))) < 2**22


def make_saved_pictures(folder: Path) -> None:
    images.save_images(images.load_images("digits", 4), folder / "swap.npz")


def read_saved_pictures(folder: Path) -> None:
    images.load_images(str(folder / "swap.npz"), 2)


BATCH = "data_batch_1"
READERS: dict[str, Reader] = {
    "model config": Reader(make_model, vlm.load_config, {"config.json": mutate_json}),
    "weights": Reader(make_model, read_weights, {"model.safetensors": mutate_bytes}, is_slow=True),
    "weights' index": Reader(
        functools.partial(make_model, max_shard_bytes=4000), read_weights, {weights.INDEX: mutate_json}, is_slow=True
    ),
    "tokenizer": Reader(make_tokenizer, read_tokenizer, {"tokenizer.json": mutate_json}),
    "tokenizer of transformers": Reader(
        write_qwen_folder,
        read_tokenizer,
        dict.fromkeys(("tokenizer.json", "tokenizer_config.json"), mutate_json),
        is_slow=True,
    ),
    "dataset": Reader(make_dataset, read_rows, {JSONL: mutate_json_lines, "images/game_2048_000001.png": mutate_bytes}),
    "dataset in parquet": Reader(functools.partial(make_dataset, form="parquet"), read_rows, {PARQUET: mutate_bytes}),
    "dataset's settings": Reader(make_dataset, read_about, {ABOUT: mutate_json}),
    "images": Reader(make_pictures, read_pictures, dict.fromkeys(("PNG", "JPEG", "WEBP"), mutate_bytes)),
    "CIFAR-10 in Python": Reader(
        lambda folder: make_cifar(folder, cifar.python_files()),
        read_cifar,
        {BATCH: mutate_bytes, "batches.meta": mutate_bytes},
    ),
    "CIFAR-10 in binary": Reader(
        lambda folder: make_cifar(folder, cifar.binary_files()),
        read_cifar,
        {f"{BATCH}.bin": mutate_bytes, "batches.meta.txt": mutate_bytes},
    ),
    "CIFAR-10 archive": Reader(make_cifar_archive, read_cifar, {"cifar-10-python.tar.gz": mutate_bytes}),
    "presets": Reader(
        make_presets, read_presets, {f"{name}.toml": mutate_toml for name in ("game_2048", "swap")}, is_slow=True
    ),
    "results": Reader(make_results, read_results, {"results.json": mutate_json}),
    "curves": Reader(make_metrics, read_curves, {"metrics.jsonl": mutate_json_lines}),
    "run's config": Reader(make_run, read_config, {"config.json": mutate_json}),
    "run's levels": Reader(
        make_run,
        read_levels,
        dict.fromkeys((saved_setup.LEVELS, f"{saved_setup.MODEL}/prompts.json", saved_setup.SOURCES), mutate_json),
        is_slow=True,
    ),
    "run's metrics": Reader(make_run, read_metrics, {"metrics.jsonl": mutate_json_lines}),
    "run's checksums": Reader(make_run, check_files, {checksums.CHECKSUMS: mutate_json, "config.json": mutate_json}),
    "exchanges": Reader(make_exchanges, read_exchanges, {"log.jsonl": mutate_json_lines}),
    "server's answer": Reader(make_body, read_completion, {"body.json": mutate_json}),
    "run's pictures": Reader(make_saved_pictures, read_saved_pictures, {"swap.npz": mutate_bytes}),
}
"""By name."""
