"""A run's state, and the two compiled steps that change it: one of the cold start, one iteration of RL."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from g1jax.envs.vector import VecEnv, VecState
from g1jax.rl.losses import Metrics
from g1jax.rl.rollout import Rollout, figures, play_on, respond_and_branch
from g1jax.rl.update import update
from g1jax.training.lessons import Lesson
from g1jax.training.setup import Setup, load_params
from g1jax.training.supervised import supervised_step
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params, TokenBytes, lora


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RunState:
    """All that changes during a run, and is saved."""

    step: Array  # int32[], steps done
    key: Key  # never changes: a step's randomness is this, the step folded in
    trained: Params  # the model's params, or LoRA's
    opt_state: Pytree  # of the running phase
    reference: Params | None  # what the KL is measured from; None if there is none
    cold_envs: tuple[VecState, ...]  # one a game, while there is a cold start
    play_envs: tuple[VecState, ...]  # one a game, if the policy learns from its own play


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
    """What a step needs besides, and is not saved: it comes from the experiment."""

    frozen: Params | None  # under LoRA the model's own params
    table: TokenBytes


def begin(setup: Setup) -> tuple[RunState, Fixed]:
    """The state before the first step."""
    e = setup.experiment
    key = jax.random.key(e.seed)
    trained, frozen = load_params(setup), None
    if setup.lora is not None:
        frozen, trained = trained, lora.init(setup.policy.config, setup.lora, jax.random.fold_in(key, 1))
        trained = setup.place(trained)
    is_cold = e.cold_start.steps > 0
    optimizer = setup.cold_optimizer if is_cold else setup.rl_optimizer
    with jax.set_mesh(setup.mesh):
        state = RunState(
            step=jnp.int32(0),
            key=key,
            trained=trained,
            opt_state=setup.place(jax.jit(optimizer.init)(trained)),
            reference=jax.tree.map(jnp.copy, trained) if needs_reference(setup) else None,
            cold_envs=_reset(setup.cold_vecs, jax.random.fold_in(key, 2)) if is_cold else (),
            play_envs=_reset(setup.play_vecs, jax.random.fold_in(key, 3)) if e.rl.source == "play" else (),
        )
    return state, Fixed(frozen, setup.policy.table())


def needs_reference(setup: Setup) -> bool:
    """Whether a reference policy is held."""
    return setup.experiment.rl.iterations > 0 and setup.algorithm.needs_reference


def _reset(vecs: tuple[VecEnv, ...], key: Key) -> tuple[VecState, ...]:
    return tuple(jax.jit(vec.reset)(jax.random.fold_in(key, i)) for i, vec in enumerate(vecs))


def begin_rl(setup: Setup, state: RunState) -> RunState:
    """The state in which RL begins, after the cold start: a fresh optimizer, and the policy of now as the reference."""
    with jax.set_mesh(setup.mesh):
        return dataclasses.replace(
            state,
            opt_state=setup.place(jax.jit(setup.rl_optimizer.init)(state.trained)),
            reference=jax.tree.map(jnp.copy, state.trained) if needs_reference(setup) else None,
            cold_envs=(),
        )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def cold_step(setup: Setup, state: RunState, fixed: Fixed, lessons: tuple[Lesson, ...]) -> tuple[RunState, Metrics]:
    """Learns some lessons by heart; `lessons` are the next ones of `state.cold_envs`."""
    cold = setup.experiment.cold_start
    trained, opt_state, metrics = supervised_step(
        setup.policy,
        setup.cold_optimizer,
        setup.games,
        cold.see_weight,
        cold.microbatches,
        state.trained,
        state.opt_state,
        lessons,
        lambda trained: setup.complete(trained, fixed.frozen),
    )
    return dataclasses.replace(state, step=state.step + 1, trained=trained, opt_state=opt_state), metrics


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def rl_step(setup: Setup, state: RunState, fixed: Fixed) -> tuple[RunState, Metrics, tuple[Rollout, ...]]:
    """One iteration: states, responses, rewards, update. Also gives the rollouts, for whoever wants to look."""
    rl = setup.experiment.rl
    states_key, rollout_key, step_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
    params = setup.complete(state.trained, fixed.frozen)
    rollouts, play_envs = [], []
    for i in range(len(setup.games)):
        envs = state.play_envs[i] if rl.source == "play" else walk(setup, i, jax.random.fold_in(states_key, i))
        rollout, actions = _roll_out(setup, i, params, fixed.table, envs.games[0], jax.random.fold_in(rollout_key, i))
        rollouts.append(rollout)
        if rl.source == "play":
            play_envs.append(setup.play_vecs[i].step(envs, actions, jax.random.fold_in(step_key, i))[0])
    trained, opt_state, metrics = update(
        setup.policy,
        setup.algorithm,
        setup.rl_optimizer,
        setup.passes,
        setup.games,
        state.trained,
        state.reference,
        state.opt_state,
        rollouts,
        update_key,
        num_samples=rl.num_samples,
        complete=lambda trained: setup.complete(trained, fixed.frozen),
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
    return after, metrics, tuple(rollouts)


def walk(setup: Setup, index: int, key: Key) -> VecState:
    """Fresh states of a game, and random moves from there."""
    vec, game = setup.play_vecs[index], setup.games[index]
    reset_key, walk_key = jax.random.split(key)
    num_steps = setup.experiment.rl.walk_steps.get(game.id, 0)
    state = vec.reset(reset_key)
    return vec.random_walk(state, walk_key, num_steps) if num_steps else state


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


def _refreshed(setup: Setup, state: RunState, trained: Params) -> Params | None:
    every = setup.experiment.rl.reference_every
    if state.reference is None or every == 0:
        return state.reference
    done = state.step + 1 - setup.experiment.cold_start.steps
    refreshed: Params = jax.tree.map(lambda old, new: jnp.where(done % every == 0, new, old), state.reference, trained)
    return refreshed
