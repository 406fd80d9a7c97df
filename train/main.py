"""Trains a policy: a supervised cold start on perception, reasoning and action, then RL.

    python train/main.py --experiment=g1_multigame
    python train/main.py --experiment=g1_swap --rl.lr=1e-4 --model=micro --workdir=runs/swap
    python train/main.py --experiment=g1_multigame --help        # every setting

The same command resumes a run whose folder exists. On several hosts, start it on each: see docs/tpu.md.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main(arguments: list[str]) -> None:
    """Runs the experiment, and ends the process."""
    from g1jax.programs import train

    train.leave(train.main(arguments, __doc__ or ""))


if __name__ == "__main__":
    main(sys.argv[1:])
