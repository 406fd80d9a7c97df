"""Hand-made run folders: checkpoints of random weights, known metrics."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from g1jax import vlm
from g1jax.training.checkpoints import Checkpoints
from g1jax.training.run_folder import METRICS, RunFolder
from g1jax.training.setup import load_params, make_setup
from g1jax.training.steps import init_state
from tests.training import tiny


def make_run(folder: Path, model: str, seeds: Mapping[int, int], **changes: Any) -> Path:
    """A run of one small game without a cold start: random weights by step, from these seeds."""
    small = {"games": ("game_2048",), "max_new_tokens": 12, "cold_start__steps": 0, "rl__iterations": 20} | changes
    experiment = tiny.make_experiment(model, folder, **small)
    RunFolder(experiment).create()
    setup = make_setup(experiment)
    with jax.set_mesh(setup.mesh), Checkpoints(folder / "checkpoints", keep=10) as checkpoints:
        state, _ = init_state(setup, load_params(setup))
        for step, seed in seeds.items():
            params = setup.placement.shard_params(vlm.init(setup.policy.config, jax.random.key(seed)))
            checkpoints.save(step, dataclasses.replace(state, trained=params))
            checkpoints.wait()
    return folder


def write_metrics(folder: Path, perception: list[float], reasoning: list[float]) -> None:
    """The run's own curves of 2048, a point per step."""
    lines = [
        {"step": step, "phase": "rl", "game_2048/perception": p, "game_2048/reasoning": r}
        for step, (p, r) in enumerate(zip(perception, reasoning, strict=True), 1)
    ]
    (folder / METRICS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
