"""Checkpoints of a run's state, with Orbax: written in the background, whole or not at all, newest first when read.

Each has checksums, written before it is visible and compared before it is loaded, so damage is told from everything
else that keeps a checkpoint from loading. Nothing here deletes a checkpoint, but for the oldest once there are more
than the run keeps: a damaged one is moved aside when an earlier one has been loaded in its place.
"""

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from g1jax import foreign
from g1jax.errors import ExperimentError
from g1jax.training import checksums
from g1jax.training.checksums import DamagedError
from g1jax.training.processes import any_process
from g1jax.training.steps import RunState

DAMAGED = "checkpoints_damaged"
_METADATA = "_CHECKPOINT_METADATA"  # Orbax's; changed once more after the checksums are written
_SHOWN = 3


class Checkpoints:
    """The checkpoints in a folder, by step."""

    def __init__(self, folder: Path, keep: int, *, is_reader: bool = False) -> None:
        """A reader changes nothing in the folder: a run may be writing it."""
        self._folder = folder.resolve()
        self._keep = keep
        self._is_reader = is_reader
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._in_progress: int | None = None
        self.last: int | None = max(self.steps, default=None)

    @property
    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, ascending."""
        if not self._folder.exists():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if _is_step(path.name) and path.is_dir())

    def open(self) -> "ocp.training.Checkpointer":
        """Makes the folder ready to be written: what a kill left half-written is cleared away."""
        assert not self._is_reader
        if self._checkpointer is None:
            context = ocp.Context()
            # A function: Orbax copies its options deeply, and with a bound method all of this object.
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
            OSError: this one, or the one before it, could not be written, for example on a full disk.
        """
        if step == self.last:
            return
        if jax.default_backend() == "cpu":  # where "copying to the host" may copy nothing
            state = jax.tree.map(jnp.copy, state)
        with self._writing(f"checkpoint {step}, or the one before it,"):
            checkpointer = self.open()
            checkpointer.wait()
            self._in_progress = step
            checkpointer.save_async(step, state, force=True)
        self.last = step

    def restore(self, template_of: Callable[[int], RunState], warn: Callable[[str], None]) -> RunState | None:
        """The newest state that is whole, or None if there are no checkpoints.

        A damaged checkpoint is named and the one before is tried. Once one has been loaded, and not by a reader, the
        damaged ones are moved to `checkpoints_damaged`, beside the folder.

        `template_of`: the shapes, dtypes and shardings of the state after so many steps.

        Raises:
            ExperimentError: all are damaged, or the newest that is whole cannot be loaded. Nothing was changed.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                state = self.load(step, template_of(step), warn)
            except DamagedError as error:
                if (self._folder / str(step)).is_dir():  # or a run has deleted its oldest while it was read
                    damaged[step] = str(error)
                continue
            damaged |= {} if self._is_reader else self._unlisted(step)
            for other, why in damaged.items():
                where = "passed over" if self._is_reader else f"moved to {self._move_aside(other)}"
                warn(f"checkpoint {other} is damaged, and {where}: {why}")
            self.last = step
            return state
        ExperimentError.require(
            not damaged,
            f"{self._folder}: every checkpoint is damaged ({', '.join(map(str, damaged))}), and nothing was changed: "
            f"{next(iter(damaged.values()), '')}. Put back a copy of a checkpoint, or give another --workdir",
        )
        self.last = None
        return None

    def load(self, step: int, template: RunState, warn: Callable[[str], None] = lambda line: None) -> RunState:
        """The state after a step.

        Raises:
            DamagedError: it is gone, or its files are not what was written.
            ExperimentError: it cannot be loaded for another reason; the message says why and what to do.
        """
        path = self._folder / str(step)
        if not path.is_dir():
            raise DamagedError(f"{self._folder} has no checkpoint {step} any more")
        is_checked = self._check(path)
        if not is_checked:
            warn(f"checkpoint {step} has no checksums, since an earlier version wrote it: damage to it may go unseen")
        unlike = _unlike(path, template)
        ExperimentError.require(
            not unlike,
            f"{path} holds another state than this run's: {unlike}. Use the version of g1jax that wrote it, or give "
            "another --workdir",
        )
        try:
            state: RunState = ocp.load(path, template)
            # Orbax gives a key's sharding another form, with which a step would be compiled again.
            return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, template)
        except Exception as error:  # Orbax has no one class for what keeps a checkpoint from loading
            raise _reason(path, error, is_checked) from error

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
            OSError: it could not be, for example on a full disk.
        """
        if self._checkpointer is not None:
            with self._writing(f"checkpoint {self.last}"):
                self._checkpointer.wait()

    def close(self, *, is_quiet: bool = False) -> None:
        """Waits, and lets go of the folder. Quietly: what could not be written is no error any more.

        Raises:
            OSError: the last checkpoint could not be written.
        """
        with contextlib.suppress(OSError) if is_quiet else contextlib.nullcontext():
            self.wait()
        if self._checkpointer is not None:
            with contextlib.suppress(Exception):  # what it has to say, `wait` has said
                self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(is_quiet=kind is not None)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax has no one class for what a disk does
            message = f"{self._folder}: {what} could not be written: {first_line(error)}. The ones before it stand"
            raise OSError(message) from error

    def _write_checksums(self) -> None:
        """Called by Orbax, in its thread, when a checkpoint's files are complete and not yet in their place."""
        if jax.process_index() == 0:
            drafts = list(self._folder.glob(f"{self._in_progress}.orbax-checkpoint-tmp*"))
            for folder in drafts or [self._folder / str(self._in_progress)]:
                checksums.write(folder, leave_out=frozenset({_METADATA}))

    def _check(self, path: Path) -> bool:
        """Compares a checkpoint with its checksums, in the first process; whether it has any.

        Raises:
            DamagedError: it differs, in every process.
            ExperimentError: it cannot be read.
        """
        is_checked = False
        wrong: ExperimentError | None = None
        if jax.process_index() == 0:
            try:
                is_checked = checksums.check(path)
                _check_metadata(path / _METADATA)
            except DamagedError as error:
                wrong = error
            except OSError as error:
                wrong = _unreadable(path, error)
        if any_process(isinstance(wrong, DamagedError)):
            raise wrong or DamagedError(f"{path} is damaged")
        if any_process(wrong is not None):
            raise wrong or ExperimentError(f"{path} cannot be read by the first process")
        return any_process(is_checked)

    def _unlisted(self, before: int) -> dict[int, str]:
        """Earlier checkpoints that Orbax could not even list, and why; it would not open the folder."""
        damaged = {}
        for step in [step for step in self.steps if step < before]:
            try:
                _check_metadata(self._folder / str(step) / _METADATA)
            except DamagedError as error:
                damaged[step] = str(error)
        return damaged

    def _move_aside(self, step: int) -> Path:
        """Moves a checkpoint out of Orbax's sight, to a name that nothing has yet."""
        folder = self._folder.parent / DAMAGED
        target = next(place for n in itertools.count(1) if not (place := folder / f"{step}-{n}").exists())
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(target)
        any_process(False)  # all wait for it
        return target


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# Why a checkpoint does not load


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _check_metadata(file: Path) -> None:
    """Raises DamagedError unless Orbax can read a checkpoint's times and metrics."""
    try:
        content = foreign.parse_json(file.read_bytes(), str(file), error=DamagedError)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DamagedError(f"{file}: {error.strerror}") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{file} is not an object of JSON")


def _unlike(path: Path, template: RunState) -> str:
    """In what the arrays of a checkpoint differ from a state's; empty if in nothing, or if that cannot be told."""
    try:
        tree = ocp.metadata(path).metadata
        there = {_name(keys): _form(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    except Exception:  # a damaged one, of which loading says more
        return ""
    here = {_name(keys): _form(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(template)}
    kinds = {
        "missing": [name for name in here if name not in there],
        "unknown": [name for name in there if name not in here],
        "other": [
            f"{name} is {there[name]}, not {form}" for name, form in here.items() if there.get(name, form) != form
        ],
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)}"
        for kind, names in kinds.items()
        if names
    )


def _name(keys: tuple[Any, ...]) -> str:
    """A leaf's place, whether in a dataclass, a dict or a tuple: `trained.model.norm.scale`."""
    return ".".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in keys)


def _form(leaf: Any) -> str:
    """Dtype and shape; of a key those of its data, as they are saved."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _reason(path: Path, error: Exception, is_checked: bool) -> Exception:
    """What to raise for an error of Orbax's, which wraps what it met in errors about its handlers."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    said = " ".join(map(str, chain))
    if any(isinstance(link, MemoryError) for link in chain) or "RESOURCE_EXHAUSTED" in said:
        return ExperimentError(f"{path} does not fit in memory: give it more devices, or devices with more memory")
    for link in chain:
        if isinstance(link, OSError) and link.errno not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            return _unreadable(path, link)
    if "PERMISSION_DENIED" in said:
        return ExperimentError(f"{path} cannot be read: permission denied. Give this user the right to read it")
    why = first_line(Exception(str(chain[-1]) or type(chain[-1]).__name__))
    if not is_checked:
        return DamagedError(f"{path}: {why}")
    return ExperimentError(
        f"{path} is whole, and cannot be loaded here: {why}. Use the devices, settings and version that wrote it"
    )


def _unreadable(path: Path, error: OSError) -> ExperimentError:
    why = error.strerror or error
    return ExperimentError(f"{path} cannot be read: {why}. Nothing was changed: make it readable, and start again")
