"""Checkpoints of a run's state, with Orbax: written in the background, whole or not at all, newest first when read."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from g1jax.training.steps import RunState

logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints in a folder, by step."""

    def __init__(self, folder: Path, keep: int) -> None:
        policy = ocp.training.preservation_policies.LatestN(max(keep, 1))
        self._checkpointer = ocp.training.Checkpointer(
            folder.resolve(), preservation_policy=policy, cleanup_tmp_directories=True
        )
        self.last: int | None = None if self._checkpointer.latest is None else self._checkpointer.latest.step

    def save(self, step: int, state: RunState) -> None:
        """Saves in the background; the state may be given away at once."""
        if step == self.last:
            return
        if jax.default_backend() == "cpu":  # where "copying to the host" may copy nothing
            state = jax.tree.map(jnp.copy, state)
        self._checkpointer.save_async(step, state, force=True)
        self.last = step

    def restore(self, template: RunState, warn: Callable[[str], None], *, delete: bool = True) -> RunState | None:
        """The newest state that can be read, or None if there is none; damaged ones are named, and deleted if asked."""
        abstract = jax.tree.map(_shape_of, template)
        for checkpoint in sorted(self._checkpointer.checkpoints, key=lambda c: c.step, reverse=True):
            try:
                state: RunState = self._checkpointer.load(checkpoint.step, abstract)
            except Exception as error:  # whatever a damaged file makes Orbax raise
                warn(f"checkpoint {checkpoint.step} cannot be read, trying the one before: {_first_line(error)}")
                if delete:
                    self._checkpointer.delete(checkpoint.step)
                continue
            self.last = checkpoint.step
            return state
        self.last = None
        return None

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
            OSError: it could not be, for example on a full disk.
        """
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self._checkpointer.close()


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
