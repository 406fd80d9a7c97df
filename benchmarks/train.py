"""Where a training step's time goes, what it costs to begin, whether memory stays flat, and what devices send.

    python benchmarks/train.py                                   # the main job's recipe: phases, and the first steps
    python benchmarks/train.py --states=4 --samples=2 --turns=2  # smaller
    python benchmarks/train.py --memory-steps=1000               # host memory over so many steps a phase, 20 or more
    python benchmarks/train.py --communication=nano,7B           # on 8 fake devices; nothing is computed

As in the main job, each core of a CPU is a device. A phase is a program of its own on the step's arrays, all taking
turns with the whole step; a figure is the median of its turns. What one program of all phases saves, the last two lines
of a table show.
"""

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from vlm import take_turns

from envs import Row, count, print_machine, print_table  # the benchmarks beside this one
from g1jax.programs import train
from g1jax.rl.rewards import reward
from g1jax.rl.update import update
from g1jax.sft import demonstrations
from g1jax.sft.batch import to_batch
from g1jax.training import load_experiment, loop, run, steps
from g1jax.training.collectives import SHARES, Traffic, sent_bytes, traffic_of
from g1jax.training.config import Experiment
from g1jax.training.precompile import compiling
from g1jax.training.progress import Progress
from g1jax.training.setup import Setup, load_params, make_setup
from g1jax.training.steps import Constants, RunState
from g1jax.vlm import to_bytes
from g1jax.vlm.qwen import shape_of
from g1jax.vlm.sharding import BATCH, make_mesh

ENVIRONMENTS = ("states, frames", "bytes, parsing, branches, rewards")
NUM_DEVICES = 8
MESHES = {
    "nano": ((1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)),
    "7B": ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)),
}
PART = {"nano": 4, "7B": 16}  # states of a game for each part of the mesh that has rows of its own


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
    parser.add_argument("--communication", metavar="MODELS", help="nano, 7B; prints that table alone")
    parser.add_argument("--meshes", help="data.fsdp.tensor, comma-separated, for --communication")
    parser.add_argument("--first-steps", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.communication:
        use_fake_devices()
        jax.config.update("jax_disable_most_optimizations", True)  # of the machine code: what is sent stays the same
        for name in args.communication.split(","):
            print_communication(name, args.meshes)
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
    """The recipe with the changes that were asked for."""
    e = load_experiment(args.experiment)
    both = {key: value for key, value in (("states", args.states), ("microbatches", args.microbatches)) if value}
    samples = {"num_samples": args.samples} if args.samples else {}
    cold, rl = dataclasses.replace(e.cold_start, **both), dataclasses.replace(e.rl, **both, **samples)
    games = tuple(args.games.split(",")) if args.games else e.games
    return dataclasses.replace(e, cold_start=cold, rl=rl, model=args.model or e.model, games=games)


# An iteration of RL by phase

PHASE_HEADER = ("phase", "ms", "of the step")
Programs = Mapping[str, Callable[[], Any]]


def print_phases(experiment: Experiment, turns: int) -> None:
    setup = make_setup(experiment)
    with jax.set_mesh(setup.mesh):
        state, constants = steps.begin(setup, load_params(setup))
        rl, rl_state = experiment.rl, steps.begin_rl(setup, copy(state))
        programs, num_tokens = rl_programs(setup, rl_state, constants)
        times = take_turns(programs, turns)
        times["generation: decode"] -= times["generation: prefill"]
        rows = rl.states * len(setup.games)
        title = f"An iteration of RL: {rows} states of {len(setup.games)} games × {rl.num_samples} responses"
        print_table(title, PHASE_HEADER, phase_rows(times))
        whole = times.pop("the step")
        print(
            f"{1 / whole:.3g} steps/s, {rows * rl.num_samples / whole:.3g} responses/s, {num_tokens} tokens written: "
            f"{count(num_tokens / whole)} a second, while decoding {count(num_tokens / times['generation: decode'])}\n"
            f"environments, frames, parsing and rewards: {sum(times[name] for name in ENVIRONMENTS) / whole:.1%}\n"
        )
        times = take_turns(cold_programs(setup, state, constants), turns)
        rows = experiment.cold_start.states * len(setup.games)
        print_table(f"A step of the cold start: {rows} states", PHASE_HEADER, phase_rows(times))
        print(f"{1 / times['the step']:.3g} steps/s\n")


def phase_rows(times: Mapping[str, float]) -> list[Row]:
    """Each phase beside the whole, which is the last."""
    whole, parts = times["the step"], {name: time for name, time in times.items() if name != "the step"}
    listed = {**parts, "the phases together": sum(parts.values()), "the step": whole}
    return [(name, f"{time * 1e3:.1f}", f"{time / whole:.1%}") for name, time in listed.items()]


def copy(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(jnp.copy(leaf), leaf.sharding), tree)


class Kept:
    """State that a program gives away and gets back, call by call."""

    def __init__(self, value: Any) -> None:
        self.value = copy(value)


def rl_programs(setup: Setup, state: RunState, constants: Constants) -> tuple[Programs, int]:
    """The phases of an iteration and the whole, each ready to be called; and how many tokens are written in it."""
    keys = jax.random.split(jax.random.key(0), 4)
    _, _, rollouts = steps.rl_step(setup, copy(state), constants)
    envs, frames = begin_states(setup, state.play_envs, keys[0])
    params = jax.jit(setup.full_params)(state.trained, constants.frozen)
    writing = (params, constants.table, frames, keys[1])
    short = dataclasses.replace(setup.policy, budget=1)
    said = tuple((rollout.responses.tokens, rollout.responses.mask) for rollout in rollouts)
    learner, runner = Kept((state.trained, state.opt_state)), Kept(state)

    def learn() -> Any:
        learner.value = learn_from(setup, *learner.value, state.reference, constants, rollouts, keys[2])
        return jax.block_until_ready(learner.value)

    def step() -> Any:
        runner.value, *rest = steps.rl_step(setup, runner.value, constants)
        return jax.block_until_ready((runner.value, rest))

    programs = {
        "states, frames": lambda: jax.block_until_ready(begin_states(setup, state.play_envs, keys[0])),
        "generation: prefill": lambda: jax.block_until_ready(respond(setup, short, *writing)),
        "generation: decode": lambda: jax.block_until_ready(respond(setup, setup.policy, *writing)),
        "bytes, parsing, branches, rewards": lambda: jax.block_until_ready(
            judge(setup, constants.table, envs, said, keys[3])
        ),
        "update": learn,
        "the step": step,
    }
    return programs, sum(int(jnp.sum(mask)) for _, mask in said)


@functools.partial(jax.jit, static_argnums=0)
def begin_states(setup: Setup, envs: Any, key: Any) -> Any:
    """The states that are shown, and their frames."""
    if setup.experiment.rl.source != "play":
        envs = [steps.walk(setup, i, jax.random.fold_in(key, i)) for i in range(len(setup.games))]
    pairs = zip(setup.games, envs, strict=True)
    return envs, [jax.vmap(game.render)(state.states) for game, state in pairs]


@functools.partial(jax.jit, static_argnums=(0, 1))
def respond(setup: Setup, policy: Any, params: Any, table: Any, frames: Any, key: Any) -> Any:
    """Tokens alone: what makes bytes of them is not used, so it is not compiled."""
    n = setup.experiment.rl.num_samples
    said = [
        policy.respond(params, table, game, images, jax.random.fold_in(key, i), num_samples=n)
        for i, (game, images) in enumerate(zip(setup.games, frames, strict=True))
    ]
    return [(part.tokens, part.mask, part.logprobs) for part in said]


@functools.partial(jax.jit, static_argnums=0)
def judge(setup: Setup, table: Any, envs: Any, said: Any, key: Any) -> Any:
    """Tokens to bytes, their moves, what these lead to and earn, and the games played on."""
    out = []
    n = setup.experiment.rl.num_samples
    for game, vec, weights, state, (tokens, mask) in zip(
        setup.games, setup.play_envs, setup.weights, envs, said, strict=True
    ):
        text = to_bytes(table, tokens, mask, setup.policy.max_bytes(game))
        actions = jax.vmap(game.parse)(text).reshape(-1, n)
        _, results = jax.vmap(game.branch)(state.states, actions, jax.random.split(key, len(actions)))
        rewarded = jax.vmap(jax.vmap(functools.partial(reward, game, weights=weights), (0, None, 0)))
        rewards = rewarded(text.reshape(*actions.shape, -1), state.states, results)
        out.append((rewards, vec.step(state, actions[:, 0], key)[0]))
    return out


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def learn_from(
    setup: Setup, trained: Any, opt_state: Any, reference: Any, constants: Constants, rollouts: Any, key: Any
) -> Any:
    """The update, its results where they were before."""
    trained, opt_state, _ = update(
        setup.policy, setup.algorithm, setup.rl_optimizer, setup.minibatching, setup.games, trained, reference,
        opt_state, rollouts, key, num_samples=setup.experiment.rl.num_samples,
        full_params=lambda trained: setup.full_params(trained, constants.frozen),
    )  # fmt: skip
    where = setup.shardings(trained), setup.shardings(opt_state)
    return jax.lax.with_sharding_constraint((trained, opt_state), where)


# A step of the cold start by phase


def cold_programs(setup: Setup, state: RunState, constants: Constants) -> Programs:
    cold, key = setup.experiment.cold_start, jax.random.key(0)
    learner, runner = Kept(state), Kept(state)
    arguments = (setup.cold_envs, cold.random_moves, copy(state.cold_envs), key)
    _, made = demonstrations.next_demonstrations(*arguments)

    def tokens() -> Any:
        pairs = zip(setup.games, made, strict=True)
        return tuple(to_batch(setup.policy, game, own, setup.spread) for game, own in pairs)

    learned = tokens()

    def learn() -> Any:
        learner.value, metrics = steps.cold_step(setup, learner.value, constants, learned)
        return jax.block_until_ready((learner.value, metrics))

    def step() -> Any:
        runner.value, metrics = loop._cold_step(setup, runner.value, constants, lambda _: None)
        return jax.block_until_ready((runner.value, metrics))

    return {
        "states, frames, the teacher": lambda: jax.block_until_ready(demonstrations.next_demonstrations(*arguments)),
        "words to tokens, on the host": lambda: jax.block_until_ready(tokens()),
        "update": learn,
        "the step": step,
    }


# The first steps

FIRST_HEADER = ("seconds, in a fresh process", "cold", "from the cache")


def first_rows(arguments: list[str]) -> list[Row]:
    """In two fresh processes, of which the first fills the persistent cache of compiled programs."""
    with tempfile.TemporaryDirectory() as folder:
        how = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        command = [sys.executable, __file__, *arguments, "--first-steps"]
        found = [
            json.loads(subprocess.run(command, env=os.environ | how, stdout=subprocess.PIPE, check=True).stdout)
            for _ in range(2)
        ]
    return [(name, *(f"{seconds[name]:.1f}" for seconds in found)) for name in found[0]]


def first_seconds(experiment: Experiment) -> dict[str, float]:
    """How long what a run begins with takes."""
    from time import perf_counter

    times = [perf_counter()]
    setup = make_setup(experiment)
    with jax.set_mesh(setup.mesh), compiling(setup, 0) as wait:
        state, constants = jax.block_until_ready(steps.begin(setup, load_params(setup)))
        times.append(perf_counter())
        state, _ = jax.block_until_ready(loop._cold_step(setup, state, constants, wait))
        times.append(perf_counter())
        state = jax.block_until_ready(steps.begin_rl(setup, state))
        wait(steps.RL)
        jax.block_until_ready(steps.rl_step(setup, state, constants))
        times.append(perf_counter())
    names = ("games, weights, first states", "first step of the cold start", "first iteration of RL")
    return dict(zip(names, np.diff(times).tolist(), strict=True))


# Memory, and programs compiled on the way

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
    """Notes the process's memory and the number of compilations after each step of a run."""

    def __init__(self) -> None:
        self.num_compiled = 0
        self.seen: dict[str, list[tuple[float, int]]] = {}
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
        self.num_compiled += event == COMPILED

    def step(self, step: int, phase: str, figures: Mapping[str, float], timings: Mapping[str, float]) -> None:
        jax.block_until_ready(jax.live_arrays())  # one device may be done while another still holds its temporaries
        seen = self.seen.setdefault(phase, [])
        seen.append((resident_megabytes(), self.num_compiled))


def memory_rows(experiment: Experiment, num_steps: int) -> list[Row]:
    """A run as it is, with its files, samples and checkpoints, but no evaluation: the most it held in every tenth."""
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
        sizes = [f"{peaks[0]:.0f}", f"{peaks[-1]:.0f}", spread(peaks), spread(memory[first:])]
        later = [str(compiled[first] - compiled[0]), str(compiled[-1] - compiled[first])]
        rows.append((phase, str(len(memory)), *sizes, *later))
    return rows


def spread(sizes: Any) -> str:
    """How far the highest and the lowest are from the middle between them."""
    return f"±{(max(sizes) - min(sizes)) / (max(sizes) + min(sizes)):.1%}"


def resident_megabytes() -> float:
    """What the process holds now; where /proc does not tell, the most it ever held."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# What devices send each other

TRAFFIC_HEADER = ("mesh", "states a game", *SHARES, "together")


def use_fake_devices() -> None:
    """Starts over with 8 devices on this machine's CPU."""
    flag = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.execv(sys.executable, [sys.executable, *sys.argv])


def print_communication(name: str, meshes: str | None) -> None:
    """Megabytes that a device sends, as compiled for a CPU; of 7B as bfloat16, half of the float32 that is compiled."""
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
    """The recipe of a model with a batch that grows with the mesh: as many states for every part that has its own."""
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
    """Of the update, of reading the prompts, and of writing a token to each; nothing is allocated."""
    with jax.set_mesh(setup.mesh):
        state = steps.template(setup, setup.experiment.num_steps)
        constants = steps.constants_of(setup, None)
        key = jax.eval_shape(jax.random.key, 0)
        shapes = [vec_states(setup, i) for i in range(len(setup.games))]
        rollouts = tuple(
            rows_of(
                setup,
                jax.eval_shape(functools.partial(steps._roll_out, setup, i), state.trained, constants.table, *args),
            )
            for i, args in enumerate((states.states, key) for states in shapes)
        )
        learn = learn_from.lower(
            setup, state.trained, state.opt_state, state.reference, constants, [rollout for rollout, _ in rollouts], key
        )
        short = dataclasses.replace(setup.policy, budget=64)  # one loop over tokens
        frames = [rollout.frames for rollout, _ in rollouts]
        write = respond.lower(setup, short, state.trained, constants.table, frames, key)
        learnt, written = (str(lowered.compile().as_text()) for lowered in (learn, write))
    read, more = (traffic_of(written, open_turns=turns) for turns in (0, 1))
    token = {kind: more[kind] + read[kind] * -1 for kind in SHARES}
    return {"an update": traffic_of(learnt), "reading the prompts": read, "writing one token to each": token}


def vec_states(setup: Setup, index: int) -> Any:
    vec = setup.play_envs[index]
    return rows_of(setup, jax.eval_shape(vec.reset, jax.random.key(0)))


def rows_of(setup: Setup, shapes: Any) -> Any:
    """Arrays that are not there, their rows spread as in a run."""

    def place(leaf: Any) -> Any:
        parts = setup.mesh.shape["data"] * setup.mesh.shape["fsdp"]
        is_split = leaf.ndim and leaf.shape[0] % parts == 0
        sharding = setup.sharding(BATCH) if is_split else setup.sharding()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes)


if __name__ == "__main__":
    main()
