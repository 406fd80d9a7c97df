"""Plans a run on accelerators that are not at hand: memory and traffic, by the compilers for them.

    pip install -e ".[plan-gpu]"       # for NVIDIA GPUs, without a driver; in an environment of its own
    pip install -e ".[plan-tpu]"       # for TPUs
    python scripts/plan.py --experiment=qwen2_5_vl_7b --for=h100x8
    python scripts/plan.py --experiment=qwen2_5_vl_7b --for=v5e-8 --model=qwen2_5_vl_3b --steps=rollout,update
    python scripts/plan.py --experiment=g1_multigame --for=h100x1 --rl.states=1024

Every setting of the experiment can be changed, as in training. `--for` is one of h100x1 to h100x8, h200x1 to h200x8,
v5e-8, v5p-8, v6e-8 and other slices. A 7B model takes some minutes a step, most of it compiling, and up to 20 GB.
Without the folder of an experiment's weights its model has the published shape of the same size.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from g1jax.errors import ExperimentError, G1Error
from g1jax.programs import command_line, train
from g1jax.training.plan import STEPS, StepPlan, longest_sequence, plan_step, verdict
from g1jax.training.plan_targets import Target, target_of
from g1jax.training.setup import make_setup

HEADER = (
    "step", "weights", "master", "moments", "reference", "KV cache", "working", "peak", "sent, GB", "a token, GB",
    "async", "compiled in",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Prints a Markdown table with a row a step; returns 0 if all fit, 3 if one does not, 1 after an error."""
    with command_line.own_process():
        try:
            target_name, arguments = command_line.pop_option("--for", list(arguments))
            steps_named, arguments = command_line.pop_option("--steps", arguments)
            target = target_of(target_name or "h100x8")
            steps = tuple(steps_named.split(",")) if steps_named else STEPS
            for step in steps:
                ExperimentError.require(step in STEPS, f"--steps={step}: expected some of {', '.join(STEPS)}")
            return print_plan(target, steps, arguments)
        except (G1Error, OSError) as error:
            print(f"error: {command_line.one_line(error)}", file=sys.stderr)
            return 1


def print_plan(target: Target, steps: Sequence[str], arguments: Sequence[str]) -> int:
    experiment = train.parse(arguments, __doc__ or "", "python scripts/plan.py")
    experiment = dataclasses.replace(experiment, model=_published(experiment.model))
    setup = make_setup(experiment, devices=target.devices())
    sizes = " × ".join(f"{name} {size}" for name, size in setup.mesh.shape.items())
    print(f"{experiment.name} on {target.name} ({sizes}), at most {longest_sequence(setup)} tokens; GiB a device.\n")
    print("| " + " | ".join(HEADER) + " |")
    print("|---|" + "---:|" * (len(HEADER) - 1))
    verdicts = []
    for step in steps:
        if step == "cold_start" and not experiment.cold_start.steps:
            continue
        try:
            plan = plan_step(setup, step)
        except Exception as error:  # XLA's own error, which has the compiler's reasons
            if isinstance(error, G1Error):
                raise
            line = str(error).strip().splitlines()[0][:200]
            verdicts.append((step, f"does not compile: {line}"))
            continue
        print("| " + " | ".join(row_of(plan)) + " |", flush=True)
        verdicts.append((step, verdict(plan, target.memory)))
    print()
    for step, line in verdicts:
        print(f"{step} {line}")
    return 0 if all(line.startswith("fits") for _, line in verdicts) else 3


def row_of(plan: StepPlan) -> list[str]:
    """The cells of a step's row."""
    parts = (plan.weights, plan.master, plan.moments, plan.reference, plan.cache, plan.working, plan.peak)
    return [
        plan.step,
        *(f"{part / 2**30:.2f}" for part in parts),
        f"{plan.sent / 1e9:.1f}",
        f"{plan.sent_a_token / 1e9:.3f}",
        f"{plan.num_async} of {plan.num_collectives}",
        f"{plan.seconds:.0f} s",
    ]


def _published(model: str) -> str:
    """The published shape of the same size in place of a folder that is not here."""
    if not Path(model).is_dir():
        for size in ("3b", "7b"):
            if f"-{size}-" in model.lower():
                return f"qwen2_5_vl_{size}"
    return model


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
