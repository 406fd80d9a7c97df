"""Sample responses of each game, with their frames, as a page of Markdown."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from g1jax.envs import text
from g1jax.files import file_name, write_atomically
from g1jax.rl.rollout import Rollout
from g1jax.training.placement import Placement
from g1jax.training.setup import Setup
from g1jax.typing import HostImages

_STATES, _RESPONSES = 2, 2
_FENCE = "~~~~"


def write_samples(
    setup: Setup, folder: Path, step: int, rollouts: Sequence[Rollout], log: Callable[[str, HostImages, str], None]
) -> None:
    """Writes `step_000123.md` and its frames, and calls `log` with each state's name, frame and responses.

    All processes call it, the first one writes.
    """
    name, n = f"step_{step:06d}", setup.experiment.rl.num_samples
    shared = [rollout.frames.shape[0] * n == rollout.returns.shape[0] for rollout in rollouts]
    rollouts = jax.device_get(_first_rows(setup.placement, _STATES * n, tuple(rollouts)))
    if jax.process_index() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# Responses at step {step}", ""]
    for game, rollout, is_shared in zip(setup.games, rollouts, shared, strict=True):
        for i in range(min(_STATES, rollout.returns.shape[0] // n)):
            file, frame = f"{name}_{file_name(game.id)}_{i}.png", np.asarray(rollout.frames[i if is_shared else i * n])
            Image.fromarray(frame).save(folder / file)
            lines += [f"## {game.id}", "", f"![frame]({file})", ""]
            first = len(lines)
            for row in range(i * n, i * n + min(n, _RESPONSES)):
                response = text.decode(rollout.responses.bytes[row]).replace(_FENCE, "")
                labels = [f"reward {float(rollout.returns[row]):g}"]
                labels += ["board exact"] if bool(rollout.reward.is_seen[row]) else []
                labels += ["legal"] if bool(rollout.is_legal[row]) else ["illegal"]
                lines += [", ".join(labels), "", _FENCE, response, _FENCE, ""]
            log(f"samples/{game.id}/{i}", frame, "\n".join(lines[first:]))
    write_atomically(folder / f"{name}.md", "\n".join(lines))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first_rows(placement: Placement, count: int, rollouts: tuple[Rollout, ...]) -> tuple[Rollout, ...]:
    """The first rows, replicated so that every process can read them."""
    return placement.replicate_in_jit(jax.tree.map(lambda leaf: leaf[:count], rollouts))
