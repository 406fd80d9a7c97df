"""Puts a player through the games: figures with intervals, a report to look at, comparisons.

    python train/evaluate.py --player=random --games=all --episodes=1000 --steps=100 --seed=0 --out=evaluations/random
    python train/evaluate.py --player=runs/g1_swap --games=swap --film=gif
    python train/evaluate.py --player=openai --endpoint.model=… --endpoint.base-url=http://localhost:8000/v1
    python train/evaluate.py --compare evaluations/g1_swap evaluations/random

An evaluation through an endpoint that was cut short goes on where it stopped when the same command is run again. The
endpoint's key is read from OPENAI_API_KEY.
"""

import sys

import tyro

from g1jax.errors import G1Error
from g1jax.evaluation.program import Options, evaluate
from g1jax.machine import all_devices


def main() -> None:
    """Reads the command line, runs, and tells what went wrong in one line."""
    options = tyro.cli(Options, description=__doc__)
    try:
        with all_devices():
            evaluate(options)
    except (G1Error, OSError) as error:
        sys.exit(f"evaluate: {error}")
    except KeyboardInterrupt:
        sys.exit("evaluate: interrupted")


if __name__ == "__main__":
    main()
