"""What the policy saw and said: a page of Markdown and a frame for some responses of each game."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from g1jax.envs import text
from g1jax.rl.rollout import Rollout
from g1jax.training.folder import write_atomically
from g1jax.training.setup import Setup

_STATES, _RESPONSES = 2, 2
_FENCE = "~~~~"


def write_samples(setup: Setup, folder: Path, step: int, rollouts: Sequence[Rollout]) -> Path:
    """Writes `step_000123.md` and its frames; gives the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    name, n = f"step_{step:06d}", setup.experiment.rl.num_samples
    lines = [f"# Responses at step {step}", ""]
    for game, rollout in zip(setup.games, rollouts, strict=True):
        is_shared = rollout.frames.shape[0] * n == rollout.responses.bytes.shape[0]
        for i in range(min(_STATES, rollout.responses.bytes.shape[0] // n)):
            frame = f"{name}_{game.id}_{i}.png"
            Image.fromarray(np.asarray(rollout.frames[i if is_shared else i * n])).save(folder / frame)
            lines += [f"## {game.id}", "", f"![frame]({frame})", ""]
            for row in range(i * n, i * n + min(n, _RESPONSES)):
                said = text.decode(rollout.responses.bytes[row]).replace(_FENCE, "")
                facts = [f"reward {float(rollout.returns[row]):g}"]
                facts += ["board exact"] if bool(rollout.reward.is_seen[row]) else []
                facts += ["legal"] if bool(rollout.is_legal[row]) else ["illegal"]
                lines += [", ".join(facts), "", _FENCE, said, _FENCE, ""]
    write_atomically(folder / f"{name}.md", "\n".join(lines))
    return folder / f"{name}.md"
