"""Exports the policy of a run, with LoRA merged, to a folder that `--model`, g1jax.vlm and transformers can load.

python scripts/export_run.py runs/base g1jax/data/base
"""

import argparse
import sys
from pathlib import Path

from g1jax import vlm
from g1jax.errors import G1Error
from g1jax.terminal import one_line
from g1jax.training import policy_of_run
from g1jax.training.saved_model import save_policy
from g1jax.vlm.sampling import fold_temperature


def main() -> None:
    """Reads the command line and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("folder", type=Path, help="the output folder; must not hold weights yet")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of the exported weights (default: the run's param_dtype; float32: a bfloat16 run's master weights)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="make this sampling temperature part of the weights, so that the policy plays at it at temperature 1",
    )
    args = parser.parse_args()
    try:
        policy, params = policy_of_run(args.run, param_dtype=args.dtype)
        save_policy(policy, fold_temperature(params, args.temperature), args.folder)
    except (G1Error, FileExistsError, OSError) as error:
        sys.exit(one_line(f"export: {error}"))
    size = sum(file.stat().st_size for file in args.folder.iterdir())
    print(f"{args.folder}: {vlm.count_params(policy.config):,} parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
