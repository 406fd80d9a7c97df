"""A run's folder: its config, metrics as lines of JSON and for TensorBoard, samples of responses, checkpoints.

`metrics.jsonl` holds what a seed decides, so two runs can be compared byte by byte; times are in `timings.jsonl`.
"""

import collections.abc
import dataclasses
import importlib.util
import json
import math
import os
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax

from g1jax.files import ROOM, require_writable
from g1jax.training.config import Experiment, ExperimentError, require

CONFIG, METRICS, TIMINGS = "config.json", "metrics.jsonl", "timings.jsonl"
_FOLDERS = ("checkpoints", "tensorboard", "samples", "evaluation")
_FREE = ("workdir", "log")
"""Keys that may differ when a run goes on."""


class RunFolder:
    """The files of one run. Of several processes the first one writes, the others only look."""

    def __init__(self, experiment: Experiment) -> None:
        self.path = Path(experiment.workdir or Path("runs") / experiment.name)
        self.checkpoints = self.path / "checkpoints"
        self._experiment = experiment
        self._is_writer = jax.process_index() == 0
        self._writers: _Writers | None = None
        config = self.path / CONFIG
        is_logged = not experiment.log.wandb or importlib.util.find_spec("wandb") is not None
        require(is_logged, "log.wandb: wandb is not installed: pip install wandb")
        with self._saying_why():
            require(not self.path.exists() or self.path.is_dir(), f"the run folder {self.path} is a file")
            if config.exists():
                _check_same(config, as_json(experiment))
            else:
                require(
                    not (self.path / METRICS).exists(), f"{self.path}: metrics without a {CONFIG}; not a run's folder"
                )

    def create(self, room: int = ROOM) -> None:
        """Makes the folder, if it is not there, and writes the config; `room`: bytes that must be free.

        Raises:
            ExperimentError: that cannot be done.
        """
        if self._is_writer:
            with self._saying_why():
                names = (CONFIG, METRICS, TIMINGS, "curves.png")
                require_writable(self.path, names, ExperimentError, folders=_FOLDERS, room=room, what="the run folder ")
                write_atomically(self.path / CONFIG, json.dumps(as_json(self._experiment), indent=1))

    def begin_at(self, step: int) -> None:
        """Drops what was written after this step: those steps are done again."""
        if not self._is_writer:
            return
        for name in (METRICS, TIMINGS):
            file = self.path / name
            if file.exists():
                lines = [line for line in file.read_text("utf-8").splitlines() if _step_of(line) <= step]
                write_atomically(file, "".join(f"{line}\n" for line in lines))
        self._writers = _Writers(self.path, self._experiment, step)

    def write(self, step: int, phase: str, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """A line of metrics and one of times, for step (counted from 1).

        Raises:
            OSError: it cannot be written, for example on a full disk; no part of a line is left.
        """
        if not self._is_writer:
            return
        self._append(METRICS, {"step": step, "phase": phase, **metrics})
        self._append(TIMINGS, {"step": step, "phase": phase, **timings})
        if self._writers is not None:
            self._writers.write(step, {**metrics, **{f"time/{key}": value for key, value in timings.items()}})

    def close(self) -> None:
        """Finishes what is open."""
        if self._writers is not None:
            self._writers.close()

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        file = self.path / name
        before = file.stat().st_size if file.exists() else 0
        try:
            with file.open("ab") as out:
                out.write((json.dumps({k: _finite(v) for k, v in line.items()}) + "\n").encode())
        except OSError as error:
            if file.exists():
                os.truncate(file, before)
            raise OSError(f"{file} cannot be written: {error.strerror or error}") from error

    @contextmanager
    def _saying_why(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ExperimentError(f"the run folder {self.path} cannot be written: {error.strerror or error}") from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    file = folder / METRICS
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{name}.")
        else:
            out[name] = value
    return out


def write_atomically(path: Path, text: str) -> None:
    """All of the text or, if that fails, what was there before."""
    draft = path.with_suffix(path.suffix + ".part")
    draft.write_text(text, "utf-8")
    draft.replace(path)


def as_json(experiment: Experiment) -> dict[str, Any]:
    """An experiment as JSON has it."""
    out: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(experiment), default=str))
    return out


def read_config(folder: Path) -> Experiment:
    """The experiment of a run's folder.

    Raises:
        ExperimentError: it is no run's folder, or its config is damaged or another version's.
    """
    file = folder / CONFIG
    require(file.is_file(), f"{folder} is no run's folder: it has no {CONFIG}")
    try:
        experiment: Experiment = _from_json(Experiment, json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise ExperimentError(f"{file} is damaged or of another version: {error}") from error
    return experiment


def _from_json(kind: Any, value: Any) -> Any:
    """A dataclass, or what its fields hold, from JSON."""
    if typing.get_origin(kind) is Annotated:
        return _from_json(typing.get_args(kind)[0], value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind, include_extras=True)
        return kind(**{key: _from_json(hints[key], field) for key, field in value.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    if typing.get_origin(kind) is collections.abc.Mapping:
        return {key: _from_json(typing.get_args(kind)[1], item) for key, item in value.items()}
    return value


def _check_same(known: Path, config: Mapping[str, Any]) -> None:
    try:
        before = flatten(json.loads(known.read_text("utf-8")))
    except ValueError:
        raise ExperimentError(f"{known} is damaged: mend it, or give another --workdir") from None
    config = flatten(config)
    default = flatten(as_json(Experiment(name="")))  # which a setting had that there was not yet
    before = {**{key: default[key] for key in config if key in default}, **before}
    keys = [key for key in {**before, **config} if key.split(".")[0] not in _FREE]
    different = [f"{k} (was {before.get(k)!r}, is {config.get(k)!r})" for k in keys if before.get(k) != config.get(k)]
    require(
        not different,
        f"{known.parent} is a run with another config: {'; '.join(different)}. Give another --workdir, or these values",
    )


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut off in the middle by a kill
        return math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Writers:
    """TensorBoard, and Weights & Biases if asked for."""

    def __init__(self, path: Path, experiment: Experiment, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(path / "tensorboard"), purge_step=step + 1 if step else None)
        self._wandb: Any = None
        if experiment.log.wandb:
            import wandb

            self._wandb = wandb.init(
                project="g1jax",
                name=experiment.name,
                dir=str(path),
                config=dataclasses.asdict(experiment),
                resume="allow",
            )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            if math.isfinite(value):
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(figures), step=step)

    def close(self) -> None:
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
