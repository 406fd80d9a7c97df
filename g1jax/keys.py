"""Where a run's randomness comes from: every use has a key of its own, found by its name.

    seed ─┬ WEIGHTS
          ├ LORA
          ├ COLD_ENVS ── game
          ├ PLAY_ENVS ── game
          ├ HEADS ── game
          └ STEPS ── step ─┬ TEACH ── game
                           ├ STATES ── game
                           ├ ROLLOUT ── game
                           ├ PLAY ── game
                           └ UPDATE

Each line is a `fold_in`. A key in the middle is folded and nothing else: `fold_in(key, i)` equals `split(key, n)[i]`,
so one that is also split would give the same keys twice. Evaluations draw their episodes from seeds of their own kind,
see `evaluation.protocol`.
"""

import enum

import jax

from g1jax.typing import Array, Key


class OfRun(enum.IntEnum):
    """What a run draws before its steps. The numbers stay: a LoRA run makes its frozen weights again from WEIGHTS."""

    WEIGHTS = 0
    LORA = 1
    COLD_ENVS = 2
    PLAY_ENVS = 3
    STEPS = 4
    HEADS = 5


class OfStep(enum.IntEnum):
    """What a step draws: TEACH one of the cold start, the others an iteration of RL."""

    TEACH = 0
    STATES = 1
    ROLLOUT = 2
    PLAY = 3
    UPDATE = 4


def of_run(seed: int, use: OfRun) -> Key:
    """The key of a use of a run."""
    return jax.random.fold_in(jax.random.key(seed), use.value)


def of_step(steps: Key, step: Array | int, use: OfStep) -> Key:
    """The key of a use of a step, from a run's key STEPS."""
    return jax.random.fold_in(jax.random.fold_in(steps, step), use.value)


def of_game(key: Key, index: int) -> Key:
    """The key of one game of a run, of a key that is for all of them."""
    return jax.random.fold_in(key, index)
