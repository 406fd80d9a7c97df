"""Demonstrations generated on the device: states, and the built-in teacher's responses to them."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import UInt8

from g1jax import keys
from g1jax.envs.batch import Batch, BatchState
from g1jax.sft.fact_loss import Facts, facts_of
from g1jax.teachers import Choice, teach
from g1jax.typing import Array, Key
from g1jax.vlm.ordering import after
from g1jax.vlm.sharding import BATCH, constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Demonstrations:
    """The teacher's responses to a batch of states of one game, as bytes."""

    frames: UInt8[Array, "B H W 3"]
    boards: UInt8[Array, "B L"]  # true board texts
    rationales: UInt8[Array, "B T"]
    answers: UInt8[Array, "B A"]
    facts: Facts | None


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("has_facts", "choice"))
def next_demonstrations(
    envs: tuple[Batch, ...],
    random_moves: float,
    states: tuple[BatchState, ...],
    key: Key,
    *,
    has_facts: bool = False,
    choice: Choice = "teacher",
    choice_share: float = 1.0,
) -> tuple[tuple[BatchState, ...], tuple[Demonstrations, ...]]:
    """A demonstration for every environment's state, and the states after a move: a random legal one or the teacher's.

    The share of random moves rises linearly over the environments of a game, from 0 to twice `random_moves`: from
    states that the teacher reaches to states that random play reaches. A share `choice_share` of
    the demonstrations chooses as `choice` says, the others as the teacher does; the states are those of the teacher's
    moves.
    """
    next_states: list[BatchState] = []
    demonstrations = []
    for i, (env, state) in enumerate(zip(envs, states, strict=True)):
        if i:  # games run in order: see `vlm.ordering`
            key = after(next_states[-1].states, key)
        teach_key, move_key, coin_key, step_key, choice_key = jax.random.split(keys.of_game(key, i), 5)
        game, inner = env.game, state.states
        actions, rationales = jax.vmap(functools.partial(teach, game))(inner, jax.random.split(teach_key, env.num_envs))
        shown = actions
        if choice != "teacher":
            share_key, weak_key = jax.random.split(choice_key)
            is_weak = jax.random.bernoulli(share_key, choice_share, (env.num_envs,))
            weak = jax.vmap(functools.partial(teach, game, choice=choice))(
                inner, jax.random.split(weak_key, env.num_envs)
            )
            shown = jnp.where(is_weak, weak[0], actions)
            rationales = jnp.where(is_weak[:, None], weak[1], rationales)
        answers = jax.vmap(game.write_action)(shown)
        boards, rationales, answers = map(_replicated, (env.describe(inner), rationales, answers))
        facts = None
        if has_facts:
            facts = jax.tree.map(lambda leaf: constrain(leaf, BATCH, None, None), facts_of(game, inner))
        frames = constrain(env.render(inner), BATCH, None, None, None)
        demonstrations.append(Demonstrations(frames, boards, rationales, answers, facts))
        shares = jnp.clip(jnp.linspace(0.0, 2.0 * random_moves, env.num_envs, dtype=jnp.float32), 0.0, 1.0)
        is_random = jax.random.bernoulli(coin_key, shares)
        actions = jnp.where(is_random, env.sample_actions(inner, move_key), actions)
        next_states.append(env.step(state, actions, step_key)[0])
    return tuple(next_states), tuple(demonstrations)


def _replicated(x: Array) -> Array:
    """A copy on every device of the mesh, so that every process can read it."""
    return constrain(x, *[None] * x.ndim)
