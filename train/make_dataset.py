"""Writes a dataset of demonstrations: states of the games, with a teacher's perception, reasoning and move.

    python train/make_dataset.py --out=data/expert --games=all --states=1000
    python train/make_dataset.py --out=data/multigame --experiment=g1_multigame --format=parquet
    python train/make_dataset.py --out=data/endpoint --teacher=endpoint --model=… --base-url=http://localhost:8000/v1

Train on it with `python train/main.py --cold-start.dataset=data/multigame`; TRL and LLaMA-Factory read it too. The same
command resumes an interrupted dataset. The endpoint's key is read from OPENAI_API_KEY.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from g1jax.programs import command_line
from g1jax.programs.dataset import Options, make_dataset
from g1jax.programs.machine import keep_programs, require_devices
from g1jax.terminal import printable

INTERRUPTED = "interrupted; run the same command to resume"


def work(options: Options) -> None:
    """Makes the dataset and prints its path."""
    keep_programs()
    require_devices()
    print(printable(str(make_dataset(options))))


def main(arguments: list[str]) -> int:
    """Makes the dataset; returns the exit status."""
    return command_line.main("make_dataset", Options, work, arguments, __doc__ or "", interrupted=INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
