"""The main job: teaches a policy to see, think and act, then improves it by RL.

    python train/main.py --experiment=g1_multigame
    python train/main.py --experiment=g1_swap --rl.lr=1e-4 --model=micro --workdir=runs/swap
    python train/main.py --experiment=g1_multigame --help        # every setting

The same command goes on with a run whose folder is there. On several hosts, start it on each: see docs/tpu.md.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main(arguments: list[str]) -> int:
    """Runs the experiment that the arguments ask for; gives the exit status."""
    from g1jax.programs import train

    return train.main(arguments, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
