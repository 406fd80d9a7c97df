"""A run's state, and the two compiled steps that change it: one of the cold start, one iteration of RL."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from g1jax import keys, vlm
from g1jax.envs.batch import Batch, BatchState
from g1jax.envs.core import TracedLevel
from g1jax.keys import OfRun, OfStep
from g1jax.rl.losses import Metrics
from g1jax.rl.rollout import Rollout, figures, play_on, respond_and_branch
from g1jax.rl.update import update
from g1jax.sft.batch import SFTBatch
from g1jax.sft.facts import HEADS, init_heads, without_heads
from g1jax.sft.step import supervised_step
from g1jax.training.setup import Setup, load_params
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params, TokenBytes, lora, master
from g1jax.vlm.sharding import BATCH

COLD, RL = "cold_start", "rl"  # the two phases


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RunState:
    """All that changes during a run, and is saved."""

    step: Array  # int32[], steps done
    key: Key  # never changes: a step's keys follow from it, see `keys`
    trained: Params  # the model's params, or LoRA's
    opt_state: Pytree  # of the running phase; with the float32 weights, if the params have fewer bits
    reference: Params | None  # what the KL is measured from; None if there is none
    cold_envs: tuple[BatchState, ...]  # one a game, while there is a cold start
    play_envs: tuple[BatchState, ...]  # one a game, in RL, if the policy learns from its own play


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Constants:
    """What a step needs besides, and is not saved: it comes from the experiment."""

    frozen: Params | None  # under LoRA the model's own params
    table: TokenBytes


def begin(setup: Setup, params: Params) -> tuple[RunState, Constants]:
    """The state before the first step. `params` are given away."""
    trained, constants = params, constants_of(setup, None)
    if setup.lora is not None:
        constants = dataclasses.replace(constants, frozen=trained)
        key = keys.of_run(setup.experiment.seed, OfRun.LORA)
        trained = setup.place(lora.init(setup.policy.config, setup.lora, key))
    with jax.set_mesh(setup.mesh):
        return _begin(setup, trained), constants


def begin_rl(setup: Setup, state: RunState) -> RunState:
    """The state in which RL begins, after the cold start: a fresh optimizer, and the current policy as the reference.

    `state` is donated, and its moments and reference are freed first: two of each would be the most a run ever holds.
    """
    kept = dataclasses.replace(state, opt_state=master.without_rule(state.opt_state), reference=None, cold_envs=())
    used = {id(leaf) for leaf in jax.tree.leaves(kept)}
    for leaf in jax.tree.leaves((state.opt_state, state.reference)):
        if id(leaf) not in used:
            leaf.delete()
    with jax.set_mesh(setup.mesh):
        return _begin_rl(setup, kept)


def constants_of(setup: Setup, frozen: Params | None) -> Constants:
    """What a step needs besides the state."""
    return Constants(frozen, setup.replicate(setup.policy.table()))


def frozen_of(setup: Setup) -> Constants:
    """What a step needs besides a state that comes from a checkpoint."""
    return constants_of(setup, None if setup.lora is None else load_params(setup))


def template(setup: Setup, step: int) -> RunState:
    """The shapes, dtypes and shardings of the state after so many steps; allocates nothing."""

    def make() -> RunState:
        shapes = vlm.param_shapes(setup.policy.config)
        if setup.lora is not None:
            shapes = lora.init(setup.policy.config, setup.lora, jax.random.key(0))
        state = _first_state(setup, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
        return _rl_state(setup, state) if step > setup.experiment.cold_start.steps else state

    shapes = jax.eval_shape(make)
    abstract: RunState = with_shardings(shapes, shardings(setup, shapes))
    return abstract


def with_shardings(shapes: Pytree, shardings: Pytree) -> Pytree:
    """Shapes and dtypes that also say where the arrays will live."""
    return jax.tree.map(lambda leaf, how: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=how), shapes, shardings)


def shardings(setup: Setup, state: RunState) -> RunState:
    """Where a state lives: params by the model's rules, environments with their part of the batch, the rest everywhere.

    The same before and after a step, so that it is compiled once.
    """
    everywhere: Any = setup.sharding()

    def envs(states: Pytree) -> Pytree:
        return jax.tree.map(lambda leaf: setup.sharding(*_rows(setup.mesh, leaf)), states)

    return RunState(
        step=everywhere,
        key=everywhere,
        trained=setup.shardings(state.trained),
        opt_state=setup.shardings(state.opt_state),
        reference=None if state.reference is None else setup.shardings(state.reference),
        cold_envs=envs(state.cold_envs),
        play_envs=envs(state.play_envs),
    )


def needs_reference(setup: Setup) -> bool:
    """Whether a reference policy is held."""
    return setup.experiment.rl.iterations > 0 and setup.algorithm.needs_reference


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _begin(setup: Setup, trained: Params) -> RunState:
    return _settle(setup, _first_state(setup, trained))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _begin_rl(setup: Setup, state: RunState) -> RunState:
    return _settle(setup, _rl_state(setup, state))


def _first_state(setup: Setup, trained: Params) -> RunState:
    e = setup.experiment
    cold_key = keys.of_run(e.seed, OfRun.COLD_ENVS)
    is_cold = e.cold_start.steps > 0
    optimizer = setup.cold_optimizer if is_cold else setup.rl_optimizer
    reference = _copy(trained) if needs_reference(setup) else None
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
        reference=_copy(trained) if needs_reference(setup) else None,
        cold_envs=(),
        play_envs=_first_play(setup),
    )


def _reset(envs: tuple[Batch, ...], key: Key, levels: tuple[TracedLevel, ...]) -> tuple[BatchState, ...]:
    """Fresh environments of these levels."""
    return tuple(
        env.reset(keys.of_game(key, i), level) for i, (env, level) in enumerate(zip(envs, levels, strict=True))
    )


def _first_play(setup: Setup) -> tuple[BatchState, ...]:
    """Environments to play in, if that is where states come from: at all stages, or all would come to the hard boards
    at the same time.
    """
    if setup.experiment.rl.source != "play":
        return ()
    key = keys.of_run(setup.experiment.seed, OfRun.PLAY_ENVS)
    return tuple(walk(setup, i, keys.of_game(key, i)) for i in range(len(setup.games)))


def _copy(params: Params) -> Params:
    copy: Params = jax.tree.map(jnp.copy, params)
    return copy


def _settle(setup: Setup, state: RunState) -> RunState:
    """The state on its devices; within a jit."""
    settled: RunState = jax.lax.with_sharding_constraint(state, shardings(setup, state))
    return settled


def _rows(mesh: jax.sharding.Mesh, leaf: Array) -> tuple[Any, ...]:
    """How the rows of an array are split: over `data` and `fsdp`, where they divide."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return (BATCH,) if leaf.ndim and leaf.shape[0] % parts == 0 else ()


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def cold_step(
    setup: Setup, state: RunState, constants: Constants, batches: tuple[SFTBatch, ...]
) -> tuple[RunState, Metrics]:
    """Learns one batch of each game, made of the states of `state.cold_envs`."""
    cold = setup.experiment.cold_start
    trained, opt_state, metrics = supervised_step(
        setup.policy,
        setup.cold_optimizer,
        setup.games,
        cold.see_weight,
        cold.microbatches,
        state.trained,
        state.opt_state,
        batches,
        lambda trained: setup.full_params(trained, constants.frozen),
        cold.facts_weight,
    )
    after = dataclasses.replace(state, step=state.step + 1, trained=trained, opt_state=opt_state)
    return _settle(setup, after), setup.everywhere(metrics | {"params_norm": _norm(trained)})


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def rl_step(setup: Setup, state: RunState, constants: Constants) -> tuple[RunState, Metrics, tuple[Rollout, ...]]:
    """One iteration: states, responses, rewards, update. Also gives the rollouts, for whoever wants to look."""
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
        setup.minibatching,
        setup.games,
        state.trained,
        state.reference,
        state.opt_state,
        rollouts,
        update_key,
        num_samples=rl.num_samples,
        full_params=lambda trained: setup.full_params(trained, constants.frozen),
    )
    for game, rollout in zip(setup.games, rollouts, strict=True):
        metrics |= {f"{game.id}/{name}": value for name, value in figures(rollout).items()}
    after = dataclasses.replace(
        state,
        step=state.step + 1,
        trained=trained,
        opt_state=opt_state,
        reference=_refreshed(setup, state, trained),
        play_envs=tuple(play_envs),
    )
    return _settle(setup, after), setup.everywhere(metrics | {"params_norm": _norm(trained)}), tuple(rollouts)


def walk(setup: Setup, index: int, key: Key) -> BatchState:
    """Fresh states of a game, and random moves from there."""
    env, game, rl = setup.play_envs[index], setup.games[index], setup.experiment.rl
    reset_key, walk_key, length_key = jax.random.split(key, 3)
    num_steps, is_legal = rl.walk_steps.get(game.id, 0), rl.source != "walk"
    lengths = jnp.int32(num_steps)
    if is_legal:
        lengths = jax.random.randint(length_key, (env.num_envs,), 0, num_steps + 1, jnp.int32)
    state = env.reset(reset_key)
    state = jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, setup.sharding(*_rows(setup.mesh, leaf))), state
    )
    return env.random_walk(state, walk_key, lengths, legal=is_legal) if num_steps else state


def _roll_out(
    setup: Setup, index: int, params: Params, table: TokenBytes, states: Any, key: Key
) -> tuple[Rollout, Array]:
    """Rollouts from some states, and for each state one of the actions, to play on with: int32[b]."""
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
    """The norm of all numbers: not finite if one of them is not."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(params)))


def _refreshed(setup: Setup, state: RunState, trained: Params) -> Params | None:
    every = setup.experiment.rl.reference_every
    if state.reference is None or every == 0:
        return state.reference
    done = state.step + 1 - setup.experiment.cold_start.steps
    refreshed: Params = jax.tree.map(lambda old, new: jnp.where(done % every == 0, new, old), state.reference, trained)
    return refreshed
