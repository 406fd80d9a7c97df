"""The command `g1jax`: one word for each program, such as `g1jax train --help`."""

import importlib
import os
import sys
from collections.abc import Sequence

from g1jax import __version__
from g1jax.errors import unknown

PROGRAMS = {
    "train": "a supervised cold start, then RL",
    "evaluate": "metrics of a player on the games, a report page, comparisons",
    "analyze": "perception and reasoning over training runs",
    "dataset": "a dataset of demonstrations",
    "play": "a game by hand, in the terminal",
    "serve": "the games as OpenEnv environments",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program that the first argument names; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    name, *rest = given or ["--help"]
    if name in ("--help", "-h"):
        print("usage: g1jax PROGRAM [OPTIONS]; g1jax PROGRAM --help has its options\n")
        print("\n".join(f"    {program:10}{about}" for program, about in PROGRAMS.items()))
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in PROGRAMS:
        print(f"g1jax: {unknown('program', name, PROGRAMS)}", file=sys.stderr)
        return 1
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        program = importlib.import_module(f"g1jax.programs.{name}")  # each has dependencies of its own
    except ModuleNotFoundError as error:
        if name != "serve" or (error.name or "").startswith("g1jax"):
            raise
        print(f"g1jax: the server needs {error.name}: pip install 'g1jax[openenv]'", file=sys.stderr)
        return 1
    status: int = program.main(rest, f"g1jax {name}")
    if name == "train":
        program.leave(status)
    return status
