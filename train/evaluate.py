"""Evaluates a player on the games: metrics with confidence intervals, a report page, comparisons.

    python train/evaluate.py --player=random --games=all --episodes=1000 --steps=100 --seed=0 --out=evaluations/random
    python train/evaluate.py --player=runs/g1_swap --games=swap --film=gif
    python train/evaluate.py --player=openai --endpoint.model=… --endpoint.base-url=http://localhost:8000/v1
    python train/evaluate.py --compare evaluations/g1_swap evaluations/random

The same command resumes an interrupted evaluation through an endpoint. The endpoint's key is read from OPENAI_API_KEY.
"""

import sys

from g1jax.programs import command_line
from g1jax.programs.evaluate import Options, evaluate
from g1jax.programs.machine import all_devices


def main(arguments: list[str]) -> int:
    """Runs the evaluation; returns the exit status."""
    return command_line.main("evaluate", Options, all_devices()(evaluate), arguments, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
