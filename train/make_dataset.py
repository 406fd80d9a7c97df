"""Writes a dataset of lessons: states of the games, what a teacher sees in them, thinks, and does.

    python train/make_dataset.py --out=data/expert --games=all --states=1000
    python train/make_dataset.py --out=data/multigame --experiment=g1_multigame --format=parquet
    python train/make_dataset.py --out=data/endpoint --teacher=endpoint --model=… --base-url=http://localhost:8000/v1

A run learns from it with `python train/main.py --cold-start.dataset=data/multigame`; TRL and LLaMA-Factory read it too.
What was cut short goes on when the same command is run again. The endpoint's key is read from OPENAI_API_KEY.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tyro

from g1jax.errors import G1Error
from g1jax.machine import keep_programs
from g1jax.training.dataset_program import Options, make_dataset


def main() -> None:
    """Reads the command line, runs, and tells what went wrong in one line."""
    options = tyro.cli(Options, description=__doc__)
    keep_programs()
    try:
        print(make_dataset(options))
    except (G1Error, OSError) as error:
        sys.exit(f"make_dataset: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("make_dataset: interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
