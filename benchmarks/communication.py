"""The communication volume of a training step on fake devices; see train.py."""

import dataclasses
import functools
import os
import sys
from typing import Any

import jax
import numpy as np
from phases import learn_from, respond

from envs import Row, print_table
from g1jax.training import load_experiment, steps
from g1jax.training.collectives import SHARES, Traffic, sent_bytes, traffic_of
from g1jax.training.setup import Setup, make_setup
from g1jax.vlm.qwen import shape_of
from g1jax.vlm.sharding import make_mesh

NUM_DEVICES = 8
MESHES = {
    "nano": ((1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)),
    "7B": ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)),
}
PART = {"nano": 4, "7B": 16}  # states of a game for each shard of the batch

TRAFFIC_HEADER = ("mesh", "states a game", *SHARES, "together")


def use_fake_devices() -> None:
    """Restarts the process with 8 fake devices on this machine's CPU."""
    flag = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.execv(sys.executable, [sys.executable, *sys.argv])


def print_communication(name: str, meshes: str | None) -> None:
    """Megabytes that a device sends, as compiled for a CPU; for 7B halved, as float32 is compiled for bfloat16."""
    wanted = [tuple(map(int, mesh.split("."))) for mesh in meshes.split(",")] if meshes else MESHES[name]
    tables: dict[str, list[Row]] = {}
    for data, fsdp, tensor in wanted:
        setup = scaled_setup(name, (data, fsdp, tensor))
        for what, traffic in traffic_by_part(setup).items():
            scale = 0.5 if name == "7B" else 1.0
            row = [f"{traffic[kind].sent * scale / 1e6:.3f}" for kind in SHARES]
            states = str(setup.experiment.rl.states)
            row += [f"{sent_bytes(traffic) * scale / 1e6:.3f}"]
            tables.setdefault(what, []).append((f"{data} × {fsdp} × {tensor}", states, *row))
        print(f"{name} {data} × {fsdp} × {tensor}: done", file=sys.stderr, flush=True)
    for what, rows in tables.items():
        print_table(f"{name}, {what}: MB that each device sends", TRAFFIC_HEADER, rows)


def scaled_setup(name: str, shape: tuple[int, int, int]) -> Setup:
    """A model's recipe with a batch that grows with the mesh: the same number of states per shard of the batch."""
    e = load_experiment("qwen2_5_vl_7b" if name == "7B" else "g1_multigame")
    states = PART[name] * shape[0] * shape[1]
    rl, cold = dataclasses.replace(e.rl, states=states), dataclasses.replace(e.cold_start, steps=0)
    games = ("shisen_sho",) if name == "7B" else e.games
    mesh = dataclasses.replace(e.mesh, data=1, fsdp=1, tensor=NUM_DEVICES)
    model = "nano" if name == "7B" else e.model
    e = dataclasses.replace(e, rl=rl, cold_start=cold, games=games, mesh=mesh, model=model, dtype="float32",
                            param_dtype="float32")  # fmt: skip
    setup = make_setup(e)
    num_devices = int(np.prod(shape))
    setup = dataclasses.replace(setup, mesh=make_mesh(*shape, devices=jax.devices()[:num_devices]))
    if name == "nano":
        return setup
    nano = setup.policy.config
    tokens = {
        f"{token}_token_id": getattr(nano, f"{token}_token_id") for token in ("image", "vision_start", "vision_end")
    }
    config = shape_of("7B", is_scanned=True, is_remat=True, **tokens)
    return dataclasses.replace(setup, policy=dataclasses.replace(setup.policy, config=config))


def traffic_by_part(setup: Setup) -> dict[str, dict[str, Traffic]]:
    """The traffic of an update, of prefill, and of decoding a token; allocates nothing."""
    with jax.set_mesh(setup.mesh):
        state = steps.template(setup, setup.experiment.num_steps)
        constants = steps.constants_of(setup, None)
        key = jax.eval_shape(jax.random.key, 0)
        shapes = [vec_states(setup, i) for i in range(len(setup.games))]
        rollouts = tuple(
            rows_of(
                setup,
                jax.eval_shape(functools.partial(steps._roll_out, setup.rl, i), state.trained, constants.table, *args),
            )
            for i, args in enumerate((states.states, key) for states in shapes)
        )
        made = [rollout for rollout, _ in rollouts]
        learn = learn_from.lower(setup.rl, state.trained, state.opt_state, state.reference, constants, made, key)
        short = dataclasses.replace(setup.policy, budget=64)  # one loop over tokens
        frames = [rollout.frames for rollout, _ in rollouts]
        generate = respond.lower(setup.rl, short, state.trained, constants.table, frames, key)
        learning, generation = (str(lowered.compile().as_text()) for lowered in (learn, generate))
    read, more = (traffic_of(generation, unknown_trips=trips) for trips in (0, 1))
    token = {kind: more[kind] + read[kind] * -1 for kind in SHARES}
    return {"an update": traffic_of(learning), "prefill": read, "decoding one token": token}


def vec_states(setup: Setup, index: int) -> Any:
    vec = setup.rl.source.envs[index]
    return rows_of(setup, jax.eval_shape(vec.reset, jax.random.key(0)))


def rows_of(setup: Setup, shapes: Any) -> Any:
    """Shapes with the shardings of a run."""

    return steps.with_shardings(shapes, jax.tree.map(setup.placement.row_sharding, shapes))
