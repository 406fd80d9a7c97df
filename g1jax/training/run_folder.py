"""A run's folder: its config, metrics as lines of JSON and for TensorBoard, samples of responses, checkpoints.

`metrics.jsonl` holds what a seed decides, so two runs can be compared byte by byte; times are in `timings.jsonl`.
"""

import collections.abc
import dataclasses
import importlib.util
import json
import math
import os
import re
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax

from g1jax import vlm
from g1jax.errors import ExperimentError
from g1jax.files import ROOM, require_writable, write_atomically
from g1jax.foreign import excerpt, read_json
from g1jax.rl.algorithm import make_algorithm
from g1jax.terminal import one_line
from g1jax.training.config import Experiment
from g1jax.training.lock import LOCK, FolderLock
from g1jax.training.metrics_file import cut_after, read_lines
from g1jax.training.processes import any_process
from g1jax.training.progress import Progress

CONFIG, METRICS, TIMINGS, WANDB = "config.json", "metrics.jsonl", "timings.jsonl", "wandb.json"
SETUP = "setup"
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
        ExperimentError.require(is_logged, "log.wandb: wandb is not installed: pip install wandb")
        self._lock: FolderLock | None = None
        with self._saying_why():
            ExperimentError.require(
                not self.path.exists() or self.path.is_dir(), f"the run folder {self.path} is a file"
            )
            if config.exists():
                _check_same(config, as_json(experiment))
            else:
                ExperimentError.require(
                    not (self.path / METRICS).exists(), f"{self.path}: metrics without a {CONFIG}; not a run's folder"
                )

    @property
    def has_begun(self) -> bool:
        """Whether there is a run in it already."""
        return (self.path / CONFIG).is_file()

    def create(self, keep: Callable[[], None] = lambda: None, *, room: int = ROOM) -> None:
        """Makes the folder, if it is not there, takes its lock, writes the config and what `keep` does.

        `room`: bytes that must be free.

        Raises:
            ExperimentError: that cannot be done, or another process writes the folder.
        """
        error = None
        if self._is_writer:
            try:
                self._create(keep, room)
            except ExperimentError as reason:
                error = reason
        if any_process(error is not None):
            raise error or ExperimentError(f"the first process could not write the run folder {self.path}")

    def _create(self, keep: Callable[[], None], room: int) -> None:
        config = self.path / CONFIG
        with self._saying_why():
            names = (CONFIG, METRICS, TIMINGS, LOCK, "curves.png")
            require_writable(self.path, names, ExperimentError, folders=_FOLDERS, room=room, what="the run folder ")
            self._lock = FolderLock(self.path)
            if config.exists():  # another process may have made it since
                _check_same(config, as_json(self._experiment))
            else:
                self._write_config()
            keep()

    def _write_config(self) -> None:
        write_atomically(self.path / CONFIG, json.dumps(as_json(self._experiment), indent=1))

    def begin_at(self, step: int, progress: Progress) -> None:
        """Takes out what was written after this step, which is done again, and what cannot be read; says so."""
        if not self._is_writer:
            return
        with self._saying_why():
            self._write_config()  # where it lies and what is logged may have changed
        for name in (METRICS, TIMINGS):
            with self._saying_why():
                cut = cut_after(self.path / name, step)
            if cut is not None:
                tell = progress.warn if cut.unreadable else progress.say
                tell(str(cut))
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
        """Finishes what is open, and lets go of the folder."""
        try:
            if self._writers is not None:
                self._writers.close()
        finally:
            if self._lock is not None:
                self._lock.release()

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
    return read_lines(folder / METRICS)


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
    ExperimentError.require(file.is_file(), f"{folder} is no run's folder: it has no {CONFIG}")
    try:
        experiment: Experiment = _from_json(Experiment, _renewed(read_json(file)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExperimentError(f"{file} is damaged or of another version: {one_line(str(error), 200)}") from error
    return experiment


def _renewed(config: Any) -> Any:
    """A config in its current form: earlier versions had the algorithm's name, its keys and the passes apart."""
    rl = config["rl"]
    if not isinstance(rl["algorithm"], str):
        return config
    changes, kl, entropy = (rl.pop(key) for key in ("changes", "kl_coefficient", "entropy_coefficient"))
    changes = {**changes, **({"kl_coefficient": kl} if kl >= 0 else {})}
    changes |= {"entropy_coefficient": entropy} if entropy else {}
    rl["algorithm"] = dataclasses.asdict(make_algorithm(rl["algorithm"], **changes))
    rl["minibatching"] = {key: rl.pop(key) for key in ("epochs", "minibatches", "microbatches")}
    return config


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
        before = flatten(_renewed(read_json(known)))
    except (ValueError, AttributeError, KeyError, TypeError):
        raise ExperimentError(f"{known} is damaged: mend it, or give another --workdir") from None
    config = flatten(config)
    default = flatten(as_json(Experiment(name="")))  # which a setting had that there was not yet
    before = {**{key: default[key] for key in config if key in default}, **before}
    keys = [key for key in {**before, **config} if key.split(".")[0] not in _FREE]
    shown = {k: one_line(k, 80) for k in keys if before.get(k) != config.get(k)}
    different = [f"{shown[k]} (was {excerpt(before.get(k))}, is {excerpt(config.get(k))})" for k in shown]
    moved = _moved(known.parent, before, config)
    different = [text for text in different if text.split(" ")[0] not in moved]
    told = one_line("; ".join(different), 1000)
    ExperimentError.require(
        not different,
        f"{known.parent} is a run with another config: {told}. Give another --workdir, or these values",
    )


def _moved(folder: Path, before: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Settings that name a folder, what is in which the run knows again wherever it lies."""
    if not (folder / SETUP / "sources.json").is_file():
        return []
    moved = ["cold_start.dataset"] if before.get("cold_start.dataset") and config["cold_start.dataset"] else []
    known = ("base", *vlm.preset_names())
    is_model = bool(config["lora.rank"]) and before.get("model") not in known and config["model"] not in known
    return [*moved, "model"] if is_model else moved


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _wandb_id(file: Path) -> str:
    """What Weights & Biases knows the run by: drawn once and kept, so that a resumed run goes on in the same one."""
    if not file.exists():
        write_atomically(file, json.dumps({"id": uuid.uuid4().hex[:16]}) + "\n")
    content = read_json(file, error=ExperimentError)
    known = content.get("id") if isinstance(content, dict) else None
    ExperimentError.require(
        isinstance(known, str) and re.fullmatch(r"[\w-]{1,64}", known, re.ASCII) is not None,
        f'{file} is damaged: {{"id": "…"}} is wanted, the id of the run at Weights & Biases',
    )
    return str(known)


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
                id=_wandb_id(path / WANDB),
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
