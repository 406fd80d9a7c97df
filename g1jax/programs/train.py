"""The command line of the main job: an experiment, typed overrides, errors in one line, several hosts."""

import dataclasses
import importlib.util
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

from g1jax.errors import ExperimentError, G1Error
from g1jax.programs import command_line
from g1jax.programs.machine import keep_programs, require_devices, use_cores
from g1jax.rl.algorithm import make_algorithm
from g1jax.training.config import Experiment, check_experiment
from g1jax.training.experiments import load_experiment
from g1jax.training.loop import TrainingError, run
from g1jax.training.progress import Display, Progress

DEFAULT = "g1_multigame"
SHORT_NAMES = {
    "lr": "optimizer.lr",
    "warmup": "optimizer.warmup",
    "kl-coefficient": "algorithm.kl-coefficient",
    "kl_coefficient": "algorithm.kl-coefficient",
    "entropy-coefficient": "algorithm.entropy-coefficient",
    "entropy_coefficient": "algorithm.entropy-coefficient",
}


def main(arguments: Sequence[str], description: str) -> int:
    """Runs an experiment; gives the exit status: 0, or 1 after a line that says what is wrong."""
    with command_line.own_process():
        return _main(arguments, description)


def _main(arguments: Sequence[str], description: str) -> int:
    try:
        experiment = parse(arguments, description)
        keep_programs()
        use_cores_for(experiment)
        _begin_hosts()
        require_devices()
        run(experiment, progress=Display() if jax.process_index() == 0 else Progress())
    except (G1Error, TrainingError, OSError) as error:
        print(f"error: {command_line.one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint stands", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str], description: str) -> Experiment:
    """The experiment that `--experiment=…` names, with the other arguments as overrides.

    Raises:
        ExperimentError: there is no such experiment, or an override is unknown, of the wrong type, or no value that its
            setting can have.
        SystemExit: `--help`.
    """
    name, rest = _take("--experiment", list(arguments))
    default = load_experiment(name or DEFAULT)
    algorithm, rest = _take("--rl.algorithm", rest)
    if algorithm:
        default = dataclasses.replace(default, rl=dataclasses.replace(default.rl, algorithm=make_algorithm(algorithm)))
    try:
        experiment = command_line.parse(Experiment, [_full_name(a) for a in rest], description, default)
    except command_line.UsageError as error:
        raise ExperimentError(str(error)) from None
    check_experiment(experiment)
    return experiment


def _take(key: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The value of one argument, empty if it is not there, and the other arguments."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{key}="):
            return argument.split("=", 1)[1], arguments[:i] + arguments[i + 1 :]
        if argument == key:
            if i + 1 == len(arguments) or arguments[i + 1].startswith("--"):
                raise ExperimentError(f"{key}: a name is missing")
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
    return "", arguments


def _full_name(argument: str) -> str:
    """`--rl.lr=1e-4` for `--rl.optimizer.lr=1e-4`."""
    for phase in ("rl", "cold-start", "cold_start"):
        for short, long in SHORT_NAMES.items():
            for end in ("=", ""):
                if argument.startswith(f"--{phase}.{short}{end}") and (end or argument == f"--{phase}.{short}"):
                    return argument.replace(f"{phase}.{short}", f"{phase}.{long}", 1)
    return argument


def use_cores_for(e: Experiment) -> None:
    """On a CPU: one device a core, or as many as the mesh asks for, or as many as the batches divide among."""
    cold, rl = e.cold_start, e.rl
    rows = (
        e.mesh.data,
        cold.states // max(cold.microbatches, 1) if cold.steps else 0,
        rl.states // (rl.minibatching.minibatches * rl.minibatching.microbatches) if rl.iterations else 0,
    )
    use_cores(math.gcd(*rows), max(e.mesh.fsdp * e.mesh.tensor, 1))


def _begin_hosts() -> None:
    """Joins the other processes of this run, where there are some.

    On TPU VMs, and under Slurm, JAX finds them. Elsewhere JAX_COORDINATOR_ADDRESS (host:port of the first process),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID tell, the same command being started as often.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name, "") for name in names]
    if all(given):
        address, count, index = given
        numbers = f"{names[1]}={count}, {names[2]}={index}"
        ExperimentError.require(count.isdecimal() and index.isdecimal(), f"{numbers}: whole numbers are wanted")
        ExperimentError.require(int(index) < int(count), f"{numbers}: they are counted from 0")
        host, _, port = address.rpartition(":")
        ExperimentError.require(host != "" and port.isdecimal(), f"{names[0]}={address}: host:port is wanted")
        _join(address, int(count), int(index))
        return
    ExperimentError.require(not any(given), f"of {', '.join(names)} all or none must be set")
    is_tpu = importlib.util.find_spec("libtpu") is not None and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    tasks = os.environ.get("SLURM_NTASKS") or "1"
    ExperimentError.require(tasks.isdecimal(), f"SLURM_NTASKS={tasks}: a whole number is wanted")
    if is_tpu or int(tasks) > 1:
        _join()


def _join(*arguments: Any) -> None:
    try:
        jax.distributed.initialize(*arguments)
    except (RuntimeError, ValueError) as error:
        raise ExperimentError(f"the processes of this run do not find each other: {error}") from error
