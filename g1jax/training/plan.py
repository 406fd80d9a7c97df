"""What a run needs on devices that are not at hand: its real steps, compiled for them, and what the compiler says.

    setup = make_setup(experiment, devices=target_of("h100x8").devices())
    for step in STEPS:
        print(plan_step(setup, step))

Nothing is allocated and no weights are read. The compilers are those that a run uses, so memory and traffic are those
of the run as far as its programs go; what is not in them is left out: the runtime's own memory, fragmentation, NCCL's
buffers.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.envs.core import Game
from g1jax.evaluation.players import policy_player, prepared
from g1jax.training import precompile
from g1jax.training.collectives import SHARES, sent_a_turn, sent_bytes, traffic_of
from g1jax.training.setup import Setup
from g1jax.training.steps import (
    Constants,
    RunState,
    cold_step,
    learn,
    roll_out,
    rollout_params,
    template,
    with_shardings,
)  # fmt: skip
from g1jax.typing import Pytree
from g1jax.vlm.generation import DECODE
from g1jax.vlm.master_weights import Master

STEPS = ("cold_start", "rollout", "update", "evaluation")
"""The programs of a run: a step of the cold start; the two halves of an iteration of RL; a step of an evaluation."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A program on one of its devices: bytes, as the compiler for the device plans them."""

    step: str
    weights: int
    """The model's params as stored: sharded, with LoRA's."""
    master: int
    """Float32 master weights."""
    moments: int
    """Those of the optimizer."""
    reference: int
    """The reference policy."""
    cache: int
    """Keys and values of the longest responses of the game that needs most."""
    working: int
    """All else: activations, gradients, gathered weights, logits, the batch."""
    sent: float
    """Bytes that a device sends in one call, without those of `sent_a_token`."""
    sent_a_token: float
    """Bytes that a device sends for one more token of all responses."""
    num_async: int
    """Collectives that overlap with computation, of `num_collectives` in the program's text."""
    num_collectives: int
    seconds: float
    """What compilation took here."""

    @property
    def peak(self) -> int:
        """All of them together."""
        return self.weights + self.master + self.moments + self.reference + self.cache + self.working


def plan_step(setup: Setup, step: str) -> StepPlan:
    """Compiles one of `STEPS` for the devices of the setup's mesh.

    Raises:
        ConfigError, ExperimentError: the step does not suit the devices.
        RuntimeError: XLA's, if the compiler finds by itself that the program does not fit.
    """
    with jax.set_mesh(setup.mesh):
        state = template(setup, 0 if step == "cold_start" else setup.experiment.cold_start.steps + 1)
        start = time.monotonic()
        compiled, arguments = _LOWER[step](setup, state)
    seconds = time.monotonic() - start
    memory: Any = compiled.memory_analysis()
    program = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    program += memory.output_size_in_bytes - memory.alias_size_in_bytes
    held = held_bytes(setup, state)
    # What the program does not get as an argument stays on the device all the same.
    resident = sum(held.values()) - _num_bytes(arguments)
    cache = _cache_bytes(setup, _rows_at_once(setup, step))
    text = compiled.as_text()
    assert text is not None
    traffic = traffic_of(text, unknown_trips=0)
    asynchronous, together = _count_collectives(text)
    return StepPlan(
        step=step,
        **held,
        cache=cache,
        working=int(program + max(resident, 0) - sum(held.values()) - cache),
        sent=sent_bytes(traffic),
        sent_a_token=sent_a_turn(text, DECODE),
        num_async=asynchronous,
        num_collectives=together,
        seconds=seconds,
    )


def verdict(plan: StepPlan, memory: int) -> str:
    """Whether a step fits a device with this many bytes, with a twelfth to spare; if not, which settings help."""
    gib, share = plan.peak / 2**30, plan.peak / memory
    if share <= 11 / 12:
        return f"fits: {gib:.1f} of {memory / 2**30:.0f} GiB"
    kept = plan.weights + plan.master + plan.moments + plan.reference
    if kept > 0.6 * memory:
        advice = "more devices for mesh.fsdp, or lora.rank"
    elif plan.step in ("rollout", "evaluation"):
        advice = "more rl.rollout-parts" if plan.step == "rollout" else "fewer evaluation.episodes"
        advice = advice if plan.cache > plan.working else f"mesh.rollout-weights=sharded or mesh.tensor, or {advice}"
    else:
        name = "rl" if plan.step == "update" else "cold_start"
        advice = f"more {name}.microbatches, is_remat, attention=blockwise"
    return f"does not fit: {gib:.1f} of {memory / 2**30:.0f} GiB; {advice}"


# The programs


def _lower_cold_step(setup: Setup, state: RunState) -> tuple[Any, Pytree]:
    arguments = (state, _constants(setup), precompile.batches_template(setup))
    return cold_step.lower(setup.cold, *arguments).compile(), arguments[:2]


def _lower_rollout(setup: Setup, state: RunState) -> tuple[Any, Pytree]:
    """Only what generation reads is an argument."""
    read = RunState(state.step, state.key, state.trained, (), None, (), state.play_envs)
    arguments = (read, _constants(setup))
    return _roll_out.lower(setup.rl, *arguments).compile(), arguments


def _lower_update(setup: Setup, state: RunState) -> tuple[Any, Pytree]:
    constants = _constants(setup)
    rollouts, _ = jax.eval_shape(functools.partial(roll_out, setup.rl), state, constants)
    rollouts = with_shardings(rollouts, jax.tree.map(setup.placement.row_sharding, rollouts))
    return _learn.lower(setup.rl, state, constants, rollouts).compile(), (state, constants)


def _lower_evaluation(setup: Setup, state: RunState) -> tuple[Any, Pytree]:
    """A step of the game with the longest responses."""
    e, constants = setup.experiment, _constants(setup)
    policy = prepared(setup.policy, e.evaluation.temperature, setup.games)
    game: Game[Any] = max(setup.games, key=policy.max_new_tokens)
    count = _rows_at_once(setup, "evaluation") * setup.placement.num_shards
    respond = policy_player(policy, {}, constants.table).respond

    def act(trained: Any, constants: Constants, states: Any, keys: Any) -> Any:
        params = rollout_params(setup.rl.learner, setup.rl.gathers_weights, trained, constants.frozen)
        return respond((params, constants.table, {}), game, states, keys)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    shapes = jax.eval_shape(jax.vmap(game.reset), keys)
    rows = with_shardings((shapes, keys), jax.tree.map(setup.placement.row_sharding, (shapes, keys)))
    return jax.jit(act).lower(state.trained, constants, *rows).compile(), (state.trained, constants)


_LOWER: Mapping[str, Callable[[Setup, RunState], tuple[Any, Pytree]]] = {
    "cold_start": _lower_cold_step,
    "rollout": _lower_rollout,
    "update": _lower_update,
    "evaluation": _lower_evaluation,
}
_roll_out = jax.jit(roll_out, static_argnums=0)
_learn = jax.jit(learn, static_argnums=0, donate_argnums=(1, 3))


def _constants(setup: Setup) -> Constants:
    """The shapes of a step's constants."""
    table = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, setup.policy.table()))
    table = with_shardings(table, jax.tree.map(lambda _: setup.placement.sharding(), table))
    return Constants(precompile.frozen_template(setup), table)


# Counting


def held_bytes(setup: Setup, state: RunState) -> dict[str, int]:
    """The bytes of a run's state on a device, by part; `state` may be shapes with shardings."""
    optimizer = state.opt_state
    master = optimizer.weights if isinstance(optimizer, Master) else None
    rule = optimizer.rule if isinstance(optimizer, Master) else optimizer
    return {
        "weights": _num_bytes((state.trained, precompile.frozen_template(setup))),
        "master": _num_bytes(master),
        "moments": _num_bytes(rule),
        "reference": _num_bytes(state.reference),
    }


def _num_bytes(tree: Pytree) -> int:
    """A device's part of shapes with shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        dtype = np.dtype(np.uint32) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * dtype.itemsize
    return total


def longest_sequence(setup: Setup) -> int:
    """The tokens of a prompt and the longest response to it, of the game that has most."""
    policy = setup.policy
    return max(policy.prompt_length(game) + policy.max_new_tokens(game) for game in setup.games)


def _rows_at_once(setup: Setup, step: str) -> int:
    """The responses that a device generates at once."""
    rl, episodes = setup.experiment.rl, setup.experiment.evaluation.episodes
    if step == "rollout":
        rows = math.ceil(rl.states / rl.rollout_parts / setup.placement.num_shards) * rl.num_samples
        return rows * (len(setup.games) if setup.rl.is_decoded_jointly else 1)
    return math.ceil(max(episodes, 1) / setup.placement.num_shards) if step == "evaluation" else 0


def _cache_bytes(setup: Setup, rows: int) -> int:
    """The keys and values of these rows at full length, for the game that needs most."""
    config, tensor = setup.policy.config, setup.mesh.shape["tensor"]
    text = config.text
    heads = text.num_kv_heads // tensor if text.num_kv_heads % tensor == 0 else text.num_kv_heads
    numbers = 2 * text.num_layers * heads * text.head_dim * longest_sequence(setup) * rows
    return numbers * jnp.dtype(config.dtype).itemsize


def _count_collectives(text: str) -> tuple[int, int]:
    """Asynchronous collectives, and all, in a compiled program's text."""
    started = sum(text.count(f" {kind}-start(") for kind in SHARES)
    plain = sum(text.count(f" {kind}(") for kind in SHARES)
    wrapped = text.count(" async-start(")
    return started + min(wrapped, plain), started + plain
