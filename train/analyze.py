"""Analyzes perception and reasoning over training runs: which one leads, appearance, transfer.

`python train/analyze.py --help` has examples and every option; `g1jax analyze` is the same program.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from g1jax.programs.analyze import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python train/analyze.py"))
