"""Runs variants of one experiment with several seeds each, in one process, and tables what they reached.

python scripts/sweep.py --out=runs/algorithms --seeds=3 --experiment=g1_multigame --rl.iterations=60 \
    --variant=grpo --rl.algorithm=grpo --variant=rloo --rl.algorithm=rloo

Options before the first `--variant=NAME` are those of every variant, options after it its own; both are those of
train/main.py. Runs are in `OUT/NAME-SEED`; the same command resumes them, and skips those that are done. Runs that
differ in their seed alone share compiled programs. The table is OUT/sweep.md: means over seeds with 95% intervals of
Student's t distribution, which assume that seeds differ by normal noise.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from g1jax.errors import EvaluationError, ExperimentError, G1Error
from g1jax.evaluation import load
from g1jax.evaluation.tables import table
from g1jax.files import write_atomically
from g1jax.programs import command_line
from g1jax.programs.machine import keep_programs
from g1jax.programs.train import parse, use_cores_for
from g1jax.terminal import one_line
from g1jax.training.loop import TrainingError, run
from g1jax.training.progress import Display
from g1jax.training.run_folder import read_metrics

_SHARE = 5  # success is averaged over a fifth of the iterations, at the beginning and at the end
_SCORES = {"game_2048": "score", "shisen_sho": "board", "shisen_sho_cifar10": "board", "swap": "score"}


def main() -> None:
    """Reads the command line, runs, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of all runs")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … of each variant")
    options, rest = parser.parse_known_args()
    try:
        variants = split_variants(rest)
        with command_line.own_process():
            keep_programs()
            for seed in range(options.seeds):  # so that a stopped sweep has all variants
                for name, arguments in variants.items():
                    _run(options.out / f"{name}-{seed}", [*arguments, f"--seed={seed}"])
        text = summary(options.out, list(variants), options.seeds)
        write_atomically(options.out / "sweep.md", text)
        print(text)
    except (G1Error, TrainingError, OSError) as error:
        sys.exit(one_line(f"sweep: {error}"))


def split_variants(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Each variant's options, by its name: the common ones, then its own.

    >>> split_variants(["--experiment=g1_swap", "--variant=slow", "--rl.lr=1e-6", "--variant=fast", "--rl.lr=1e-4"])
    {'slow': ['--experiment=g1_swap', '--rl.lr=1e-6'], 'fast': ['--experiment=g1_swap', '--rl.lr=1e-4']}

    Raises:
        ExperimentError: there is no variant, or a name occurs twice.
    """
    common: list[str] = []
    variants: dict[str, list[str]] = {}
    current = common
    for argument in arguments:
        option, _, name = argument.partition("=")
        if option == "--variant":
            ExperimentError.require(name not in ("", *variants), f"--variant={name}: give each variant its own name")
            current = variants[name] = [*common]
        else:
            current.append(argument)
    ExperimentError.require(len(variants) > 0, "name at least one variant, such as --variant=grpo --rl.algorithm=grpo")
    return variants


def _run(folder: Path, arguments: Sequence[str]) -> None:
    experiment = parse([*arguments, f"--workdir={folder}"], __doc__ or "")
    use_cores_for(experiment)
    run(experiment, progress=Display())


def summary(out: Path, names: Sequence[str], num_seeds: int) -> str:
    """The table of all variants: success in training at the beginning and the end, and scores of the evaluations."""
    head = ["variant", "game", "success, first and last fifth of RL", "score after the cold start", "final score"]
    rows = []
    for name in names:
        folders = [out / f"{name}-{seed}" for seed in range(num_seeds)]
        metrics = [[line for line in read_metrics(folder) if line["phase"] == "rl"] for folder in folders]
        games = [key.removesuffix("/success") for key in metrics[0][0] if key.endswith("/success")]
        for game in games:
            curves = [[float(line[f"{game}/success"]) for line in lines] for lines in metrics]
            count = max(1, len(curves[0]) // _SHARE)
            ends = [interval([float(np.mean(curve[part])) for curve in curves]) for part in
                    (slice(None, count), slice(-count, None))]  # fmt: skip
            scores = [_scores(folders, stage, game) for stage in ("cold_start", "final")]
            rows.append([name, game, " → ".join(ends), *(interval(found) if found else "–" for found in scores)])
    return "\n".join([f"{num_seeds} seeds, ± half of a 95% interval", "", *table(head, rows), ""])


def _scores(folders: Sequence[Path], stage: str, game: str) -> list[float]:
    """A game's mean score in each run's evaluation; empty if a run has none."""
    scores = []
    for folder in folders:
        try:
            result = load(folder / "evaluation" / stage)
        except EvaluationError:
            return []
        metrics: Mapping[str, object] = result.games[game].metrics
        key = _SCORES.get(game, "score")
        scores.append(result.games[game].metrics[key if key in metrics else "score"].mean)
    return scores


def interval(values: Sequence[float]) -> str:
    """The mean and half of its 95% interval by Student's t: `0.50 ± 0.25`; without the interval for a single value.

    >>> interval([0.4, 0.5, 0.6])
    '0.50 ± 0.25'
    """
    digits = 0 if abs(float(np.mean(values))) >= 100 else 1 if abs(float(np.mean(values))) >= 10 else 2
    text = f"{np.mean(values):.{digits}f}"
    if len(values) < 2:
        return text
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{text} ± {half:.{digits}f}"


if __name__ == "__main__":
    main()
