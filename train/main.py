"""Trains a policy: a supervised cold start on perception, reasoning and action, then RL.

`python train/main.py --help` has examples and every option; `g1jax train` is the same program.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from g1jax.programs.train import leave, main

if __name__ == "__main__":
    leave(main(sys.argv[1:], "python train/main.py"))
