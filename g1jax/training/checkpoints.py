"""Checkpoints of a run's state, with Orbax: written atomically in the background.

Each has checksums, written before it becomes visible and compared before it is loaded, so that damage is distinguished
from other reasons why a checkpoint does not load; a bucket has its own. Only the oldest checkpoints beyond `keep` are
deleted: a damaged one is moved aside once an earlier one has been loaded.
"""

import contextlib
import dataclasses
import errno
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from g1jax import untrusted
from g1jax.errors import ExperimentError
from g1jax.sft.fact_loss import without_heads
from g1jax.training import checksums
from g1jax.training.bucket import DAMAGED, is_url
from g1jax.training.checksums import DamagedError
from g1jax.training.processes import any_process
from g1jax.training.steps import RunState

METADATA = "_CHECKPOINT_METADATA"  # Orbax's, with the time of creation; still changes after the checksums are written
_SHOWN = 3
State = TypeVar("State", RunState, dict[str, Any])
"""A run's state, or a dict of some of its fields."""


class Checkpoints:
    """The checkpoints in a folder, by step."""

    def __init__(self, folder: Path, keep: int, *, is_reader: bool = False) -> None:
        """A reader changes nothing in the folder, since a run may be writing it."""
        self._is_in_bucket = is_url(folder)
        self._folder = folder if self._is_in_bucket else folder.resolve()
        self._keep = keep
        self._is_reader = is_reader
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._in_progress: int | None = None
        self.last: int | None = max(self.steps, default=None)

    @property
    def steps(self) -> list[int]:
        """The steps with checkpoints, ascending."""
        if not self._folder.exists():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if _is_step(path.name) and path.is_dir())

    def open(self) -> "ocp.training.Checkpointer":
        """Prepares the folder for writing, and removes checkpoints that a killed process left incomplete."""
        assert not self._is_reader
        if self._checkpointer is None:
            context = ocp.Context()
            # A lambda: Orbax deep-copies its options, and with a bound method this whole object.
            context.async_options.post_finalization_callback = lambda: self._write_checksums()
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                context=context,
                preservation_policy=ocp.training.preservation_policies.LatestN(max(self._keep, 1)),
                cleanup_tmp_directories=True,
            )
        return self._checkpointer

    def save(self, step: int, state: RunState) -> None:
        """Saves in the background; the state may be donated at once.

        Raises:
            OSError: this checkpoint or the one before it could not be written, for example on a full disk.
        """
        if step == self.last:
            return
        if jax.default_backend() == "cpu":  # where a copy to the host may alias the buffer
            state = jax.tree.map(jnp.copy, state)
        with self._writing(f"checkpoint {step}, or the one before it,"):
            checkpointer = self.open()
            checkpointer.wait()
            self._in_progress = step
            checkpointer.save_async(step, state, force=True)
        self.last = step

    def restore(self, template_of: Callable[[int], State], warn: Callable[[str], None]) -> State | None:
        """The newest intact state, or None if there are no checkpoints.

        A damaged checkpoint is reported and the one before it is tried. Once one has been loaded, the damaged ones are
        moved to `checkpoints_damaged`, next to the folder; a reader leaves them in place.

        `template_of`: the shapes, dtypes and shardings of the state after a step, or of some of its fields.

        Raises:
            ExperimentError: all are damaged, or the newest intact one cannot be loaded. Nothing was changed.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                state = self.load(step, template_of(step), warn)
            except DamagedError as error:
                if (self._folder / str(step)).is_dir():  # else the run deleted its oldest checkpoint in the meantime
                    damaged[step] = str(error)
                continue
            damaged |= {} if self._is_reader else self._unlisted(step)
            for other, reason in damaged.items():
                action = "skipped" if self._is_reader else f"moved to {self._move_aside(other)}"
                warn(f"checkpoint {other} is damaged, and {action}: {reason}")
            self.last = step
            return state
        ExperimentError.require(
            not damaged,
            f"{self._folder}: every checkpoint is damaged ({', '.join(map(str, damaged))}), and nothing was changed: "
            f"{next(iter(damaged.values()), '')}. Restore a copy of a checkpoint, or give another --workdir",
        )
        self.last = None
        return None

    def load(self, step: int, template: State, warn: Callable[[str], None] = lambda line: None) -> State:
        """The state after a step, or the fields of it that the template has.

        Raises:
            DamagedError: it is missing, or its files differ from what was written.
            ExperimentError: it cannot be loaded for another reason; the message says why and what to do.
        """
        path = self._folder / str(step)
        DamagedError.require(path.is_dir(), f"{self._folder} no longer has checkpoint {step}")
        is_checked = self._check(path)
        if not is_checked:
            warn(f"checkpoint {step} has no checksums, as an earlier version wrote it: damage may go unnoticed")
        wanted = template
        if isinstance(template, RunState) and template.reference is not None and not _has_reference(path):
            wanted = dataclasses.replace(template, reference=None)  # a cold start that RL was added to
        mismatch = _mismatch(path, wanted)
        ExperimentError.require(
            not mismatch,
            f"{path} does not match this run's state: {mismatch}. Use the version of g1jax that wrote it, or give "
            "another --workdir",
        )
        try:
            with _loading(is_partial=isinstance(wanted, dict)):
                state: State = ocp.load(path, wanted)
            # Orbax gives the sharding of a key another form, for which a step would be compiled again.
            state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, wanted)
            if isinstance(state, RunState) and wanted is not template:
                return dataclasses.replace(state, reference=jax.tree.map(jnp.copy, without_heads(state.trained)))
            return state
        except Exception as error:  # Orbax has no common class for loading errors
            raise _reason(path, error, is_checked) from error

    def wait(self) -> None:
        """Waits for the checkpoint that is being written.

        Raises:
            OSError: it could not be written, for example on a full disk.
        """
        if self._checkpointer is not None:
            with self._writing(f"checkpoint {self.last}"):
                self._checkpointer.wait()

    def close(self, *, is_quiet: bool = False) -> None:
        """Waits, and releases the folder. If quiet, write errors are ignored.

        Raises:
            OSError: the last checkpoint could not be written.
        """
        with contextlib.suppress(OSError) if is_quiet else contextlib.nullcontext():
            self.wait()
        if self._checkpointer is not None:
            with contextlib.suppress(Exception):  # `wait` has reported it
                self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(is_quiet=kind is not None)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax has no common class for write errors
            message = (
                f"{self._folder}: {what} could not be written: {first_line(error)}. Earlier checkpoints are intact"
            )
            raise OSError(message) from error

    def _write_checksums(self) -> None:
        """Called by Orbax, in its thread, when a checkpoint's files are complete but not yet renamed into place."""
        if jax.process_index() == 0 and not self._is_in_bucket:
            drafts = list(self._folder.glob(f"{self._in_progress}.orbax-checkpoint-tmp*"))
            for folder in drafts or [self._folder / str(self._in_progress)]:
                checksums.write(folder, leave_out=frozenset({METADATA}))

    def _check(self, path: Path) -> bool:
        """Compares a checkpoint with its checksums in the first process; returns whether it has any.

        Raises (in every process):
            DamagedError: it differs.
            ExperimentError: it cannot be read.
        """
        is_checked = False
        fault: ExperimentError | None = None
        if jax.process_index() == 0:
            try:
                is_checked = self._is_in_bucket or checksums.check(path)
                _check_metadata(path / METADATA)
            except DamagedError as error:
                fault = error
            except OSError as error:
                fault = _unreadable(path, error)
        if any_process(isinstance(fault, DamagedError)):
            raise fault or DamagedError(f"{path} is damaged")
        if any_process(fault is not None):
            raise fault or ExperimentError(f"{path} cannot be read by the first process")
        return any_process(is_checked)

    def _unlisted(self, before: int) -> dict[int, str]:
        """Earlier checkpoints that Orbax cannot list, which keeps it from opening the folder, and why."""
        damaged = {}
        for step in [step for step in self.steps if step < before]:
            try:
                _check_metadata(self._folder / str(step) / METADATA)
            except DamagedError as error:
                damaged[step] = str(error)
        return damaged

    def _move_aside(self, step: int) -> Path:
        """Moves a checkpoint out of the folder, to an unused name."""
        folder = self._folder.parent / DAMAGED
        target = next(place for n in itertools.count(1) if not (place := folder / f"{step}-{n}").exists())
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            if self._is_in_bucket:  # which has no empty folders
                (folder / "about.txt").write_text("Checkpoints that could not be read when the run was resumed.\n")
            (self._folder / str(step)).rename(target)
        any_process(False)  # a barrier
        return target


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def _loading(*, is_partial: bool) -> Iterator[None]:
    """Orbax's settings for loading all arrays of a checkpoint, or only those of the template."""
    context = ocp.Context()
    context.pytree_options.loading.partial_load = is_partial
    with context:
        yield


# Reasons why a checkpoint does not load


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _check_metadata(file: Path) -> None:
    """Raises DamagedError unless Orbax can read a checkpoint's times and metrics."""
    try:
        content = untrusted.parse_json(file.read_bytes(), str(file), error=DamagedError)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DamagedError(f"{file}: {error.strerror}") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{file} is not a JSON object")


def _mismatch(path: Path, template: RunState | dict[str, Any]) -> str:
    """How the arrays of a checkpoint differ from a state's; empty if they do not, or its metadata is damaged."""
    try:
        tree = ocp.metadata(path).metadata
        found = _specs(tree)
    except Exception:  # damaged, which loading reports
        return ""
    wanted = _specs(template)
    kinds = {
        "missing": [name for name in wanted if name not in found],
        "unknown": [name for name in found if name not in wanted and not isinstance(template, dict)],
        "different": [
            f"{name} is {found[name]}, not {spec}" for name, spec in wanted.items() if found.get(name, spec) != spec
        ],
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)}"
        for kind, names in kinds.items()
        if names
    )


def _has_reference(path: Path) -> bool:
    """Whether a checkpoint has a reference policy; True if its metadata is damaged, which loading reports."""
    try:
        return any(name.startswith("reference.") for name in _specs(ocp.metadata(path).metadata))
    except Exception:
        return True


def _specs(tree: Any) -> dict[str, str]:
    """Dtype and shape of each leaf by its path, in dataclasses, dicts and tuples: `trained.model.norm.scale`."""
    return {
        ".".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in path): _spec(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _spec(leaf: Any) -> str:
    """`float32[8, 16]`; for a random key that of its data, which is what is saved."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _reason(path: Path, error: Exception, is_checked: bool) -> Exception:
    """The error to raise for one of Orbax, which wraps the cause in errors about its handlers."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    messages = " ".join(map(str, chain))
    if any(isinstance(link, MemoryError) for link in chain) or "RESOURCE_EXHAUSTED" in messages:
        return ExperimentError(f"{path} does not fit in memory: give it more devices, or devices with more memory")
    for link in chain:
        if isinstance(link, OSError) and link.errno not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            return _unreadable(path, link)
    if "PERMISSION_DENIED" in messages:
        return ExperimentError(f"{path} cannot be read: permission denied. Grant this user read access")
    reason = first_line(Exception(str(chain[-1]) or type(chain[-1]).__name__))
    if not is_checked:
        return DamagedError(f"{path}: {reason}")
    return ExperimentError(
        f"{path} is intact, but cannot be loaded here: {reason}. Use the devices, settings and version that wrote it"
    )


def _unreadable(path: Path, error: OSError) -> ExperimentError:
    reason = error.strerror or error
    return ExperimentError(f"{path} cannot be read: {reason}. Nothing was changed: make it readable and run again")
