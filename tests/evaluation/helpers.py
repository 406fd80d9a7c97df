"""Hand-made episodes."""

from typing import Any

import numpy as np

from g1jax import envs
from g1jax.evaluation.protocol import Episodes, Judged

GAME = envs.make("game_2048")


def episodes_of(
    reward: list[list[float]],
    *,
    is_exact: list[list[int]] | None = None,
    is_invalid: list[list[int]] | None = None,
    is_end: list[list[int]] | None = None,
    game: Any = GAME,
    seed: int = 0,
) -> Episodes:
    """Episodes with these rewards, [E][T], all moves legal unless invalid."""
    rewards = np.array(reward, np.float32)
    invalid = np.zeros(rewards.shape, bool) if is_invalid is None else np.array(is_invalid, bool)
    written: dict[str, Any] = {}
    if is_exact is not None:
        exact = np.array(is_exact, bool)
        written = {
            "is_exact": exact,
            "num_right": np.where(exact, 16, 15),
            "is_formatted": ~invalid,
            "num_bytes": np.full(rewards.shape, 10),
            "num_tokens": np.full(rewards.shape, 4),
        }
    ended = np.zeros(rewards.shape, bool) if is_end is None else np.array(is_end, bool)
    played: dict[str, Any] = {"reward": rewards, "is_legal": ~invalid, "is_invalid": invalid}
    return Episodes(game, seed, Judged(**played, is_end=ended, **written))  # type: ignore[arg-type]
