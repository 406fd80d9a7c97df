"""The main job: a cold start, RL, an evaluation; a short Python loop around two compiled steps."""

import dataclasses
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from g1jax.training.checkpoints import Checkpoints
from g1jax.training.config import Experiment
from g1jax.training.folder import RunFolder
from g1jax.training.lessons import next_scripts, to_lesson
from g1jax.training.progress import Progress
from g1jax.training.samples import write_samples
from g1jax.training.setup import Setup, make_setup
from g1jax.training.steps import Fixed, RunState, begin, begin_rl, cold_step, rl_step

COLD, RL = "cold_start", "rl"


class TrainingError(RuntimeError):
    """Training came to a point where it must not go on; the message says when and in which game."""


@dataclasses.dataclass
class Stop:
    """Whether somebody asked to stop, by a signal."""

    is_asked: bool = False


def run(experiment: Experiment, *, progress: Progress | None = None) -> Path:
    """Runs an experiment, or goes on with it if its folder is there, to the end or until a signal; gives the folder.

    Raises:
        ExperimentError, ConfigError, LevelError, AlgorithmError: it cannot be run; one line says why.
        TrainingError: a loss or gradient that is not finite; the last good checkpoint stays.
    """
    progress = Progress() if progress is None else progress
    setup = make_setup(experiment)
    folder = RunFolder(experiment)
    checkpoints = Checkpoints(folder.checkpoints, experiment.log.keep)
    progress.begin(setup, folder.path)
    try:
        with _signals() as stop, jax.set_mesh(setup.mesh):
            state, fixed = _restore_or_begin(setup, folder, checkpoints, progress)
            state = _train(setup, folder, checkpoints, progress, stop, state, fixed)
            checkpoints.save(int(state.step), state)
            checkpoints.wait()
            if not stop.is_asked:
                _finish(setup, folder, progress, state, fixed)
    finally:
        checkpoints.close()
        folder.close()
        progress.end()
    return folder.path


def _restore_or_begin(
    setup: Setup, folder: RunFolder, checkpoints: Checkpoints, progress: Progress
) -> tuple[RunState, Fixed]:
    """The newest checkpoint, or the beginning; and the metrics up to there."""
    state, fixed = begin(setup)
    if checkpoints.last is not None:
        e = setup.experiment
        template = begin_rl(setup, state) if checkpoints.last > e.cold_start.steps else state
        restored = checkpoints.restore(template, progress.warn)
        if restored is None and template is not state:
            restored = checkpoints.restore(state, progress.warn)
        if restored is not None:
            state = restored
            progress.say(f"goes on after step {int(state.step)} of {e.num_steps}")
    folder.begin_at(int(state.step))
    return state, fixed


def _train(
    setup: Setup,
    folder: RunFolder,
    checkpoints: Checkpoints,
    progress: Progress,
    stop: Stop,
    state: RunState,
    fixed: Fixed,
) -> RunState:
    e = setup.experiment
    first, started = int(state.step), time.perf_counter()
    for done in range(first + 1, e.num_steps + 1):  # the step's number, from 1
        phase = COLD if done <= e.cold_start.steps else RL
        if phase == COLD:
            state, metrics = _cold_step(setup, state, fixed)
            rollouts: Any = None
        else:
            if done == e.cold_start.steps + 1 and e.cold_start.steps > 0:
                state = _turn_to_rl(setup, folder, checkpoints, progress, state, fixed)
            state, metrics, rollouts = rl_step(setup, state, fixed)
        figures = {key: float(value) for key, value in jax.device_get(metrics).items()}
        _check_finite(figures, done, phase)
        now = time.perf_counter()
        timings = {"seconds": now - started}
        started = now
        if done % e.log.every == 0 or done == e.num_steps:
            folder.write(done, phase, figures, timings)
        progress.step(done, phase, figures, timings)
        if rollouts is not None and e.log.samples_every and done % e.log.samples_every == 0:
            write_samples(setup, folder.path / "samples", done, rollouts)
        is_due = done % e.log.checkpoint_every == 0 or done == e.cold_start.steps
        if is_due or stop.is_asked:
            checkpoints.save(done, state)
        if stop.is_asked:
            progress.say(f"stopped after step {done}; the same command goes on from here")
            break
    return state


def _cold_step(setup: Setup, state: RunState, fixed: Fixed) -> tuple[RunState, Mapping[str, Any]]:
    """Asks the teacher, puts its words into tokens, learns them."""
    cold = setup.experiment.cold_start
    key = jax.random.fold_in(state.key, state.step)
    after, scripts = next_scripts(setup.cold_vecs, cold.random_moves, state.cold_envs, key)
    lessons = tuple(to_lesson(setup.policy, game, s) for game, s in zip(setup.games, scripts, strict=True))
    return cold_step(setup, dataclasses.replace(state, cold_envs=after), fixed, lessons)


def _turn_to_rl(
    setup: Setup, folder: RunFolder, checkpoints: Checkpoints, progress: Progress, state: RunState, fixed: Fixed
) -> RunState:
    """What lies between the two phases: the cold start's evaluation, if asked for, and a fresh optimizer."""
    episodes = setup.experiment.evaluation.cold_start_episodes
    if episodes:
        from g1jax.training.final import evaluate

        checkpoints.wait()
        evaluate(setup, folder.path, progress, state, fixed, "cold_start", episodes)
    return begin_rl(setup, state)


def _finish(setup: Setup, folder: RunFolder, progress: Progress, state: RunState, fixed: Fixed) -> None:
    from g1jax.training.final import evaluate, write_curves

    write_curves(folder.path)
    episodes = setup.experiment.evaluation.episodes
    if episodes:
        evaluate(setup, folder.path, progress, state, fixed, "final", episodes)


def _check_finite(figures: Mapping[str, float], step: int, phase: str) -> None:
    broken = [key for key, value in figures.items() if not math.isfinite(value)]
    if broken:
        games = sorted({key.split("/")[0] for key in broken if "/" in key})
        where = f" in {', '.join(games)}" if games else ""
        raise TrainingError(
            f"step {step} ({phase}){where}: {', '.join(broken)} not finite. The last checkpoint is good; "
            "a lower lr or max_norm may help"
        )


@contextmanager
def _signals() -> Iterator[Stop]:
    """Turns SIGTERM and SIGINT into a wish to stop after the running step; a second one stops at once."""
    stop = Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.is_asked:
            raise KeyboardInterrupt
        stop.is_asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
