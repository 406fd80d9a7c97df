"""The program `g1jax train`: an experiment with typed overrides, on one or several hosts."""

import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax

from g1jax.errors import ExperimentError, G1Error
from g1jax.programs import command_line
from g1jax.programs.machine import keep_programs, require_devices, use_cores
from g1jax.rl.algorithm import algorithm_names, make_algorithm
from g1jax.training.config import Experiment, check_experiment
from g1jax.training.experiments import experiment_names, load_experiment
from g1jax.training.loop import TrainingError, run
from g1jax.training.progress import Display, Progress
from g1jax.training.run_folder import with_imports
from g1jax.training.stopping import STOPPED_NOW

DESCRIPTION = """Trains a policy: a supervised cold start on perception, reasoning and action, then RL.

    {command} --experiment=g1_multigame
    {command} --experiment=g1_swap --rl.lr=1e-4 --model=micro --workdir=runs/swap
    {command} --experiment=g1_multigame --help        # every setting

The same command resumes a run whose folder exists. On several hosts, start it on each: see docs/tpu.md.
"""
DEFAULT = "g1_multigame"
SHORT_NAMES = {
    "--rl.lr": "--rl.optimizer.lr",
    "--rl.learning-rate": "--rl.optimizer.lr",
    "--rl.warmup": "--rl.optimizer.warmup",
    "--rl.kl-coefficient": "--rl.algorithm.kl-coefficient",
    "--rl.entropy-coefficient": "--rl.algorithm.entropy-coefficient",
    "--cold-start.lr": "--cold-start.optimizer.lr",
    "--cold-start.learning-rate": "--cold-start.optimizer.lr",
    "--cold-start.warmup": "--cold-start.optimizer.warmup",
}
ALSO = {
    "--experiment": f"{', '.join(experiment_names())}; or a file.py. Its settings are the defaults below",
    "--rl.algorithm": ", ".join(algorithm_names()),
    **{short: f"short for {name}" for short, name in SHORT_NAMES.items()},
}
"""Options that are no fields of an experiment, and what they mean or may be."""


def main(arguments: Sequence[str], command: str) -> int:
    """Runs an experiment; returns the exit status: 0, 1 after printing an error in one line, or 130 after Ctrl-C twice.

    A run that a signal stopped, and that can be resumed, has its `log.stopped_status`.
    """
    with command_line.own_process():
        try:
            experiment = parse(arguments, DESCRIPTION.format(command=command), command)
            keep_programs()
            use_cores_for(experiment)
            _initialize_distributed()
            require_devices()
            progress = Display() if jax.process_index() == 0 else Progress()
            run(experiment, progress=progress)
        except (G1Error, TrainingError, OSError) as error:
            print(f"error: {command_line.one_line(error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(STOPPED_NOW, file=sys.stderr)
            return 130
    return experiment.log.stopped_status if progress.is_stopped else 0


def leave(status: int) -> NoReturn:
    """Ends the process without waiting for a step that is still being compiled.

    Several processes wait, since they leave in order.
    """
    if status == 130 or (status == 0 and jax.process_count() == 1):
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def parse(arguments: Sequence[str], description: str, command: str | None = None) -> Experiment:
    """The experiment that `--experiment=…` names, with the other arguments as overrides.

    Raises:
        ExperimentError: there is no such experiment, or an override is unknown, of the wrong type or out of range.
        SystemExit: `--help`.
    """
    imports, rest = command_line.import_games(arguments)
    name, rest = command_line.pop_option("--experiment", rest)
    default = load_experiment(name or DEFAULT)
    default = dataclasses.replace(default, imports=imports or command_line.absolute(default.imports))
    algorithm, rest = command_line.pop_option("--rl.algorithm", rest)
    if algorithm:
        default = dataclasses.replace(default, rl=dataclasses.replace(default.rl, algorithm=make_algorithm(algorithm)))
    try:
        also = "\n".join(f"    {option}  {meaning}" for option, meaning in ALSO.items())
        description = f"{description.rstrip()}\n\nAlso:\n\n{also}"
        experiment = command_line.parse(
            Experiment, [_full_name(a) for a in rest], description, default, tuple(ALSO), command
        )
    except command_line.UsageError as error:
        raise ExperimentError(str(error)) from None
    experiment = with_imports(experiment)
    check_experiment(experiment)
    return experiment


def _full_name(argument: str) -> str:
    """`--rl.optimizer.lr=1e-4` for `--rl.lr=1e-4`."""
    name, equals, value = argument.partition("=")
    return f"{SHORT_NAMES.get(name.replace('_', '-'), name)}{equals}{value}"


def use_cores_for(e: Experiment) -> None:
    """On a CPU: makes one device per core, or as many as fit the mesh and the batch sizes."""
    cold, rl = e.cold_start, e.rl
    rows = (
        e.mesh.data,
        cold.states // max(cold.microbatches, 1) if cold.steps else 0,
        rl.states // (rl.minibatching.minibatches * rl.minibatching.microbatches) if rl.iterations else 0,
    )
    use_cores(math.gcd(*rows), max(e.mesh.fsdp * e.mesh.tensor, 1), len(e.games))


def _initialize_distributed() -> None:
    """Connects the processes of this run, if there are several.

    JAX detects them on TPU VMs and under Slurm. Elsewhere, each process needs JAX_COORDINATOR_ADDRESS (host:port of the
    first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    values = [os.environ.get(name, "") for name in names]
    if all(values):
        address, count, index = values
        numbers = f"{names[1]}={count}, {names[2]}={index}"
        ExperimentError.require(count.isdecimal() and index.isdecimal(), f"{numbers}: expected whole numbers")
        ExperimentError.require(int(index) < int(count), f"{numbers}: process ids start at 0")
        host, _, port = address.rpartition(":")
        ExperimentError.require(host != "" and port.isdecimal(), f"{names[0]}={address}: expected host:port")
        _connect(address, int(count), int(index))
        return
    ExperimentError.require(not any(values), f"set all of {', '.join(names)}, or none")
    is_tpu = importlib.util.find_spec("libtpu") is not None and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    tasks = os.environ.get("SLURM_NTASKS") or "1"
    ExperimentError.require(tasks.isdecimal(), f"SLURM_NTASKS={tasks}: expected a whole number")
    if is_tpu or int(tasks) > 1:
        _connect()
        if _has_all_visible_gpus(os.environ):
            jax.config.update("jax_cuda_visible_devices", "all")


def _has_all_visible_gpus(environment: Mapping[str, str]) -> bool:
    """Whether all GPUs that a Slurm task sees are its own: it is alone on its node, or was given a single one.

    Under Slurm JAX takes the GPU with the task's number on its node, which is right for several tasks that see the GPUs
    of all. SLURM_STEP_TASKS_PER_NODE is like `8(x2),4`: the tasks on each node, here of two nodes and a third.
    """
    if "SLURM_LOCALID" not in environment:
        return False
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        counts += [int(found[1])] * int(found[2] or 1) if found else []
    node = environment.get("SLURM_NODEID", "0")
    is_alone = node.isdecimal() and int(node) < len(counts) and counts[int(node)] == 1
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return is_alone or (visible != "" and "," not in visible)


def _connect(*arguments: Any) -> None:
    try:
        jax.distributed.initialize(*arguments)
    except (RuntimeError, ValueError) as error:
        raise ExperimentError(f"the processes of this run cannot connect: {error}") from error
