"""Checkpoints of a run's state, with Orbax: written in the background, whole or not at all, newest first when read."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from g1jax.training.steps import RunState


class Checkpoints:
    """The checkpoints in a folder, by step."""

    def __init__(self, folder: Path, keep: int, *, is_reader: bool = False) -> None:
        """A reader leaves what is half-written alone: a run may be writing it."""
        policy = ocp.training.preservation_policies.LatestN(max(keep, 1))
        self._folder = folder
        self._checkpointer = ocp.training.Checkpointer(
            folder.resolve(), preservation_policy=policy, cleanup_tmp_directories=not is_reader
        )
        self.last: int | None = None if self._checkpointer.latest is None else self._checkpointer.latest.step

    @property
    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: RunState) -> None:
        """Saves in the background; the state may be given away at once.

        Raises:
            OSError: this one, or the one before it, could not be written, for example on a full disk.
        """
        if step == self.last:
            return
        if jax.default_backend() == "cpu":  # where "copying to the host" may copy nothing
            state = jax.tree.map(jnp.copy, state)
        with self._writing(f"checkpoint {step}, or the one before it,"):
            self._checkpointer.save_async(step, state, force=True)
        self.last = step

    def restore(
        self, template_of: Callable[[int], RunState], warn: Callable[[str], None], *, delete: bool = True
    ) -> RunState | None:
        """The newest state that can be read, or None if there is none; damaged ones are named, and deleted if asked.

        `template_of`: the shapes, dtypes and shardings of the state after so many steps.
        """
        for step in reversed(self.steps):
            template = template_of(step)
            try:
                state = self.load(step, template)
            except Exception as error:  # whatever a damaged file makes Orbax raise
                warn(f"checkpoint {step} cannot be read, trying the one before: {first_line(error)}")
                if delete:
                    self._checkpointer.delete(step)
                continue
            self.last = step
            return state
        self.last = None
        return None

    def load(self, step: int, template: RunState) -> RunState:
        """The state after a step; what Orbax raises if it cannot be read."""
        state: RunState = self._checkpointer.load(step, template)
        # Orbax gives a key's sharding another form, with which a step would be compiled again.
        return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, template)

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
            OSError: it could not be, for example on a full disk.
        """
        with self._writing(f"checkpoint {self.last}"):
            self._checkpointer.wait()

    def close(self, *, is_quiet: bool = False) -> None:
        """Waits, and lets go of the folder. Quietly: what could not be written is no error any more.

        Raises:
            OSError: the last checkpoint could not be written.
        """
        with contextlib.suppress(OSError) if is_quiet else contextlib.nullcontext():
            self.wait()
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


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
