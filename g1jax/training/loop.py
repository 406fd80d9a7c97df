"""The training loop: cold start, RL and evaluation; a short Python loop around two compiled steps."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from g1jax import keys, vlm
from g1jax.envs.batch import BatchState
from g1jax.files import ROOM
from g1jax.keys import OfStep
from g1jax.sft.batch import SFTBatch, to_batch
from g1jax.sft.demonstrations import Demonstrations, next_demonstrations
from g1jax.training.checkpoints import Checkpoints
from g1jax.training.config import Experiment
from g1jax.training.host_memory import release_memory
from g1jax.training.longer_run import learning_rate_lines
from g1jax.training.precompile import compiling
from g1jax.training.processes import any_process
from g1jax.training.progress import Progress
from g1jax.training.run_evaluation import evaluate, play_scores, table_of, write_curves
from g1jax.training.run_folder import RunFolder
from g1jax.training.samples import write_samples
from g1jax.training.saved_setup import has_setup, save_setup
from g1jax.training.setup import Setup, load_params, make_setup, weights_folder
from g1jax.training.steps import (
    COLD,
    RL,
    Constants,
    RunState,
    cold_step,
    frozen_of,
    init_state,
    rl_step,
    start_rl,
    template,
)
from g1jax.training.stopping import Stop, signals
from g1jax.typing import Array, Key
from g1jax.vlm import Params


class TrainingError(RuntimeError):
    """Training cannot continue; the message names the step and the games."""


@dataclass(frozen=True)
class _Run:
    """The parts of a run that its phases share."""

    setup: Setup
    folder: RunFolder
    checkpoints: Checkpoints
    progress: Progress
    stop: Stop


def run(experiment: Experiment, *, progress: Progress | None = None) -> Path:
    """Runs an experiment to its end or until a signal, resuming it if its folder exists; returns the folder or URL.

    Raises:
        ExperimentError, ConfigError, LevelError, AlgorithmError: it cannot be run; one line says why.
        TrainingError: a loss, gradient or weight is not finite; the last good checkpoint is kept.
        OSError: a file cannot be written.
    """
    progress = Progress() if progress is None else progress
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals(progress))
        folder = RunFolder(experiment)
        experiment = folder.experiment
        setup = make_setup(experiment, folder.path if folder.has_begun else None)
        last_steps = {COLD: experiment.cold_start.steps, RL: experiment.num_steps}
        progress.start(_title(setup, folder.place), [game.id for game in setup.games], last_steps)
        stack.callback(progress.end)
        stack.enter_context(jax.set_mesh(setup.mesh))
        is_resumed = any_process(folder.checkpoints.is_dir())
        if not is_resumed and setup.datasets is not None:  # finds errors in them before anything is written
            sizes = ", ".join(f"{len(dataset)} of {dataset.game.id}" for dataset in setup.datasets)
            progress.say(f"demonstrations of {experiment.cold_start.dataset}: {sizes}")
        params = None if is_resumed else load_params(setup)  # before anything is written: they may be damaged
        stack.callback(folder.close)
        room = ROOM + (1 if is_resumed else 2) * _num_bytes(template(setup, experiment.num_steps))
        folder.create(lambda: _save_setup(folder.path, setup), room=room)
        checkpoints = stack.enter_context(Checkpoints(folder.checkpoints, experiment.log.keep))
        run = _Run(setup, folder, checkpoints, progress, stop)
        wait = stack.enter_context(compiling(setup, checkpoints.last or 0))
        state, constants = _restore(run, params)
        for line in learning_rate_lines(experiment, folder.lengths_before, int(state.step)):
            progress.say(line)
        folder.begin_at(int(state.step), progress)
        any_process(False)  # a barrier: the first process renames earlier results
        with contextlib.suppress(_Stopped):
            state = _train(run, state, constants, wait)
            _save(run, int(state.step), state)
            checkpoints.wait()
            if jax.process_index() == 0:
                write_curves(folder.path)
            _evaluate(run, state, constants, "final", experiment.evaluation.episodes)
    return folder.place


def _title(setup: Setup, folder: Path) -> tuple[str, str]:
    """Two lines: the phases of the run; its model, mesh and folder."""
    e = setup.experiment
    size = vlm.count_params(setup.policy.config)
    mesh = " × ".join(f"{axis} {count}" for axis, count in setup.mesh.shape.items())
    phases = {"steps of cold start": e.cold_start.steps, f"iterations of {e.rl.algorithm.name}": e.rl.iterations}
    return (
        f"{e.name}: {', '.join(f'{count} {phase}' for phase, count in phases.items() if count)}",
        f"model {e.model}, {size / 1e6:.1f}M parameters; mesh {mesh}; folder {folder}",
    )


def _num_bytes(state: RunState) -> int:
    """The size of a state in a checkpoint."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _save_setup(folder: Path, setup: Setup) -> None:
    """Saves the run's setup, unless it is there."""
    if not has_setup(folder):
        save_setup(
            folder,
            setup.games,
            setup.policy,
            setup.datasets,
            dataset=setup.experiment.cold_start.dataset,
            weights=weights_folder(setup),
            is_frozen=setup.lora is not None,
        )


class _Stopped(Exception):
    """The run stops on request; everything needed to resume it is saved, or being saved."""


def _restore(run: _Run, params: Params | None) -> tuple[RunState, Constants]:
    """The newest checkpoint; without one the initial state, from `params` if they are loaded already."""
    state = run.checkpoints.restore(functools.partial(template, run.setup), run.progress.warn)
    if state is None:
        return init_state(run.setup, load_params(run.setup) if params is None else params)
    run.progress.say(f"resumed after step {int(state.step)} of {run.setup.experiment.num_steps}")
    if int(state.step) < run.setup.experiment.cold_start.steps:
        run.setup.datasets  # noqa: B018  (refuses a dataset that has changed before anything is written)
    return state, frozen_of(run.setup)


def _train(run: _Run, state: RunState, constants: Constants, wait: Callable[[str], None]) -> RunState:
    """Runs the remaining steps. `wait` blocks until a phase's step is compiled."""
    e = run.setup.experiment
    started, last_phase = time.perf_counter(), ""
    prepared: _Prepared | None = None
    for step in range(int(state.step) + 1, e.num_steps + 1):  # counted from 1
        if run.stop.any_requested():
            _save(run, step - 1, state)
            raise _stopped(run, f"after step {step - 1}")
        phase = COLD if step <= e.cold_start.steps else RL
        if phase == COLD:
            state, device_metrics, prepared = _cold_step(run.setup, state, constants, prepared, wait)
        else:
            if step == e.cold_start.steps + 1 and e.cold_start.steps > 0:
                _evaluate(run, state, constants, "cold_start", e.evaluation.cold_start_episodes)
                state = start_rl(run.setup, state)
            wait(phase)
            state, device_metrics, rollouts = rl_step(run.setup.rl, state, constants)
        metrics = {key: float(value) for key, value in jax.device_get(device_metrics).items()}
        _check_finite(run.setup, metrics, step, phase)
        is_played = phase == RL and _is_due(step - e.cold_start.steps, e.evaluation.play_every)
        if is_played:
            metrics |= play_scores(run.setup, state, constants)
        now = time.perf_counter()
        timings = {"seconds": now - started}
        started = now
        if _is_due(step, e.log.every) or is_played or step == e.num_steps:
            run.folder.write(step, phase, metrics, timings)
        run.progress.step(step, phase, metrics, timings)
        if phase == RL and _is_due(step, e.log.samples_every):
            log = functools.partial(run.folder.show, step)
            write_samples(run.setup, run.folder.path / "samples", step, rollouts, log)
        is_saved = _is_due(step, e.log.checkpoint_every) or step == e.cold_start.steps
        if is_saved or phase != last_phase:  # compiling a phase's first step took memory
            release_memory()
        if is_saved:
            _save(run, step, state)
        last_phase = phase
    return state


def _save(run: _Run, step: int, state: RunState) -> None:
    """Saves a checkpoint, after the metrics up to it."""
    run.folder.upload()
    run.checkpoints.save(step, state)


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps happens after this one; 0: never."""
    return every > 0 and step % every == 0


@dataclass(frozen=True)
class _Prepared:
    """The demonstrations of a step as tokens, and the environments after them."""

    batches: tuple[SFTBatch, ...]
    cold_envs: tuple[BatchState, ...]


def _cold_step(
    setup: Setup, state: RunState, constants: Constants, prepared: _Prepared | None, wait: Callable[[str], None]
) -> tuple[RunState, Mapping[str, Any], _Prepared | None]:
    """Takes demonstrations from the teacher or the dataset, tokenizes them, and does one supervised step.

    On an accelerator the demonstrations of the next step are made before this step is dispatched, and tokenized on the
    host while it runs; they are returned, as `prepared` for the next call.
    """
    cold = setup.experiment.cold_start
    if setup.datasets is not None:
        wait(COLD)
        step, seed, policy = int(state.step), setup.experiment.seed, setup.policy
        read = [dataset.batch(policy, seed, step, cold.states) for dataset in setup.datasets]
        batches = tuple(SFTBatch(**setup.placement.shard_rows(batch)) for batch in read)
        return *cold_step(setup.cold, state, constants, batches), None
    if prepared is None:
        envs, demonstrations = _demonstrate(setup, state.key, state.step, state.cold_envs)
        wait(COLD)
        prepared = _Prepared(_tokenize(setup, demonstrations), envs)
    if not _is_ahead():
        return *cold_step(setup.cold, _with_envs(state, prepared), constants, prepared.batches), None
    envs, demonstrations = _demonstrate(setup, state.key, state.step + 1, prepared.cold_envs)
    state, metrics = cold_step(setup.cold, _with_envs(state, prepared), constants, prepared.batches)
    return state, metrics, _Prepared(_tokenize(setup, demonstrations), envs)


def _is_ahead() -> bool:
    """Whether the host has time while a step runs: not on a CPU (docs/lab_notes.md)."""
    return jax.default_backend() != "cpu"


def _with_envs(state: RunState, prepared: _Prepared) -> RunState:
    return dataclasses.replace(state, cold_envs=prepared.cold_envs)


def _demonstrate(
    setup: Setup, key: Key, step: Array, envs: tuple[BatchState, ...]
) -> tuple[tuple[BatchState, ...], tuple[Demonstrations, ...]]:
    cold = setup.experiment.cold_start
    return next_demonstrations(
        setup.cold_envs,
        cold.random_moves,
        envs,
        keys.of_step(key, step, OfStep.TEACH),
        has_facts=cold.facts_weight > 0,
        choice=cold.choice,
        choice_share=cold.choice_share,
    )


def _tokenize(setup: Setup, demonstrations: tuple[Demonstrations, ...]) -> tuple[SFTBatch, ...]:
    return tuple(
        to_batch(setup.policy, game, made, setup.placement.shard_rows)
        for game, made in zip(setup.games, demonstrations, strict=True)
    )


def _evaluate(run: _Run, state: RunState, constants: Constants, name: str, num_episodes: int) -> None:
    if num_episodes == 0 or any_process(table_of(run.folder.path, name).is_file()):
        return

    def check() -> None:
        if run.stop.any_requested():
            raise _stopped(run, f"in the evaluation {name}, which will start over")

    run.checkpoints.wait()
    evaluate(
        run.setup,
        state,
        constants,
        name=name,
        num_episodes=num_episodes,
        folder=run.folder.path,
        progress=run.progress,
        check=check,
    )
    run.folder.upload()


def _stopped(run: _Run, where: str) -> _Stopped:
    run.progress.say(f"stopped {where}; run the same command to resume")
    run.progress.is_stopped = True
    return _Stopped()


def _check_finite(setup: Setup, metrics: Mapping[str, float], step: int, phase: str) -> None:
    """Raises TrainingError if a metric is not finite, before the state is saved."""
    bad = [key for key, value in metrics.items() if not math.isfinite(value)]
    if bad:
        known = [game.id for game in setup.games]
        games = [game for game in known if any(key.startswith(f"{game}/") for key in bad)]
        raise TrainingError(
            f"step {step} ({phase}), in {', '.join(games or known)}: not finite: {', '.join(bad)}. "
            "The last checkpoint is from before this step; try a lower lr or max_norm, with another --workdir"
        )
