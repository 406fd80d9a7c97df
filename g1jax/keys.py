"""Random keys of a training run: one for every use, derived by name from the run's seed.

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

Each edge is a `fold_in`. An inner key is only ever folded: `fold_in(key, i)` equals `split(key, n)[i]`, so splitting it
too would give the same keys twice. Evaluations derive keys in another way; see `evaluation.protocol`.
"""

import enum

import jax

from g1jax.typing import Array, Key


class OfRun(enum.IntEnum):
    """Keys used before the first step. Never renumber: a LoRA run re-creates its frozen weights from WEIGHTS."""

    WEIGHTS = 0
    LORA = 1
    COLD_ENVS = 2
    PLAY_ENVS = 3
    STEPS = 4
    HEADS = 5


class OfStep(enum.IntEnum):
    """Keys of a step: TEACH in the cold start, the others in an iteration of RL."""

    TEACH = 0
    STATES = 1
    ROLLOUT = 2
    PLAY = 3
    UPDATE = 4
    ESCAPE = 5


def of_run(seed: int, use: OfRun) -> Key:
    """The key for one use in a run."""
    return jax.random.fold_in(jax.random.key(seed), use.value)


def of_step(steps: Key, step: Array | int, use: OfStep) -> Key:
    """The key for one use in a step, from the run's key STEPS."""
    return jax.random.fold_in(jax.random.fold_in(steps, step), use.value)


def of_game(key: Key, index: int) -> Key:
    """The key of one of the run's games, from a key for all games."""
    return jax.random.fold_in(key, index)
