"""The communication volume of a training step on fake devices; see train.py."""

import dataclasses
import math
import os
import sys
from typing import Any

import jax
from phases import learn_from, respond

from envs import Row, print_table
from g1jax.training import load_experiment, steps
from g1jax.training.collectives import SHARES, Traffic, sent_bytes, traffic_of
from g1jax.training.config import Mesh
from g1jax.training.setup import Setup, make_setup

NUM_DEVICES = 8
MESHES = ((1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))
PART = 4  # states of a game for each shard of the batch

TRAFFIC_HEADER = ("mesh", "states a game", *SHARES, "together")


def use_fake_devices() -> None:
    """Restarts the process with 8 fake devices on this machine's CPU."""
    flag = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.execv(sys.executable, [sys.executable, *sys.argv])


def print_communication(meshes: str | None) -> None:
    """Megabytes that a device sends in the main job, as compiled for a CPU; scripts/plan.py has large models."""
    wanted = [tuple(map(int, mesh.split("."))) for mesh in meshes.split(",")] if meshes else MESHES
    tables: dict[str, list[Row]] = {}
    for data, fsdp, tensor in wanted:
        setup = scaled_setup((data, fsdp, tensor))
        for what, traffic in traffic_by_part(setup).items():
            row = [f"{traffic[kind].sent / 1e6:.3f}" for kind in SHARES]
            states = str(setup.experiment.rl.states)
            row += [f"{sent_bytes(traffic) / 1e6:.3f}"]
            tables.setdefault(what, []).append((f"{data} × {fsdp} × {tensor}", states, *row))
        print(f"{data} × {fsdp} × {tensor}: done", file=sys.stderr, flush=True)
    for what, rows in tables.items():
        print_table(f"{what}: MB that each device sends", TRAFFIC_HEADER, rows)


def scaled_setup(shape: tuple[int, int, int]) -> Setup:
    """The main job with a batch that grows with the mesh: the same number of states per shard of the batch."""
    e = load_experiment("g1_multigame")
    rl = dataclasses.replace(e.rl, states=PART * shape[0] * shape[1])
    cold = dataclasses.replace(e.cold_start, steps=0)
    data, fsdp, tensor = shape
    e = dataclasses.replace(e, rl=rl, cold_start=cold, mesh=Mesh(data=data, fsdp=fsdp, tensor=tensor))
    return make_setup(e, devices=jax.devices()[: math.prod(shape)])


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
                jax.eval_shape(
                    lambda params, table, states, key, i=i: steps._roll_out(
                        setup.rl, (i,), params, table, (states,), (key,)
                    )[0],
                    state.trained,
                    constants.table,
                    states.states,
                    key,
                ),
            )
            for i, states in enumerate(shapes)
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
