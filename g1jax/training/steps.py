"""A run's state and its two compiled steps: one supervised step of the cold start, one iteration of RL."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from g1jax import keys, vlm
from g1jax.envs.batch import Batch, BatchState
from g1jax.envs.level import TracedLevel
from g1jax.keys import OfRun, OfStep
from g1jax.rl.losses import Metrics
from g1jax.rl.rollout import Rollout, play_on, respond_and_branch, rollout_metrics
from g1jax.rl.update import update
from g1jax.sft.batch import SFTBatch
from g1jax.sft.fact_loss import HEADS, init_heads, without_heads
from g1jax.sft.step import supervised_step
from g1jax.training.setup import Setup, load_params
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params, TokenBytes, lora, master

COLD, RL = "cold_start", "rl"  # the two phases


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RunState:
    """Everything that changes during a run; saved in checkpoints."""

    step: Array  # int32[], steps done
    key: Key  # constant: the keys of all steps are derived from it, see `keys`
    trained: Params  # the model's params, or LoRA's
    opt_state: Pytree  # of the current phase; for bfloat16 params with float32 master weights
    reference: Params | None  # the reference policy of the KL
    cold_envs: tuple[BatchState, ...]  # one a game, in a cold start without a dataset
    play_envs: tuple[BatchState, ...]  # one a game, in RL with source "play"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Constants:
    """Other inputs of a step; not saved, since they follow from the experiment."""

    frozen: Params | None  # the model's own params under LoRA
    table: TokenBytes


def init_state(setup: Setup, params: Params) -> tuple[RunState, Constants]:
    """The state before the first step. `params` are donated."""
    trained, constants = params, constants_of(setup, None)
    if setup.lora is not None:
        constants = dataclasses.replace(constants, frozen=trained)
        key = keys.of_run(setup.experiment.seed, OfRun.LORA)
        trained = setup.placement.shard_params(lora.init(setup.policy.config, setup.lora, key))
    with jax.set_mesh(setup.mesh):
        return _init_state(setup, trained), constants


def start_rl(setup: Setup, state: RunState) -> RunState:
    """The state at the start of RL, after a cold start: a fresh optimizer, and the current policy as the reference.

    `state` is donated. Its moments and reference are freed before new ones are allocated, which keeps peak memory low.
    """
    kept = dataclasses.replace(state, opt_state=master.without_rule(state.opt_state), reference=None, cold_envs=())
    used = {id(leaf) for leaf in jax.tree.leaves(kept)}
    for leaf in jax.tree.leaves((state.opt_state, state.reference)):
        if id(leaf) not in used:
            leaf.delete()
    with jax.set_mesh(setup.mesh):
        return _start_rl(setup, kept)


def constants_of(setup: Setup, frozen: Params | None) -> Constants:
    """The constants of a run with these frozen params."""
    return Constants(frozen, setup.placement.replicate(setup.policy.table()))


def frozen_of(setup: Setup) -> Constants:
    """The constants for a state from a checkpoint; loads the frozen params under LoRA."""
    return constants_of(setup, None if setup.lora is None else load_params(setup))


def template(setup: Setup, step: int) -> RunState:
    """The shapes, dtypes and shardings of the state after `step` steps; allocates nothing."""

    def make() -> RunState:
        shapes = vlm.param_shapes(setup.policy.config)
        if setup.lora is not None:
            shapes = lora.init(setup.policy.config, setup.lora, jax.random.key(0))
        state = _first_state(setup, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
        return _rl_state(setup, state) if step > setup.experiment.cold_start.steps else state

    shapes = jax.eval_shape(make)
    return with_shardings(shapes, shardings(setup, shapes))


def with_shardings(shapes: Pytree, shardings: Pytree) -> Pytree:
    """Shapes and dtypes with shardings added."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, shardings)


def shardings(setup: Setup, state: RunState) -> RunState:
    """The shardings of a state: params by the model's rules, environments by rows, the rest replicated.

    The same before and after a step, so that it is compiled once.
    """
    placement = setup.placement
    replicated: Any = placement.sharding()
    return RunState(
        step=replicated,
        key=replicated,
        trained=placement.param_shardings(state.trained),
        opt_state=placement.param_shardings(state.opt_state),
        reference=None if state.reference is None else placement.param_shardings(state.reference),
        cold_envs=jax.tree.map(placement.row_sharding, state.cold_envs),
        play_envs=jax.tree.map(placement.row_sharding, state.play_envs),
    )


def needs_reference(setup: Setup) -> bool:
    """Whether the run keeps a reference policy."""
    return setup.experiment.rl.iterations > 0 and setup.algorithm.needs_reference


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _init_state(setup: Setup, trained: Params) -> RunState:
    return _constrain(setup, _first_state(setup, trained))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _start_rl(setup: Setup, state: RunState) -> RunState:
    return _constrain(setup, _rl_state(setup, state))


def _first_state(setup: Setup, trained: Params) -> RunState:
    e = setup.experiment
    cold_key = keys.of_run(e.seed, OfRun.COLD_ENVS)
    is_cold = e.cold_start.steps > 0
    optimizer = setup.cold_optimizer if is_cold else setup.rl_optimizer
    reference = jax.tree.map(jnp.copy, trained) if needs_reference(setup) else None
    if is_cold and e.cold_start.facts_weight:
        trained = {**trained, HEADS: init_heads(setup.policy, setup.games, keys.of_run(e.seed, OfRun.HEADS))}
    return RunState(
        step=jnp.int32(0),
        key=keys.of_run(e.seed, OfRun.STEPS),
        trained=trained,
        opt_state=optimizer.init(trained),
        reference=reference,
        cold_envs=_reset(setup.cold_envs, cold_key, setup.cold_levels) if is_cold and not e.cold_start.dataset else (),
        play_envs=() if is_cold else _first_play(setup),
    )


def _rl_state(setup: Setup, state: RunState) -> RunState:
    trained = without_heads(state.trained)
    return dataclasses.replace(
        state,
        trained=trained,
        opt_state=master.continued(setup.rl_optimizer.init(trained), master.mapped(without_heads, state.opt_state)),
        reference=jax.tree.map(jnp.copy, trained) if needs_reference(setup) else None,
        cold_envs=(),
        play_envs=_first_play(setup),
    )


def _reset(envs: tuple[Batch, ...], key: Key, levels: tuple[TracedLevel, ...]) -> tuple[BatchState, ...]:
    """Fresh environments at these levels."""
    return tuple(
        env.reset(keys.of_game(key, i), level) for i, (env, level) in enumerate(zip(envs, levels, strict=True))
    )


def _first_play(setup: Setup) -> tuple[BatchState, ...]:
    """Environments for the policy's own play; none with another source of states.

    They start at all stages of an episode, so that they do not reach the hard boards at the same time.
    """
    if setup.experiment.rl.source != "play":
        return ()
    key = keys.of_run(setup.experiment.seed, OfRun.PLAY_ENVS)
    return tuple(walk(setup, i, keys.of_game(key, i)) for i in range(len(setup.games)))


def _constrain(setup: Setup, state: RunState) -> RunState:
    """Within a jit: the state with its shardings."""
    return jax.lax.with_sharding_constraint(state, shardings(setup, state))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def cold_step(
    setup: Setup, state: RunState, constants: Constants, batches: tuple[SFTBatch, ...]
) -> tuple[RunState, Metrics]:
    """One supervised step on a batch of each game."""
    cold = setup.experiment.cold_start
    trained, opt_state, metrics = supervised_step(
        setup.policy,
        setup.cold_optimizer,
        setup.games,
        state.trained,
        state.opt_state,
        batches,
        see_weight=cold.see_weight,
        num_micro=cold.microbatches,
        full_params=lambda trained: setup.full_params(trained, constants.frozen),
        facts_weight=cold.facts_weight,
    )
    after = dataclasses.replace(state, step=state.step + 1, trained=trained, opt_state=opt_state)
    return _constrain(setup, after), setup.placement.replicate_in_jit(metrics | {"params_norm": _norm(trained)})


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def rl_step(setup: Setup, state: RunState, constants: Constants) -> tuple[RunState, Metrics, tuple[Rollout, ...]]:
    """One iteration: states, responses, rewards, update. Returns the rollouts as well, for samples."""
    rl = setup.experiment.rl
    states_key, rollout_key, play_key, update_key = (
        keys.of_step(state.key, state.step, use) for use in (OfStep.STATES, OfStep.ROLLOUT, OfStep.PLAY, OfStep.UPDATE)
    )
    params = setup.full_params(state.trained, constants.frozen)
    rollouts, play_envs = [], []
    for i in range(len(setup.games)):
        envs = state.play_envs[i] if rl.source == "play" else walk(setup, i, keys.of_game(states_key, i))
        rollout, actions = _roll_out(setup, i, params, constants.table, envs.states, keys.of_game(rollout_key, i))
        rollouts.append(rollout)
        if rl.source == "play":
            play_envs.append(setup.play_envs[i].step(envs, actions, keys.of_game(play_key, i))[0])
    trained, opt_state, metrics = update(
        setup.policy,
        setup.algorithm,
        setup.rl_optimizer,
        setup.games,
        state.trained,
        state.opt_state,
        rollouts,
        update_key,
        num_samples=rl.num_samples,
        minibatching=setup.minibatching,
        reference=state.reference,
        full_params=lambda trained: setup.full_params(trained, constants.frozen),
    )
    for game, rollout in zip(setup.games, rollouts, strict=True):
        metrics |= {f"{game.id}/{name}": value for name, value in rollout_metrics(rollout).items()}
    after = dataclasses.replace(
        state,
        step=state.step + 1,
        trained=trained,
        opt_state=opt_state,
        reference=_refreshed(setup, state, trained),
        play_envs=tuple(play_envs),
    )
    return (
        _constrain(setup, after),
        setup.placement.replicate_in_jit(metrics | {"params_norm": _norm(trained)}),
        tuple(rollouts),
    )


def walk(setup: Setup, index: int, key: Key) -> BatchState:
    """Fresh states of a game after random walks; legal walks are each of a random length."""
    env, game, rl = setup.play_envs[index], setup.games[index], setup.experiment.rl
    reset_key, walk_key, length_key = jax.random.split(key, 3)
    num_steps, is_legal = rl.walk_steps.get(game.id, 0), rl.source != "walk"
    lengths = jnp.int32(num_steps)
    if is_legal:
        lengths = jax.random.randint(length_key, (env.num_envs,), 0, num_steps + 1, jnp.int32)
    state = env.reset(reset_key)
    state = jax.lax.with_sharding_constraint(state, jax.tree.map(setup.placement.row_sharding, state))
    return env.random_walk(state, walk_key, lengths, legal=is_legal) if num_steps else state


def _roll_out(
    setup: Setup, index: int, params: Params, table: TokenBytes, states: Any, key: Key
) -> tuple[Rollout, Array]:
    """Rollouts from some states, and each state's first action, which continues its episode: int32[B]."""
    rl, game, weights = setup.experiment.rl, setup.games[index], setup.weights[index]
    if rl.num_steps == 1:
        rollout, actions = respond_and_branch(
            setup.policy, params, table, game, states, key, num_samples=rl.num_samples, weights=weights
        )
        return rollout, actions[:, 0]
    rollout = play_on(
        setup.policy, params, table, game, states, key,
        num_samples=rl.num_samples, weights=weights, num_steps=rl.num_steps, discount=rl.discount,
    )  # fmt: skip
    first = rollout.responses.bytes[: rl.states * rl.num_samples : rl.num_samples]
    return rollout, jax.vmap(game.parse)(first)


def _norm(params: Params) -> Array:
    """The global norm in float32; not finite if any weight is not."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(params)))


def _refreshed(setup: Setup, state: RunState, trained: Params) -> Params | None:
    """The reference policy after a step: replaced by the current one every `rl.reference_every` iterations."""
    every = setup.experiment.rl.reference_every
    if state.reference is None or every == 0:
        return state.reference
    done = state.step + 1 - setup.experiment.cold_start.steps
    return jax.tree.map(lambda old, new: jnp.where(done % every == 0, new, old), state.reference, trained)
