"""Evaluates a player on the games: metrics with confidence intervals, a report page, comparisons.

`python train/evaluate.py --help` has examples and every option; `g1jax evaluate` is the same program.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from g1jax.programs.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python train/evaluate.py"))
