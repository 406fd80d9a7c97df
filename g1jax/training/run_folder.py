"""A run's folder: its config, metrics as JSON lines and for TensorBoard, sample responses, checkpoints.

`metrics.jsonl` is deterministic for a seed, so two runs can be compared byte by byte; times are in `timings.jsonl`.
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
from g1jax.rl.algorithm import make_algorithm
from g1jax.terminal import one_line
from g1jax.training import bucket
from g1jax.training.config import Experiment
from g1jax.training.lock import LOCK, FolderLock
from g1jax.training.longer_run import COLD_STEPS, ITERATIONS, Lengths, check_lengths, keep_results
from g1jax.training.metrics_file import cut_after, read_lines
from g1jax.training.processes import any_process
from g1jax.training.progress import Progress
from g1jax.training.saved_model import SHIPPED
from g1jax.typing import HostImages
from g1jax.untrusted import excerpt, read_json, read_object

CONFIG, METRICS, TIMINGS, WANDB = "config.json", "metrics.jsonl", "timings.jsonl", "wandb.json"
SETUP = "setup"
_FOLDERS = ("checkpoints", "tensorboard", "samples", "evaluation")
_MAY_DIFFER = ("workdir", "log", "imports")
"""Keys that may differ when a run resumes."""


class RunFolder:
    """The files of one run. Of several processes, only the first one writes."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment = with_imports(experiment)
        self.place = place_of(experiment)
        """The run's folder as the user names it: on this machine or in a bucket."""
        self.path = bucket.download(self.place) if bucket.is_url(self.place) else self.place
        """The folder on this machine, or a copy of the one in a bucket, without checkpoints."""
        self.checkpoints = bucket.checkpoints_of(self.path)
        self._is_writer = jax.process_index() == 0
        self._upload = bucket.Upload(self.path, self.place) if self.path != self.place and self._is_writer else None
        self._loggers: _Loggers | None = None
        config = self.path / CONFIG
        is_logged = not experiment.log.wandb or importlib.util.find_spec("wandb") is not None
        ExperimentError.require(is_logged, "log.wandb: wandb is not installed: pip install wandb")
        self._lock: FolderLock | None = None
        self.lengths = Lengths(experiment.cold_start.steps, experiment.rl.iterations)
        self.lengths_before = self.lengths
        """Of the run so far, which may become longer."""
        with self._as_experiment_error():
            ExperimentError.require(
                not self.path.exists() or self.path.is_dir(), f"the run folder {self.path} is a file"
            )
            if config.exists():
                self.lengths_before = _check_same(config, as_json(experiment))
            else:
                ExperimentError.require(
                    not (self.path / METRICS).exists(), f"{self.path}: metrics without a {CONFIG}; not a run's folder"
                )

    @property
    def has_begun(self) -> bool:
        """Whether the folder has a run already."""
        return (self.path / CONFIG).is_file()

    def create(self, save_setup: Callable[[], None] = lambda: None, *, room: int = ROOM) -> None:
        """Creates the folder if needed, locks it, writes the config and calls `save_setup`.

        `room`: bytes that must be free.

        Raises:
            ExperimentError: the folder cannot be written, or another process writes it.
        """
        error = None
        if self._is_writer:
            try:
                self._create(save_setup, room if self._upload is None else ROOM)
            except ExperimentError as caught:
                error = caught
        if any_process(error is not None):
            raise error or ExperimentError(f"the first process could not write the run folder {self.path}")

    def _create(self, save_setup: Callable[[], None], room: int) -> None:
        config = self.path / CONFIG
        with self._as_experiment_error():
            names = (CONFIG, METRICS, TIMINGS, LOCK, "curves.png")
            require_writable(self.path, names, ExperimentError, folders=_FOLDERS, room=room, what="the run folder ")
            self._lock = FolderLock(self.path)
            if config.exists():  # another process may have written it since
                _check_same(config, as_json(self.experiment))
            else:
                self._write_config()
            save_setup()
            self.upload()

    def upload(self) -> None:
        """Uploads what has changed, if the folder is in a bucket.

        Raises:
            OSError: the bucket cannot be written.
        """
        if self._upload is not None:
            self._upload()

    def _write_config(self) -> None:
        write_atomically(self.path / CONFIG, json.dumps(as_json(self.experiment), indent=1))

    def begin_at(self, step: int, progress: Progress) -> None:
        """Removes metrics after this step, which are computed again, and lines that cannot be read; reports them."""
        if not self._is_writer:
            return
        with self._as_experiment_error():
            if self.lengths != self.lengths_before:  # first, so that no result is mistaken for one of the longer run
                keep_results(self.path / "evaluation", self.lengths_before, self.lengths)
            self._write_config()  # `workdir` and `log` may have changed
        for name in (METRICS, TIMINGS):
            with self._as_experiment_error():
                cut = cut_after(self.path / name, step)
            if cut is not None:
                (progress.warn if cut.unreadable else progress.say)(str(cut))
        self._loggers = _Loggers(self.path, self.experiment, step)

    def write(self, step: int, phase: str, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """Writes a line of metrics and one of timings; steps are counted from 1.

        Raises:
            OSError: a line cannot be written, for example on a full disk; no part of it is left.
        """
        if not self._is_writer:
            return
        self._append(METRICS, {"step": step, "phase": phase, **metrics})
        self._append(TIMINGS, {"step": step, "phase": phase, **timings})
        if self._loggers is not None:
            self._loggers.write(step, {**metrics, **{f"time/{key}": value for key, value in timings.items()}})

    def show(self, step: int, name: str, frame: HostImages, text: str) -> None:
        """Shows a frame and a text, in Markdown, in TensorBoard."""
        if self._loggers is not None:
            self._loggers.show(step, name, frame, text)

    def close(self) -> None:
        """Closes the loggers, uploads what is left, and unlocks the folder."""
        try:
            if self._loggers is not None:
                self._loggers.close()
            if self._lock is not None:  # the folder has been created
                self.upload()
        finally:
            if self._lock is not None:
                self._lock.release()
            if bucket.is_url(self.place):
                bucket.remove_copy(self.path)

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
    def _as_experiment_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ExperimentError(f"the run folder {self.path} cannot be written: {error.strerror or error}") from error


def place_of(experiment: Experiment) -> Path:
    """The folder of an experiment's run, on this machine or in a bucket."""
    return bucket.at(experiment.workdir or Path("runs") / experiment.name)


def with_imports(experiment: Experiment) -> Experiment:
    """The experiment with the `imports` that its folder remembers, unless it has its own."""
    if experiment.imports:
        return experiment
    config = place_of(experiment) / CONFIG
    if not bucket.has_file(config):
        return experiment
    try:
        names = tuple(read_json(config).get("imports", ()))
    except (ValueError, AttributeError, TypeError):  # damaged, which is reported elsewhere
        return experiment
    return dataclasses.replace(experiment, imports=names)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return read_lines(folder / METRICS)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts, joining keys with dots."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{name}.")
        else:
            out[name] = value
    return out


def as_json(experiment: Experiment) -> dict[str, Any]:
    """An experiment as JSON."""
    return json.loads(json.dumps(dataclasses.asdict(experiment), default=str))


def read_config(folder: Path) -> Experiment:
    """The experiment of a run's folder.

    Raises:
        ExperimentError: it is not a run's folder, or its config is damaged or from another version.
    """
    file = folder / CONFIG
    ExperimentError.require(file.is_file(), f"{folder} is not a run's folder: it has no {CONFIG}")
    try:
        return _from_json(Experiment, _upgraded(read_json(file)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExperimentError(f"{file} is damaged or from another version: {one_line(str(error), 200)}") from error


def _upgraded(config: Any) -> Any:
    """A config in its current form: earlier versions had no `Algorithm` and `Minibatching`."""
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
    """A value of a type from JSON: a dataclass, or the value of one of its fields."""
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


def _check_same(known: Path, config: Mapping[str, Any]) -> Lengths:
    """Checks that a run's config is the same, or of a run that can become longer; returns its lengths so far."""
    try:
        before = flatten(_upgraded(read_json(known)))
    except (ValueError, AttributeError, KeyError, TypeError):
        raise ExperimentError(f"{known} is damaged: repair it, or give another --workdir") from None
    config = flatten(config)
    default = flatten(as_json(Experiment(name="")))  # for settings that the earlier version did not have
    before = {**{key: default[key] for key in config if key in default}, **before}
    keys = [key for key in {**before, **config} if key.split(".")[0] not in _MAY_DIFFER]
    shown = {k: one_line(k, 80) for k in keys if before.get(k) != config.get(k)}
    different = [f"{shown[k]} (was {excerpt(before.get(k))}, is {excerpt(config.get(k))})" for k in shown]
    lengths = [Lengths(of[COLD_STEPS], of[ITERATIONS]) for of in (before, config)]
    can_differ = [*_moved(known.parent, before, config), COLD_STEPS, ITERATIONS]
    different = [text for text in different if text.split(" ")[0] not in can_differ]
    ExperimentError.require(
        not different,
        f"{known.parent} is a run with another config: {one_line('; '.join(different), 1000)}. "
        "Give another --workdir, or these values",
    )
    check_lengths(known.parent, *lengths)
    return lengths[0]


def _moved(folder: Path, before: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Settings whose folder may move, since the run recognizes its content by checksums or fingerprints."""
    if not (folder / SETUP / "sources.json").is_file():
        return []
    moved = ["cold_start.dataset"] if before.get("cold_start.dataset") and config["cold_start.dataset"] else []
    known = (*SHIPPED, *vlm.preset_names())
    is_model = bool(config["lora.rank"]) and before.get("model") not in known and config["model"] not in known
    return [*moved, "model"] if is_model else moved


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _wandb_id(file: Path) -> str:
    """The run's id at Weights & Biases: random, and saved so that a resumed run keeps it."""
    if not file.exists():
        write_atomically(file, json.dumps({"id": uuid.uuid4().hex[:16]}) + "\n")
    known = read_object(file, error=ExperimentError).get("id")
    ExperimentError.require(
        isinstance(known, str) and re.fullmatch(r"[\w-]{1,64}", known, re.ASCII) is not None,
        f'{file} is damaged: {{"id": "…"}} is wanted, the id of the run at Weights & Biases',
    )
    return str(known)


class _Loggers:
    """Loggers: TensorBoard, and Weights & Biases if enabled."""

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

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            if math.isfinite(value):
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def show(self, step: int, name: str, frame: HostImages, text: str) -> None:
        self._board.add_image(name, frame, step, dataformats="HWC")
        self._board.add_text(name, text, step)

    def close(self) -> None:
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
