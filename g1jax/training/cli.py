"""The command line of the main job: an experiment, typed overrides, errors in one line, several hosts."""

import sys
from collections.abc import Sequence

import jax
import tyro

from g1jax.envs.level import LevelError
from g1jax.rl.algorithm import AlgorithmError
from g1jax.training.config import Experiment, ExperimentError
from g1jax.training.experiments import load_experiment
from g1jax.vlm import ConfigError

DEFAULT = "g1_multigame"
SHORT_NAMES = {"lr": "optimizer.lr", "warmup": "optimizer.warmup"}


def main(arguments: Sequence[str], description: str) -> int:
    """Runs an experiment; gives the exit status: 0, or 1 after a line that says what is wrong."""
    try:
        experiment = parse(arguments, description)
        _begin_hosts()
        from g1jax.training.loop import run
        from g1jax.training.progress import Display, Progress

        run(experiment, progress=Display() if jax.process_index() == 0 else Progress())
    except _errors() as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint stands", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str], description: str) -> Experiment:
    """The experiment that `--experiment=…` names, with the other arguments as overrides.

    Raises:
        ExperimentError: there is no such experiment.
        SystemExit: an unknown or ill-typed override, with the help text's hint; or `--help`.
    """
    name, rest = _take_experiment(list(arguments))
    default = load_experiment(name)
    return tyro.cli(Experiment, default=default, args=[_full_name(a) for a in rest], description=description)


def _take_experiment(arguments: list[str]) -> tuple[str, list[str]]:
    for i, argument in enumerate(arguments):
        if argument.startswith("--experiment="):
            return argument.split("=", 1)[1], arguments[:i] + arguments[i + 1 :]
        if argument == "--experiment":
            if i + 1 == len(arguments):
                raise ExperimentError("--experiment: a name is missing")
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
    return DEFAULT, arguments


def _full_name(argument: str) -> str:
    """`--rl.lr=1e-4` for `--rl.optimizer.lr=1e-4`."""
    for phase in ("rl", "cold-start", "cold_start"):
        for short, long in SHORT_NAMES.items():
            for end in ("=", ""):
                if argument.startswith(f"--{phase}.{short}{end}") and (end or argument == f"--{phase}.{short}"):
                    return argument.replace(f"{phase}.{short}", f"{phase}.{long}", 1)
    return argument


def _begin_hosts() -> None:
    """Joins the other hosts, where an environment says that there are some: a TPU pod, or JAX_COORDINATOR_ADDRESS."""
    import os

    if os.environ.get("JAX_COORDINATOR_ADDRESS") or len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        jax.distributed.initialize()


def _errors() -> tuple[type[Exception], ...]:
    from g1jax.training.loop import TrainingError
    from g1jax.vlm import WeightsError

    return ExperimentError, ConfigError, LevelError, AlgorithmError, WeightsError, TrainingError, OSError


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
