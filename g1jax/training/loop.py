"""The main job: a cold start, RL, an evaluation; a short Python loop around two compiled steps."""

import contextlib
import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from g1jax import keys, vlm
from g1jax.files import ROOM
from g1jax.keys import OfStep
from g1jax.sft.batch import SFTBatch, to_batch
from g1jax.sft.demonstrations import next_demonstrations
from g1jax.training.checkpoints import Checkpoints
from g1jax.training.config import Experiment
from g1jax.training.heap import release_memory
from g1jax.training.precompile import compiling
from g1jax.training.processes import any_process
from g1jax.training.progress import Progress
from g1jax.training.run_evaluation import evaluate, table_of, write_curves
from g1jax.training.run_folder import RunFolder
from g1jax.training.run_setup import is_kept, keep
from g1jax.training.samples import write_samples
from g1jax.training.setup import Setup, load_params, make_setup, weights_folder
from g1jax.training.steps import COLD, RL, Constants, RunState, begin, begin_rl, cold_step, frozen_of, rl_step, template
from g1jax.vlm import Params


class TrainingError(RuntimeError):
    """Training came to a point where it must not go on; the message says when and in which game."""


@dataclass
class Stop:
    """Whether somebody asked to stop, by a signal."""

    is_asked: bool = False

    def is_agreed(self) -> bool:
        """Whether any process was asked. Every process calls it, so that all stop after the same step."""
        self.is_asked = any_process(self.is_asked)
        return self.is_asked


@dataclass(frozen=True)
class _Run:
    """What the phases of a run share."""

    setup: Setup
    folder: RunFolder
    checkpoints: Checkpoints
    progress: Progress
    stop: Stop


def run(experiment: Experiment, *, progress: Progress | None = None) -> Path:
    """Runs an experiment, or goes on with it if its folder is there, to the end or until a signal; gives the folder.

    Raises:
        ExperimentError, ConfigError, LevelError, AlgorithmError: it cannot be run; one line says why.
        TrainingError: a loss, gradient or weight that is not finite; the last good checkpoint stays.
        OSError: what the run has to write cannot be written.
    """
    progress = Progress() if progress is None else progress
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_signals())
        folder = RunFolder(experiment)
        setup = make_setup(experiment, folder.path if folder.has_begun else None)
        progress.begin(_title(setup, folder.path), [game.id for game in setup.games], experiment.num_steps)
        stack.callback(progress.end)
        stack.enter_context(jax.set_mesh(setup.mesh))
        is_known = any_process(folder.checkpoints.is_dir())
        if not is_known and setup.datasets is not None:  # what is wrong with them is found here
            sizes = ", ".join(f"{len(dataset)} of {dataset.game.id}" for dataset in setup.datasets)
            progress.say(f"demonstrations of {experiment.cold_start.dataset}: {sizes}")
        params = None if is_known else load_params(setup)  # before the first file: they may be damaged
        stack.callback(folder.close)
        room = ROOM + (1 if is_known else 2) * _size(template(setup, 0))
        folder.create(lambda: _keep(folder.path, setup), room=room)
        checkpoints = stack.enter_context(Checkpoints(folder.checkpoints, experiment.log.keep))
        run = _Run(setup, folder, checkpoints, progress, stop)
        wait = stack.enter_context(compiling(setup, checkpoints.last or 0))
        state, constants = _restore(run, params)
        folder.begin_at(int(state.step), progress)
        with contextlib.suppress(_Stopped):
            state = _train(run, state, constants, wait)
            checkpoints.save(int(state.step), state)
            checkpoints.wait()
            _finish(run, state, constants)
    return folder.path


def _title(setup: Setup, folder: Path) -> tuple[str, str]:
    """What will be done, and with what."""
    e = setup.experiment
    size = vlm.count_params(setup.policy.config)
    mesh = " × ".join(f"{axis} {count}" for axis, count in setup.mesh.shape.items())
    return (
        f"{e.name}: {e.cold_start.steps} steps of cold start, {e.rl.iterations} of {setup.algorithm.name}",
        f"model {e.model}, {size / 1e6:.1f}M parameters; mesh {mesh}; folder {folder}",
    )


def _size(state: RunState) -> int:
    """The bytes of a state, as a checkpoint has them."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _keep(folder: Path, setup: Setup) -> None:
    """Writes what the run is made of, unless it is there."""
    if not is_kept(folder):
        keep(
            folder,
            setup.games,
            setup.policy,
            setup.datasets,
            dataset=setup.experiment.cold_start.dataset,
            weights=weights_folder(setup),
            is_frozen=setup.lora is not None,
        )


class _Stopped(Exception):
    """Somebody asked to stop, and all that is needed to go on is saved, or being saved."""


def _restore(run: _Run, params: Params | None) -> tuple[RunState, Constants]:
    """The newest checkpoint or, if there is none, the beginning, with these weights if they are loaded already."""
    state = run.checkpoints.restore(functools.partial(template, run.setup), run.progress.warn)
    if state is None:
        return begin(run.setup, load_params(run.setup) if params is None else params)
    run.progress.say(f"goes on after step {int(state.step)} of {run.setup.experiment.num_steps}")
    if int(state.step) < run.setup.experiment.cold_start.steps:
        run.setup.datasets  # noqa: B018  (a dataset that has changed is refused before anything is written)
    return state, frozen_of(run.setup)


def _train(run: _Run, state: RunState, constants: Constants, wait: Callable[[str], None]) -> RunState:
    """All steps that are not done yet; `wait`: until a phase's step is compiled."""
    e = run.setup.experiment
    started, last = time.perf_counter(), ""
    for done in range(int(state.step) + 1, e.num_steps + 1):  # the step's number, from 1
        if run.stop.is_agreed():
            run.checkpoints.save(done - 1, state)
            raise _stopped(run, f"after step {done - 1}")
        phase = COLD if done <= e.cold_start.steps else RL
        if phase == COLD:
            state, metrics = _cold_step(run.setup, state, constants, wait)
        else:
            if done == e.cold_start.steps + 1 and e.cold_start.steps > 0:
                state = _turn_to_rl(run, state, constants)
            wait(phase)
            state, metrics, rollouts = rl_step(run.setup, state, constants)
        figures = {key: float(value) for key, value in jax.device_get(metrics).items()}
        _check_finite(run.setup, figures, done, phase)
        now = time.perf_counter()
        timings = {"seconds": now - started}
        started = now
        if _is_due(done, e.log.every) or done == e.num_steps:
            run.folder.write(done, phase, figures, timings)
        run.progress.step(done, phase, figures, timings)
        if phase == RL and _is_due(done, e.log.samples_every):
            write_samples(run.setup, run.folder.path / "samples", done, rollouts)
        is_saved = _is_due(done, e.log.checkpoint_every) or done == e.cold_start.steps
        if is_saved or phase != last:  # a phase's first step was compiled
            release_memory()
        if is_saved:
            run.checkpoints.save(done, state)
        last = phase
    return state


def _is_due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is done after this one; 0: never."""
    return every > 0 and step % every == 0


def _cold_step(
    setup: Setup, state: RunState, constants: Constants, wait: Callable[[str], None]
) -> tuple[RunState, Mapping[str, Any]]:
    """Asks the teacher, or the dataset, puts its words into tokens, learns them."""
    cold = setup.experiment.cold_start
    if setup.datasets is not None:
        wait(COLD)
        step, seed, policy = int(state.step), setup.experiment.seed, setup.policy
        read = [dataset.batch(policy, seed, step, cold.states) for dataset in setup.datasets]
        return cold_step(setup, state, constants, tuple(SFTBatch(*setup.spread(batch)) for batch in read))
    key = keys.of_step(state.key, state.step, OfStep.TEACH)
    has_facts = cold.facts_weight > 0
    after, demonstrations = next_demonstrations(
        setup.cold_envs, cold.random_moves, state.cold_envs, key, has_facts=has_facts
    )
    wait(COLD)
    batches = tuple(
        to_batch(setup.policy, game, made, setup.spread) for game, made in zip(setup.games, demonstrations, strict=True)
    )
    return cold_step(setup, dataclasses.replace(state, cold_envs=after), constants, batches)


def _turn_to_rl(run: _Run, state: RunState, constants: Constants) -> RunState:
    """What lies between the two phases: the cold start's evaluation, if asked for, and a fresh optimizer."""
    _evaluate(run, state, constants, "cold_start", run.setup.experiment.evaluation.cold_start_episodes)
    return begin_rl(run.setup, state)


def _finish(run: _Run, state: RunState, constants: Constants) -> None:
    """What a run ends with: the picture of its curves and the evaluation."""
    if jax.process_index() == 0:
        write_curves(run.folder.path)
    _evaluate(run, state, constants, "final", run.setup.experiment.evaluation.episodes)


def _evaluate(run: _Run, state: RunState, constants: Constants, name: str, num_episodes: int) -> None:
    if num_episodes == 0 or any_process(table_of(run.folder.path, name).is_file()):
        return

    def check() -> None:
        if run.stop.is_agreed():
            raise _stopped(run, f"in the evaluation {name}, which begins anew")

    run.checkpoints.wait()
    evaluate(run.setup, run.folder.path, run.progress, state, constants, name, num_episodes, check)


def _stopped(run: _Run, where: str) -> _Stopped:
    run.progress.say(f"stopped {where}; the same command goes on from here")
    return _Stopped()


def _check_finite(setup: Setup, figures: Mapping[str, float], step: int, phase: str) -> None:
    """Stops where a figure is no number, before the state it comes with is saved."""
    broken = [key for key, value in figures.items() if not math.isfinite(value)]
    if broken:
        known = [game.id for game in setup.games]
        games = [game for game in known if any(key.startswith(f"{game}/") for key in broken)]
        raise TrainingError(
            f"step {step} ({phase}), in {', '.join(games or known)}: not finite: {', '.join(broken)}. "
            "The last checkpoint is from before; a lower lr or max_norm may help, in another --workdir"
        )


@contextlib.contextmanager
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
