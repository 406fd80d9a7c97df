"""Puts a player through the games: figures with intervals, a report to look at, comparisons.

    python train/evaluate.py --player=random --games=all --episodes=1000 --steps=100 --seed=0 --out=evaluations/random
    python train/evaluate.py --player=runs/g1_swap --games=swap --film=gif
    python train/evaluate.py --player=openai --endpoint.model=… --endpoint.base-url=http://localhost:8000/v1
    python train/evaluate.py --compare evaluations/g1_swap evaluations/random

An evaluation through an endpoint that was cut short goes on where it stopped when the same command is run again. The
endpoint's key is read from OPENAI_API_KEY.
"""

import sys

from g1jax.programs import command_line
from g1jax.programs.evaluate import Options, evaluate
from g1jax.programs.machine import all_devices


def main(arguments: list[str]) -> int:
    """Does what the arguments ask for; gives the exit status."""
    return command_line.main("evaluate", Options, all_devices()(evaluate), arguments, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
