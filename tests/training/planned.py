"""Run on 8 fake devices by test_plan: prints what is planned for a tiny run, and what such a run holds.

python -m tests.training.planned MODEL_FOLDER
"""

import dataclasses
import json
import sys
from typing import Any

import jax

from g1jax.training import plan
from g1jax.training.config import Mesh
from g1jax.training.setup import Setup, load_params, make_setup
from g1jax.training.steps import init_state, start_rl
from tests.training import tiny


def setup_of(model: str, **changes: Any) -> Setup:
    changes = {"cold_start__states": 8, "rl__states": 16, "games": ("game_2048",), "mesh": Mesh(fsdp=8)} | changes
    return make_setup(tiny.make_experiment(model, "", **changes), devices=jax.devices())


def held(setup: Setup) -> dict[str, int]:
    """The bytes of a run's state in RL on the first device."""
    with jax.set_mesh(setup.mesh):
        state, _ = init_state(setup, load_params(setup))
        state = start_rl(setup, state)
    parts = {"weights": state.trained, "moments": state.opt_state, "reference": state.reference}
    first = jax.devices()[0]
    return {
        name: sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(tree)
            for shard in leaf.addressable_shards
            if shard.device == first
        )
        for name, tree in parts.items()
    }


def main(model: str) -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache may lack the names of scopes
    setup = setup_of(model)
    plans = {step: dataclasses.asdict(plan.plan_step(setup, step)) for step in plan.STEPS}
    plans["rollout in parts"] = dataclasses.asdict(plan.plan_step(setup_of(model, rl__rollout_parts=2), "rollout"))
    print(json.dumps({"plans": plans, "held": held(setup)}))


if __name__ == "__main__":
    main(sys.argv[1])
