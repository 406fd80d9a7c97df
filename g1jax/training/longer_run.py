"""Makes a run longer: which numbers of steps may change when it resumes, and what becomes of its earlier results."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from g1jax.errors import ExperimentError
from g1jax.training.bucket import checkpoints_of
from g1jax.training.config import Experiment, Optimizer
from g1jax.training.optimizer import learning_rate

COLD_STEPS, ITERATIONS = "cold_start.steps", "rl.iterations"


@dataclass(frozen=True)
class Lengths:
    """The numbers of steps of a run's two phases."""

    cold_start: int
    rl: int

    @property
    def total(self) -> int:
        """Of both phases."""
        return self.cold_start + self.rl


def check_lengths(folder: Path, before: Lengths, now: Lengths) -> None:
    """Checks that a run can continue with other numbers of steps: not fewer than are done, nor in a finished phase.

    Raises:
        ExperimentError: it cannot; one line says why.
    """
    if now == before:
        return
    done = newest_checkpoint(folder)
    done_rl = max(done - before.cold_start, 0)
    ExperimentError.require(
        done_rl == 0 or now.cold_start == before.cold_start,
        f"{folder}: {COLD_STEPS} (was {before.cold_start}, is {now.cold_start}) cannot change, as RL has begun; "
        f"{ITERATIONS} can",
    )
    for key, steps, least in ((COLD_STEPS, now.cold_start, done - done_rl), (ITERATIONS, now.rl, done_rl)):
        ExperimentError.require(
            steps >= least, f"{folder}: {key}={steps}, but {least} are done; give {least} or more, or another --workdir"
        )


def newest_checkpoint(folder: Path) -> int:
    """The step of a run's newest checkpoint; 0 without one."""
    names = [path.name for path in checkpoints_of(folder).glob("*")]
    return max((int(name) for name in names if name.isascii() and name.isdecimal()), default=0)


def learning_rate_lines(experiment: Experiment, before: Lengths, step: int) -> list[str]:
    """For each phase whose number of steps has changed: the learning rate from this step on, and before the change."""
    cold, rl = experiment.cold_start, experiment.rl
    updates = rl.minibatching.epochs * rl.minibatching.minibatches
    phases = [
        (COLD_STEPS, cold.optimizer, before.cold_start, cold.steps, step, 1),
        (ITERATIONS, rl.optimizer, before.rl, rl.iterations, max(step - cold.steps, 0), updates),
    ]
    return [_line(*phase) for phase in phases if phase[2] != phase[3]]


def _line(key: str, rule: Optimizer, before: int, now: int, done: int, updates: int) -> str:
    old, new, end = (
        learning_rate(rule, steps * updates, at * updates) for steps, at in ((before, done), (now, done), (now, now))
    )
    return (
        f"{key} {before} -> {now}: the learning rate follows the schedule of {now}, {new:.3g} from here to {end:.3g} "
        f"(that of {before} was at {old:.3g})"
    )


def keep_results(evaluation: Path, before: Lengths, now: Lengths) -> None:
    """Renames the results of a run that becomes longer, `final` to `final_step_<n>` and so on; replaces none."""
    renamed = {"final": before.total, "report": before.total}
    renamed |= {"cold_start": before.cold_start} if now.cold_start != before.cold_start else {}
    for name, step in renamed.items():
        for path in [evaluation / name, evaluation / f"{name}_greedy", *evaluation.glob(f"{name}.*")]:
            stem = f"{path.stem}_step_{step}"
            names = (f"{stem}{f'-{n}' if n > 1 else ''}{path.suffix}" for n in itertools.count(1))
            if path.exists():
                path.rename(next(target for new in names if not (target := evaluation / new).exists()))
