"""A model and levels so small that whole runs take seconds; shared by several tests and their subprocesses."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from g1jax import vlm
from g1jax.rl.minibatching import Minibatching
from g1jax.training import saved_setup
from g1jax.training.config import RL, ColdStart, Evaluation, Experiment, Log, Optimizer
from g1jax.training.setup import Setup
from g1jax.vlm.lora import LoRA
from tests.conftest import REPOSITORY

TOKENIZER = vlm.Tokenizer.load("games")
CONFIG = vlm.Config(
    vision=vlm.VisionConfig(
        depth=1, hidden_size=16, intermediate_size=32, num_heads=2, full_attention_blocks=(0,), temporal_patch_size=1
    ),
    text=vlm.TextConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2,
        num_kv_heads=2, positions="sequence", rope_theta=10_000.0, max_length=256,
    ),
)  # fmt: skip
LEVELS = {
    "game_2048": {"rows": 2, "cols": 2},
    "shisen_sho": {"rows": 2, "cols": 2},
}
BOTH = ("game_2048", "shisen_sho")
PROMPTS = {"game_2048": "2048", "shisen_sho": "Pairs"}
FEW: dict[str, Any] = {
    "games": ("game_2048",),
    "cold_start__steps": 2,
    "cold_start__states": 8,
    "cold_start__optimizer": Optimizer(lr=1e-5),
    "rl__iterations": 2,
    "rl__states": 8,
    "rl__optimizer": Optimizer(lr=1e-5),
    "evaluation__episodes": 5,  # not divisible by any mesh of the tests
    "evaluation__cold_start_episodes": 5,
    "evaluation__steps": 3,
}
"""Changes of `make_experiment`: few steps, on several devices."""
EVERY = FEW | {
    "games": BOTH,
    "is_remat": True,
    "is_scanned": True,
    "attention": "blockwise",
    "rl__states": 16,
    "rl__compact_every": 4,
    "rl__rollout_parts": 2,
    "rl__decoding": "joint",
    "rl__minibatching": Minibatching(microbatches=2, length_buckets=3),
}
"""And every setting that large models need."""
ADAPTED = EVERY | {"lora": LoRA(rank=2), "observation": ("picture", "caption")}
"""Of which some replace others: LoRA, and prompts with the board as text."""
NARROW = EVERY | {"dtype": "bfloat16", "param_dtype": "bfloat16"}


def save_model(folder: Path) -> str:
    """A folder with the tiny model's random weights and its tokenizer."""
    vlm.save(CONFIG, vlm.init(CONFIG, jax.random.key(0)), folder)
    TOKENIZER.save(folder)
    return str(folder)


def make_experiment(model: str, workdir: Path | str, **changes: Any) -> Experiment:
    """A cold start that learns the response format, so that rewards differ, and 4 iterations of RL, of one game.

    `changes` are fields; nested ones are written `rl__states=8`.
    """
    experiment = Experiment(
        name="tiny",
        games=("game_2048",),
        levels=LEVELS,
        prompts=PROMPTS,
        model=model,
        max_new_tokens=48,
        workdir=str(workdir),
        cold_start=ColdStart(steps=60, states=4, optimizer=Optimizer(lr=2e-2)),
        rl=RL(iterations=4, states=4, num_samples=4, source="play", optimizer=Optimizer(lr=1e-3)),
        evaluation=Evaluation(episodes=2, steps=2),
        log=Log(samples_every=2, checkpoint_every=20),
    )
    for key, value in changes.items():
        part, _, field = key.partition("__")
        if field:
            value = dataclasses.replace(getattr(experiment, part), **{field: value})
        experiment = dataclasses.replace(experiment, **{part: value})
    return experiment


def write_experiment(file: Path, model: str, workdir: Path | str, **changes: Any) -> str:
    """Writes a file for `--experiment=…` that returns `make_experiment` of these arguments."""
    file.write_text(
        "from g1jax.rl.minibatching import Minibatching\nfrom g1jax.training.config import Optimizer\n"
        "from g1jax.vlm.lora import LoRA\n"
        "from tests.training import tiny\n\n\ndef get_config():\n"
        f"    return tiny.make_experiment({model!r}, {str(workdir)!r}, **{changes!r})\n"
    )
    return str(file)


def environment(num_devices: int = 1) -> dict[str, str]:
    """The environment of a subprocess: this repository, the compilation cache, fake devices.

    With one device it has as many threads as this process, since the last digits of results depend on their number.
    Several devices need the threads that the program asks for: with fewer they wait for each other for ever.
    """
    threads = {"PJRT_NPROC": str(os.cpu_count() or 1)} if num_devices == 1 else {}
    return {
        **threads,
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # On a busy machine a device or process may wait for the others longer than XLA's default timeout.
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=900",
    }


def start(*arguments: str, num_devices: int = 1, extra: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """Starts `python train/main.py` as a subprocess, with `extra` in its environment."""
    return subprocess.Popen(
        [sys.executable, "train/main.py", *arguments],
        cwd=REPOSITORY,
        env=environment(num_devices) | (extra or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def metrics_of(workdir: Path) -> bytes:
    """The bytes of a run's metrics file."""
    return (workdir / "metrics.jsonl").read_bytes()


def save_setup(folder: Path, setup: Setup, weights: Path | None) -> None:
    """Saves a run's setup in its folder, as the loop does."""
    saved_setup.save_setup(
        folder,
        setup.games,
        setup.policy,
        setup.datasets,
        dataset=setup.experiment.cold_start.dataset,
        weights=weights,
        is_frozen=setup.lora is not None,
    )
