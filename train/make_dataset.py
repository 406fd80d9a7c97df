"""Writes a dataset of demonstrations: states of the games, with a teacher's perception, reasoning and move.

`python train/make_dataset.py --help` has examples and every option; `g1jax dataset` is the same program.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from g1jax.programs.dataset import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python train/make_dataset.py"))
