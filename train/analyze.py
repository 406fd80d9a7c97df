"""Perception and reasoning over training runs: which leads, what looks cost, what carries over.

    python train/analyze.py runs/g1_multigame
    python train/analyze.py runs/g0_multigame runs/g1_multigame --out=evaluations/g0_g1
    python train/analyze.py runs/g1_swap --looks --transfer=noisy,dark,shisen_sho --episodes=64 --steps=10
    python train/analyze.py runs/g1_swap --looks=noise,cell_size --checkpoint=120

Writes analysis.json, analysis.md, analysis.png and report.html. What was played once under the same settings is read
from the output folder, so a run under way can be analysed again and again.
"""

import sys

import tyro

from g1jax.errors import G1Error
from g1jax.evaluation.analysis import Options, analyze
from g1jax.machine import all_devices


def main() -> None:
    """Reads the command line, runs, and tells what went wrong in one line."""
    options = tyro.cli(Options, description=__doc__)
    try:
        with all_devices():
            analyze(options)
    except (G1Error, OSError) as error:
        sys.exit(f"analyze: {error}")
    except KeyboardInterrupt:
        sys.exit("analyze: interrupted; what was played is kept")


if __name__ == "__main__":
    main()
