"""Runs variants of one experiment with several seeds each, in one process; tables and draws what they reached.

python scripts/sweep.py --out=runs/algorithms --seeds=3 --experiment=g1_multigame --rl.iterations=60 \
    --variant=grpo --rl.algorithm=grpo --variant=rloo --rl.algorithm=rloo

Options before the first `--variant=NAME` are those of every variant, options after it its own; both are those of
train/main.py. Runs are in `OUT/NAME-SEED`; the same command resumes them, and skips those that are done. Runs that
differ in their seed alone share compiled programs. The table is OUT/sweep.md, the curves of RL are OUT/sweep.png: means
over seeds with 95% intervals of Student's t distribution, which assume that seeds differ by normal noise. Sweeps of
several games with the same variants are drawn together by `--draw=FILE FOLDER…`, which runs nothing.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from g1jax.errors import EvaluationError, ExperimentError, G1Error
from g1jax.evaluation import load
from g1jax.evaluation.lead_lag import smoothed
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
_CURVES = {
    "success": "success: reward > 0",
    "perception": "P: board read exactly",
    "reasoning": "R: reward > 0 where read exactly",
}
_COLORS = ("#1f6feb", "#c2620a", "#2f8f4e", "#7a3fb5", "#b3312c", "#5b6570")
_PANEL = (3.4, 2.2)  # inches
_SCORES = {"game_2048": "score", "shisen_sho": "board", "shisen_sho_cifar10": "board", "swap": "score"}


def main() -> None:
    """Reads the command line, runs, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="the folder of all runs")
    what.add_argument("--draw", type=Path, metavar="FILE", help="draw the sweeps in the folders that follow")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … of each variant")
    options, rest = parser.parse_known_args()
    try:
        if options.draw is not None:
            draw(options.draw, together([Path(folder) for folder in rest], options.seeds))
            return
        variants = split_variants(rest)
        with command_line.own_process():
            keep_programs()
            for seed in range(options.seeds):  # so that a stopped sweep has all variants
                for name, arguments in variants.items():
                    _run(options.out / f"{name}-{seed}", [*arguments, f"--seed={seed}"])
        text = summary(options.out, list(variants), options.seeds)
        write_atomically(options.out / "sweep.md", text)
        draw(options.out / "sweep.png", {name: curves_of(options.out, name, options.seeds) for name in variants})
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
        for game, curves in curves_of(out, name, num_seeds).items():
            success = curves["success"]
            count = max(1, success.shape[1] // _SHARE)
            ends = [interval(part.mean(axis=1).tolist()) for part in (success[:, :count], success[:, -count:])]
            scores = [_scores(folders, stage, game) for stage in ("cold_start", "final")]
            rows.append([name, game, " → ".join(ends), *(interval(found) if found else "–" for found in scores)])
    return "\n".join([f"{num_seeds} seeds, ± half of a 95% interval", "", *table(head, rows), ""])


def curves_of(out: Path, name: str, num_seeds: int) -> dict[str, dict[str, np.ndarray]]:
    """A variant's `_CURVES` by game: float64[seeds, iterations]; R is NaN where no board is read exactly."""
    metrics = [
        [line for line in read_metrics(out / f"{name}-{seed}") if line["phase"] == "rl"] for seed in range(num_seeds)
    ]
    games = [key.removesuffix("/success") for key in metrics[0][0] if key.endswith("/success")]
    curves = {}
    for game in games:
        of_game = {
            key: np.array([[float(line[f"{game}/{key}"]) for line in lines] for lines in metrics])
            for key in _CURVES
            if f"{game}/{key}" in metrics[0][0]
        }
        if "reasoning" in of_game:
            of_game["reasoning"][of_game["perception"] == 0] = np.nan
        curves[game] = of_game
    return curves


def together(folders: Sequence[Path], num_seeds: int) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """The curves of several sweeps, by variant and game.

    Raises:
        ExperimentError: a folder has no sweep.
    """
    variants: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for out in folders:
        names = [path.parent.name.removesuffix("-0") for path in sorted(out.glob("*-0/metrics.jsonl"))]
        ExperimentError.require(len(names) > 0, f"{out} has no runs of a sweep")
        for name in names:
            variants.setdefault(name, {}).update(curves_of(out, name, num_seeds))
    ExperimentError.require(len(variants) > 0, "--draw: name the folders of one or more sweeps")
    return variants


def draw(path: Path, variants: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> None:
    """Writes the figure: a row for each of `_CURVES`, a column for each game, a smoothed line with its interval for
    each variant.
    """
    from matplotlib.figure import Figure  # not pyplot, which uses the user's backend

    games = list(dict.fromkeys(game for of_variant in variants.values() for game in of_variant))
    figure = Figure(figsize=(max(_PANEL[0] * len(games), 5.0), _PANEL[1] * len(_CURVES) + 0.6), layout="constrained")
    axes = figure.subplots(len(_CURVES), len(games), squeeze=False, sharey=True, sharex="col")
    for (key, label), line in zip(_CURVES.items(), axes, strict=True):
        line[0].set_ylabel(label, fontsize=9)
        for game, axis in zip(games, line, strict=True):
            axis.set_ylim(-0.03, 1.03)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            for color, (name, curves) in zip(itertools.cycle(_COLORS), variants.items(), strict=False):
                if key in curves.get(game, {}):
                    _line(axis, curves[game][key], color, name)
    for game, axis in zip(games, axes[0], strict=True):
        axis.set_title(game, fontsize=11)
    for axis in axes[-1]:
        axis.set_xlabel("iteration of RL")
    handles = {label: handle for handle, label in zip(*axes[0][0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def _line(axis: Any, curves: np.ndarray, color: str, name: str) -> None:
    """The mean of float64[seeds, iterations], smoothed, and its interval where every seed has a value."""
    smooth = np.stack([smoothed(curve) for curve in curves])
    iterations, mean = np.arange(1, curves.shape[1] + 1), smooth.mean(axis=0)
    axis.plot(iterations, mean, color=color, linewidth=1.4, label=name)
    if len(curves) > 1:
        half = half_width(smooth)
        axis.fill_between(
            iterations, np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1), color=color, alpha=0.15, linewidth=0
        )


def half_width(values: np.ndarray) -> np.ndarray:
    """Half of the 95% interval of the mean over the first axis, by Student's t."""
    count = len(values)
    half: np.ndarray = stats.t.ppf(0.975, count - 1) * np.std(values, axis=0, ddof=1) / count**0.5
    return half


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
    return f"{text} ± {half_width(np.array(values)):.{digits}f}"


if __name__ == "__main__":
    main()
