"""A run's state and its two compiled steps: one supervised step of the cold start, one iteration of RL."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Int32

from g1jax import keys, vlm
from g1jax.envs.batch import Batch, BatchState
from g1jax.envs.level import TracedLevel
from g1jax.keys import OfRun, OfStep
from g1jax.rl.losses import Metrics
from g1jax.rl.rollout import Rollout, play_on, respond_and_branch, respond_and_branch_jointly, rollout_metrics
from g1jax.rl.update import update
from g1jax.sft.batch import SFTBatch
from g1jax.sft.fact_loss import HEADS, init_heads, without_heads
from g1jax.sft.step import supervised_step
from g1jax.training.placement import Placement
from g1jax.training.setup import ColdStep, Learner, RLStep, Setup, load_params
from g1jax.training.state_source import StateSource, continue_play, walk
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params, TokenBytes, lora, master_weights
from g1jax.vlm.lora import LoRA
from g1jax.vlm.ordering import after

COLD, RL = "cold_start", "rl"  # the two phases


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RunState:
    """Everything that changes during a run; saved in checkpoints."""

    step: Int32[Array, ""]  # steps done
    key: Key  # constant: the keys of all steps are derived from it, see `keys`
    trained: Params  # the model's params, or LoRA's
    opt_state: Pytree  # of the current phase; for bfloat16 params with float32 master weights
    reference: Params | None  # the reference policy of the KL
    cold_envs: tuple[BatchState, ...]  # one a game, in a cold start without a dataset
    play_envs: tuple[BatchState, ...]  # one a game, in RL with source "play" or "hard_play"


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
        levels = setup.placement.replicate(setup.cold_levels)
        return _init_state(_first_phase(setup), trained, levels), constants


def start_rl(setup: Setup, state: RunState) -> RunState:
    """The state at the start of RL, after a cold start: a fresh optimizer, and the current policy as the reference.

    `state` is donated. Its moments and reference are freed before new ones are allocated, which keeps peak memory low.
    """
    kept = _kept_for_rl(state)
    used = {id(leaf) for leaf in jax.tree.leaves(kept)}
    for leaf in jax.tree.leaves((state.opt_state, state.reference)):
        if id(leaf) not in used:
            leaf.delete()
    with jax.set_mesh(setup.mesh):
        return _start_rl(_rl_phase(setup), kept)


def _kept_for_rl(state: RunState) -> RunState:
    opt_state = master_weights.without_rule(state.opt_state)
    return dataclasses.replace(state, opt_state=opt_state, reference=None, cold_envs=())


def constants_of(setup: Setup, frozen: Params | None) -> Constants:
    """The constants of a run with these frozen params."""
    return Constants(frozen, setup.placement.replicate(setup.policy.table()))


def frozen_of(setup: Setup) -> Constants:
    """The constants for a state from a checkpoint; loads the frozen params under LoRA."""
    return constants_of(setup, None if setup.lora is None else load_params(setup))


def template(setup: Setup, step: int) -> RunState:
    """The shapes, dtypes and shardings of the state after `step` steps; allocates nothing.

    The programs that make these states are traced for it, with the arguments of the later call, which is not traced
    again.
    """
    placement, params = setup.placement, _trained_shapes(setup)
    levels = jax.eval_shape(lambda: setup.cold_levels)
    levels = with_shardings(levels, jax.tree.map(lambda _: placement.sharding(), levels))
    cold_steps = setup.experiment.cold_start.steps
    with jax.set_mesh(setup.mesh):
        shapes = _init_state.eval_shape(_first_phase(setup), params, levels)
        shapes = with_shardings(shapes, shardings(placement, shapes))
        if step > cold_steps > 0:
            shapes = _start_rl.eval_shape(_rl_phase(setup), _kept_for_rl(shapes))
            shapes = with_shardings(shapes, shardings(placement, shapes))
    return cast(RunState, shapes)


def trained_template(setup: Setup) -> dict[str, Params]:
    """The part of `template`, after any step, that a reader of the weights needs. Traces no program."""
    return {"trained": _trained_shapes(setup)}


def _trained_shapes(setup: Setup) -> Params:
    """The trained params, without the heads that a cold start may have."""
    params = vlm.param_shapes(setup.policy.config)
    if setup.lora is not None:
        params = jax.eval_shape(functools.partial(lora.init, setup.policy.config, setup.lora), jax.random.key(0))
    shapes: Params = with_shardings(params, setup.placement.param_shardings(params))
    return shapes


def with_shardings(shapes: Pytree, shardings: Pytree) -> Pytree:
    """Shapes and dtypes with shardings added."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, shardings)


def shardings(placement: Placement, state: RunState) -> RunState:
    """The shardings of a state: params by the model's rules, environments by rows, the rest replicated.

    The same before and after a step, so that it is compiled once.
    """
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


def full_params(trained: Params, frozen: Params | None, spec: LoRA | None) -> Params:
    """The model's params from the trained and the frozen ones."""
    trained = without_heads(trained)
    return trained if frozen is None or spec is None else lora.attach(frozen, trained, spec)


@dataclass(frozen=True, kw_only=True)
class _Phase:
    """What the first state of a phase reads."""

    learner: Learner
    seed: int
    has_reference: bool
    has_heads: bool
    cold_envs: tuple[Batch, ...]  # one a game; none if the teacher does not play
    source: StateSource | None  # None in the cold start


def _first_phase(setup: Setup) -> _Phase:
    cold = setup.experiment.cold_start
    if not cold.steps:
        return _rl_phase(setup)
    return dataclasses.replace(
        _rl_phase(setup),
        learner=setup.cold.learner,
        has_heads=cold.facts_weight > 0,
        cold_envs=() if cold.dataset else setup.cold_envs,
        source=None,
    )


def _rl_phase(setup: Setup) -> _Phase:
    e = setup.experiment
    return _Phase(
        learner=setup.rl.learner,
        seed=e.seed,
        has_reference=e.rl.iterations > 0 and e.rl.algorithm.needs_reference,
        has_heads=False,
        cold_envs=(),
        source=setup.rl.source,
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _init_state(phase: _Phase, trained: Params, levels: tuple[TracedLevel, ...]) -> RunState:
    return _constrain(phase.learner, _first_state(phase, trained, levels))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _start_rl(phase: _Phase, state: RunState) -> RunState:
    return _constrain(phase.learner, _rl_state(phase, state))


def _first_state(phase: _Phase, trained: Params, levels: tuple[TracedLevel, ...]) -> RunState:
    learner, seed = phase.learner, phase.seed
    reference = jax.tree.map(jnp.copy, trained) if phase.has_reference else None
    if phase.has_heads:
        trained = {**trained, HEADS: init_heads(learner.policy, learner.games, keys.of_run(seed, OfRun.HEADS))}
    return RunState(
        step=jnp.int32(0),
        key=keys.of_run(seed, OfRun.STEPS),
        trained=trained,
        opt_state=learner.optimizer.init(trained),
        reference=reference,
        cold_envs=_reset(phase.cold_envs, keys.of_run(seed, OfRun.COLD_ENVS), levels),
        play_envs=_first_play(phase),
    )


def _rl_state(phase: _Phase, state: RunState) -> RunState:
    trained = without_heads(state.trained)
    moments = master_weights.mapped(without_heads, state.opt_state)
    return dataclasses.replace(
        state,
        trained=trained,
        opt_state=master_weights.continued(phase.learner.optimizer.init(trained), moments),
        reference=jax.tree.map(jnp.copy, trained) if phase.has_reference else None,
        cold_envs=(),
        play_envs=_first_play(phase),
    )


def _reset(envs: tuple[Batch, ...], key: Key, levels: tuple[TracedLevel, ...]) -> tuple[BatchState, ...]:
    return tuple(env.reset(keys.of_game(key, i), levels[i]) for i, env in enumerate(envs))


def _first_play(phase: _Phase) -> tuple[BatchState, ...]:
    """Environments for the policy's own play; none with another source of states.

    They start at all stages of an episode, so that they do not reach the hard boards at the same time.
    """
    if phase.source is None or not phase.source.is_play:
        return ()
    key = keys.of_run(phase.seed, OfRun.PLAY_ENVS)
    return tuple(walk(phase.source, i, keys.of_game(key, i)) for i in range(len(phase.source.envs)))


def _constrain(learner: Learner, state: RunState) -> RunState:
    """Within a jit: the state with its shardings."""
    return jax.lax.with_sharding_constraint(state, shardings(learner.placement, state))


def _as_output(learner: Learner, metrics: Metrics, trained: Params) -> Metrics:
    """Within a jit: a step's metrics and the norm of its params, for every process to read."""
    return learner.placement.replicate_in_jit(metrics | {"params_norm": _norm(trained)})


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def cold_step(
    cold: ColdStep, state: RunState, constants: Constants, batches: tuple[SFTBatch, ...]
) -> tuple[RunState, Metrics]:
    """One supervised step on a batch of each game."""
    learner = cold.learner
    trained, opt_state, metrics = supervised_step(
        learner.policy,
        learner.optimizer,
        learner.games,
        state.trained,
        state.opt_state,
        batches,
        see_weight=cold.see_weight,
        num_micro=cold.microbatches,
        full_params=functools.partial(full_params, frozen=constants.frozen, spec=learner.lora),
        facts_weight=cold.facts_weight,
    )
    after = dataclasses.replace(state, step=state.step + 1, trained=trained, opt_state=opt_state)
    return _constrain(learner, after), _as_output(learner, metrics, trained)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def rl_step(rl: RLStep, state: RunState, constants: Constants) -> tuple[RunState, Metrics, tuple[Rollout, ...]]:
    """One iteration: states, responses, rewards, update. Returns the rollouts as well, for samples."""
    rollouts, play_envs = roll_out(rl, state, constants)
    after, metrics = learn(rl, dataclasses.replace(state, play_envs=play_envs), constants, rollouts)
    return after, metrics, rollouts


def roll_out(rl: RLStep, state: RunState, constants: Constants) -> tuple[tuple[Rollout, ...], tuple[BatchState, ...]]:
    """Within a jit: each game's states and responses to them, and the environments after the step."""
    source = rl.source
    states_key, rollout_key, play_key, escape_key = (
        keys.of_step(state.key, state.step, use) for use in (OfStep.STATES, OfStep.ROLLOUT, OfStep.PLAY, OfStep.ESCAPE)
    )
    params = rollout_params(rl.learner, rl.gathers_weights, state.trained, constants.frozen)
    indices = range(len(source.envs))
    done: Pytree = ()  # what all loops so far lead to: they run in order, see `vlm.ordering`
    rollouts: list[Rollout] = []
    play_envs: list[BatchState] = []
    for together in [tuple(indices)] if rl.is_decoded_jointly else [(i,) for i in indices]:
        starts: list[BatchState] = []
        for i in together:
            if source.is_play:
                starts.append(state.play_envs[i])
            else:
                starts.append(walk(source, i, keys.of_game(after(done, states_key), i)))
                done = starts[-1].states.terminated
        states = after(done, [envs.states for envs in starts])
        of_games = [keys.of_game(rollout_key, i) for i in together]
        results = _roll_out(rl, together, params, constants.table, states, of_games)
        done = results[-1][0].returns
        for i, envs, (rollout, actions) in zip(together, starts, results, strict=True):
            rollouts.append(rollout)
            if source.is_play:
                step_key, own_escape_key = (keys.of_game(key, i) for key in after(done, (play_key, escape_key)))
                play_envs.append(continue_play(source, i, envs, rollout.is_legal, actions, step_key, own_escape_key))
                done = rollout.returns, play_envs[-1].states
    # The update's collectives wait for the last game's.
    held = [dataclasses.replace(after(done, rollout), frames=rollout.frames) for rollout in rollouts]
    return tuple(held), tuple(play_envs)


def rollout_params(learner: Learner, gathers_weights: bool, trained: Params, frozen: Params | None) -> Params:
    """Within a jit: the model's params for generation, gathered over `fsdp` if `gathers_weights`."""
    params = full_params(trained, frozen, learner.lora)
    return learner.placement.gather_in_jit(params) if gathers_weights else params


def learn(rl: RLStep, state: RunState, constants: Constants, rollouts: tuple[Rollout, ...]) -> tuple[RunState, Metrics]:
    """Within a jit: the state after an update on these rollouts."""
    learner = rl.learner
    trained, opt_state, metrics = update(
        learner.policy,
        rl.algorithm,
        learner.optimizer,
        learner.games,
        state.trained,
        state.opt_state,
        rollouts,
        keys.of_step(state.key, state.step, OfStep.UPDATE),
        num_samples=rl.num_samples,
        minibatching=rl.minibatching,
        reference=state.reference,
        full_params=functools.partial(full_params, frozen=constants.frozen, spec=learner.lora),
    )
    for game, rollout in zip(learner.games, rollouts, strict=True):
        metrics |= {f"{game.id}/{name}": value for name, value in rollout_metrics(rollout).items()}
    after = dataclasses.replace(
        state,
        step=state.step + 1,
        trained=trained,
        opt_state=opt_state,
        reference=_refreshed(rl, state, trained),
    )
    return _constrain(learner, after), _as_output(learner, metrics, trained)


def _roll_out(
    rl: RLStep,
    indices: Sequence[int],
    params: Params,
    table: TokenBytes,
    states: Sequence[Pytree],
    game_keys: Sequence[Key],
) -> list[tuple[Rollout, Int32[Array, "_"]]]:
    """Rollouts of games decoded together, and each state's first action, which continues its episode."""
    policy = dataclasses.replace(rl.learner.policy, compact_every=rl.compact_every)
    games, weights = [rl.learner.games[i] for i in indices], [rl.weights[i] for i in indices]
    parts = {"num_samples": rl.num_samples, "num_parts": rl.rollout_parts}
    if len(games) > 1:
        results = respond_and_branch_jointly(policy, params, table, games, states, game_keys, weights=weights, **parts)
        return [(rollout, actions[:, 0]) for rollout, actions in results]
    (game,), (of_game,), (key,), (weight,) = games, states, game_keys, weights
    if rl.num_steps == 1:
        rollout, actions = respond_and_branch(policy, params, table, game, of_game, key, weights=weight, **parts)
        return [(rollout, actions[:, 0])]
    rollout = play_on(
        policy, params, table, game, of_game, key, weights=weight, num_steps=rl.num_steps, discount=rl.discount, **parts
    )
    first = rollout.responses.bytes[: rl.source.envs[indices[0]].num_envs * rl.num_samples : rl.num_samples]
    return [(rollout, jax.vmap(game.parse)(first))]


def _norm(params: Params) -> Array:
    """The global norm in float32; not finite if any weight is not."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(params)))


def _refreshed(rl: RLStep, state: RunState, trained: Params) -> Params | None:
    """The reference policy after a step: replaced by the current one every `reference_every` iterations."""
    if state.reference is None or rl.reference_every == 0:
        return state.reference
    is_due = (state.step + 1 - rl.steps_before) % rl.reference_every == 0
    return jax.tree.map(lambda old, new: jnp.where(is_due, new, old), state.reference, trained)
