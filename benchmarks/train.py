"""Where a training step's time goes, startup time, host memory over a run, and communication volume.

    python benchmarks/train.py                                   # the main job's recipe: phases, and the first steps
    python benchmarks/train.py --states=4 --samples=2 --turns=2  # smaller
    python benchmarks/train.py --memory-steps=1000               # host memory over so many steps a phase, 20 or more
    python benchmarks/train.py --communication                   # on 8 fake devices; nothing is computed

As in the main job, each CPU core is a device. Each phase is a program of its own on the step's arrays. The phases and
the whole step run in rotation, and each number is a median over the rotations. The last two lines of a table show what
a single program of all phases saves.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from communication import print_communication, use_fake_devices
from phases import print_phases

from envs import Row, print_machine, print_table
from g1jax.programs import train
from g1jax.training import load_experiment, loop, run, steps
from g1jax.training.config import Experiment
from g1jax.training.precompile import compiling
from g1jax.training.progress import Progress
from g1jax.training.setup import load_params, make_setup


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="g1_multigame", help="its recipe (default: g1_multigame)")
    parser.add_argument("--model", help="another model")
    parser.add_argument("--games", help="ids, comma-separated")
    parser.add_argument("--states", type=int, help="states of a game, in both phases")
    parser.add_argument("--samples", type=int, help="responses to a state")
    parser.add_argument("--microbatches", type=int, help="in both phases")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--no-first-steps", action="store_true", help="leave the second table out")
    parser.add_argument("--memory-steps", type=int, default=0, help="steps of each phase; prints that table alone")
    parser.add_argument("--communication", action="store_true", help="prints that table alone")
    parser.add_argument("--meshes", help="data.fsdp.tensor, comma-separated, for --communication")
    parser.add_argument("--first-steps", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.communication:
        use_fake_devices()
        jax.config.update("jax_disable_most_optimizations", True)  # of machine code; collectives stay the same
        print_communication(args.meshes)
        return
    experiment = make_experiment(args)
    train.use_cores_for(experiment)
    if args.first_steps:
        print(json.dumps(first_seconds(experiment)))
        return
    print_machine()
    if args.memory_steps:
        print_table(
            f"{args.memory_steps} steps of each phase", MEMORY_HEADER, memory_rows(experiment, args.memory_steps)
        )
        return
    print_phases(experiment, args.turns)
    if not args.no_first_steps:
        print_table("The first steps, compiling included", FIRST_HEADER, first_rows(sys.argv[1:]))


def make_experiment(args: argparse.Namespace) -> Experiment:
    """The recipe with the requested changes."""
    e = load_experiment(args.experiment)
    states = {"states": args.states} if args.states else {}
    parts = {"microbatches": args.microbatches} if args.microbatches else {}
    samples = {"num_samples": args.samples} if args.samples else {}
    cold = dataclasses.replace(e.cold_start, **states, **parts)
    minibatching = dataclasses.replace(e.rl.minibatching, **parts)
    rl = dataclasses.replace(e.rl, **states, **samples, minibatching=minibatching)
    games = tuple(args.games.split(",")) if args.games else e.games
    return dataclasses.replace(e, cold_start=cold, rl=rl, model=args.model or e.model, games=games)


# The first steps

FIRST_HEADER = ("seconds, in a fresh process", "cold", "from the cache")


def first_rows(arguments: list[str]) -> list[Row]:
    """In two fresh processes; the first fills the persistent compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        command = [sys.executable, __file__, *arguments, "--first-steps"]
        found = [
            json.loads(subprocess.run(command, env=os.environ | cache, stdout=subprocess.PIPE, check=True).stdout)
            for _ in range(2)
        ]
    return [(name, *(f"{seconds[name]:.1f}" for seconds in found)) for name in found[0]]


def first_seconds(experiment: Experiment) -> dict[str, float]:
    """The seconds that each part of a run's startup takes."""
    times = [time.perf_counter()]
    setup = make_setup(experiment)
    with jax.set_mesh(setup.mesh), compiling(setup, 0) as wait:
        state, constants = jax.block_until_ready(steps.init_state(setup, load_params(setup)))
        times.append(time.perf_counter())
        state, *_ = jax.block_until_ready(loop._cold_step(setup, state, constants, None, wait)[:2])
        times.append(time.perf_counter())
        state = jax.block_until_ready(steps.start_rl(setup, state))
        wait(steps.RL)
        jax.block_until_ready(steps.rl_step(setup, state, constants))
        times.append(time.perf_counter())
    names = ("games, weights, first states", "first step of the cold start", "first iteration of RL")
    return dict(zip(names, np.diff(times).tolist(), strict=True))


# Memory, and programs compiled during a run

MEMORY_HEADER = (
    "phase",
    "steps",
    "2nd tenth, MB",
    "last tenth",
    "range of tenths",
    "of all steps",
    "compiled in the 1st tenth",
    "later",
)
TENTHS = 10  # the first is the warm-up, with the first checkpoint and the first samples, which compile small programs
COMPILED = "/jax/core/compile/backend_compile_duration"


class Watch(Progress):
    """Records the process's memory and the number of compilations after each step of a run."""

    def __init__(self) -> None:
        self.num_compiled = 0
        self.seen: dict[str, list[tuple[float, int]]] = {}
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, duration_secs: float, **_: Any) -> None:
        self.num_compiled += event == COMPILED

    def step(self, step: int, phase: str, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        jax.block_until_ready(jax.live_arrays())  # one device may be done while another still holds its temporaries
        seen = self.seen.setdefault(phase, [])
        seen.append((resident_megabytes(), self.num_compiled))


def memory_rows(experiment: Experiment, num_steps: int) -> list[Row]:
    """A whole run without evaluation, with files, samples and checkpoints: its peak memory in every tenth."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        run(
            dataclasses.replace(
                experiment,
                workdir=f"{folder}/run",
                cold_start=dataclasses.replace(experiment.cold_start, steps=num_steps),
                rl=dataclasses.replace(experiment.rl, iterations=num_steps),
                evaluation=dataclasses.replace(experiment.evaluation, episodes=0, cold_start_episodes=0),
            ),
            progress=watch,
        )
    rows: list[Row] = []
    for phase, seen in watch.seen.items():
        memory, compiled = map(np.array, zip(*seen, strict=True))
        first = len(memory) // TENTHS
        peaks = [part.max() for part in np.array_split(memory[first:], TENTHS - 1)]
        sizes = [f"{peaks[0]:.0f}", f"{peaks[-1]:.0f}", half_range(peaks), half_range(memory[first:])]
        later = [str(compiled[first] - compiled[0]), str(compiled[-1] - compiled[first])]
        rows.append((phase, str(len(memory)), *sizes, *later))
    return rows


def half_range(sizes: Any) -> str:
    """Half of the range, relative to its middle."""
    return f"±{(max(sizes) - min(sizes)) / (max(sizes) + min(sizes)):.1%}"


def resident_megabytes() -> float:
    """The process's resident memory; without /proc, its peak."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
