"""Compiles the steps of a run ahead of time, in a second thread.

XLA compiles a program on little more than one core, so the first step starts sooner if the teacher's program and the
step are compiled concurrently, and RL's step compiles while the cold start trains. A step that is called with the
shapes, dtypes and shardings that it was compiled for is not compiled again.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from g1jax import vlm
from g1jax.sft.batch import SFTBatch
from g1jax.sft.fact_loss import facts_of
from g1jax.training.setup import Setup
from g1jax.training.steps import COLD, RL, Constants, cold_step, constants_of, rl_step, template, with_shardings
from g1jax.vlm.sharding import BATCH


@contextlib.contextmanager
def compiling(setup: Setup, done: int) -> Iterator[Callable[[str], None]]:
    """Compiles the steps that a run needs after `done` steps; yields a function that waits for a phase's step.

    On exit an unfinished compilation is not waited for; the end of the process waits for it.
    """
    e = setup.experiment
    needed = {COLD: _compile_cold_step} if done < e.cold_start.steps else {}
    needed |= {RL: _compile_rl_step} if done < e.num_steps and e.rl.iterations else {}
    worker = ThreadPoolExecutor(max_workers=1)
    programs = {phase: worker.submit(compile_step, setup) for phase, compile_step in needed.items()}
    try:
        yield functools.partial(_wait, programs)
    finally:
        worker.shutdown(wait=False, cancel_futures=True)


def _wait(programs: Mapping[str, Future[None]], phase: str) -> None:
    """Waits until a phase's step is compiled, if it is one of these; raises errors of its compilation."""
    if phase in programs:
        programs[phase].result()


def _compile_cold_step(setup: Setup) -> None:
    with jax.set_mesh(setup.mesh):
        cold_step.lower(setup.cold, template(setup, 0), _constants_template(setup), batches_template(setup)).compile()


def _compile_rl_step(setup: Setup) -> None:
    with jax.set_mesh(setup.mesh):
        state = template(setup, setup.experiment.cold_start.steps + 1)
        rl_step.lower(setup.rl, state, _constants_template(setup)).compile()


def _constants_template(setup: Setup) -> Constants:
    """A step's constants; of the frozen params, their shapes, dtypes and shardings."""
    return constants_of(setup, frozen_template(setup))


def frozen_template(setup: Setup) -> Any:
    """The shapes, dtypes and shardings of the params that LoRA leaves as they are; None without LoRA."""
    if setup.lora is None:
        return None
    shapes = vlm.param_shapes(setup.policy.config)
    return with_shardings(shapes, setup.placement.param_shardings(shapes))


def batches_template(setup: Setup) -> tuple[SFTBatch, ...]:
    """The shapes, dtypes and shardings of a cold step's batches."""

    def rows(dtype: DTypeLike, *shape: int) -> Any:
        shape = (setup.experiment.cold_start.states, *shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=setup.placement.sharding(BATCH))

    cold, batches = setup.experiment.cold_start, []
    for game, env in zip(setup.games, setup.cold_envs, strict=True):
        n, facts = setup.policy.max_new_tokens(game), None
        if cold.facts_weight and not cold.dataset:
            states = jax.eval_shape(lambda env=env: env.reset(jax.random.key(0)).states)
            shapes = jax.eval_shape(functools.partial(facts_of, game), states)
            facts = jax.tree.map(lambda leaf: rows(leaf.dtype, *leaf.shape[1:]), shapes)
        tokens = rows(jnp.int32, n), rows(bool, n), rows(bool, n)
        boards = rows(jnp.uint8, game.board_text.length) if setup.policy.observation.caption else None
        batches.append(SFTBatch(rows(jnp.uint8, *game.frame_shape), *tokens, facts, boards))
    return tuple(batches)
