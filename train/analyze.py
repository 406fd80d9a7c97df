"""Analyzes perception and reasoning over training runs: which one leads, appearance, transfer.

    python train/analyze.py runs/g1_multigame
    python train/analyze.py runs/g0_multigame runs/g1_multigame --out=evaluations/g0_g1
    python train/analyze.py runs/g1_swap --looks --transfer=noisy,dark,shisen_sho --episodes=64 --steps=10
    python train/analyze.py runs/g1_swap --looks=noise,cell_size --checkpoint=120

Writes analysis.json, analysis.md, analysis.png and report.html. Points played before with the same settings are read
from the output folder, so a running job can be analyzed repeatedly.
"""

import sys

from g1jax.programs import command_line
from g1jax.programs.analyze import Options, analyze
from g1jax.programs.machine import all_devices

INTERRUPTED = "interrupted; finished points are kept"


def main(arguments: list[str]) -> int:
    """Runs the analysis; returns the exit status."""
    work = all_devices()(analyze)
    return command_line.main("analyze", Options, work, arguments, __doc__ or "", interrupted=INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
