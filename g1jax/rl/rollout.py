"""What a policy learns from: states of one game, the responses it writes to them, and what these earn."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from g1jax.envs.core import Game
from g1jax.rl.policy import Policy, Responses
from g1jax.rl.returns import discounted_returns, is_running
from g1jax.rl.rewards import Reward, RewardWeights, reward
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params, TokenBytes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollout:
    """Responses of one game: R rows, of which the n to one state, or of n equal beginnings, stand together."""

    frames: Array  # uint8[R or R / n, H, W, 3], one a row, or one for the rows of a state
    responses: Responses  # [R, …]
    reward: Reward  # [R]
    returns: Array  # float32[R], what the response is to be judged by: its reward, and what followed
    is_legal: Array  # bool[R]
    is_readable: Array  # bool[R]
    is_running: Array  # bool[R], False for what came after an episode's end


def respond_and_branch(
    policy: Policy,
    params: Params,
    table: TokenBytes,
    game: Game[Any],
    states: Pytree,
    key: Key,
    *,
    num_samples: int,
    weights: RewardWeights,
) -> tuple[Rollout, Array]:
    """One step, as the paper has it: n responses to each of b states, each played from that same state.

    All n see the same chance, so that they differ by their words alone. Also gives the actions: int32[b, n].
    """
    generate_key, step_key = jax.random.split(key)
    frames = jax.vmap(game.render)(states)
    responses = policy.respond(params, table, game, frames, generate_key, num_samples=num_samples)
    actions = jax.vmap(game.parse)(responses.bytes).reshape(-1, num_samples)
    keys = jax.random.split(step_key, actions.shape[0])
    _, results = jax.vmap(game.branch)(states, actions, keys)
    judge = functools.partial(reward, game, weights=weights)
    texts = responses.bytes.reshape(*actions.shape, -1)
    rewards = jax.vmap(jax.vmap(judge, (0, None, 0)))(texts, states, results)
    rewards, is_legal = jax.tree.map(lambda leaf: leaf.reshape(-1), (rewards, results.is_legal))
    is_readable = actions.reshape(-1) != game.invalid_action
    all_run = jnp.ones(is_legal.shape, bool)
    return Rollout(frames, responses, rewards, rewards.total, is_legal, is_readable, all_run), actions


def play_on(
    policy: Policy,
    params: Params,
    table: TokenBytes,
    game: Game[Any],
    states: Pytree,
    key: Key,
    *,
    num_samples: int,
    weights: RewardWeights,
    num_steps: int,
    discount: float,
) -> Rollout:
    """Episodes of several steps: each of b states begins n of them, and a response is judged by its discounted return.

    Rows are ordered by step, then by state, then by sample: the n at a step that began alike are a group.
    """
    states = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_samples, axis=0), states)
    judge = functools.partial(reward, game, weights=weights)

    def step(states: Pytree, key: Key) -> tuple[Pytree, tuple[Rollout, Array]]:
        generate_key, step_key = jax.random.split(key)
        frames = jax.vmap(game.render)(states)
        responses = policy.respond(params, table, game, frames, generate_key)
        actions = jax.vmap(game.parse)(responses.bytes)
        after, results = jax.vmap(game.step)(states, actions, jax.random.split(step_key, actions.shape[0]))
        rewards = jax.vmap(judge)(responses.bytes, states, results)
        is_on = ~states.terminated
        seen = Rollout(
            frames, responses, rewards, rewards.total, results.is_legal, actions != game.invalid_action, is_on
        )
        return after, (seen, after.terminated)

    _, (rollout, dones) = lax.scan(step, states, jax.random.split(key, num_steps))
    returns = discounted_returns(rollout.returns, dones, discount)
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rollout)
    running = (is_running(dones) & rollout.is_running).reshape(-1)
    return Rollout(
        rows.frames, rows.responses, rows.reward, returns.reshape(-1), rows.is_legal, rows.is_readable, running
    )


def figures(rollout: Rollout) -> dict[str, Array]:
    """What happened, as means over the rows that count: float32[] each.

    `perception` P, the exact boards; `reasoning` R = P(reward > 0 | board exact); and the rates of success, format,
    legal and readable moves, and the length in tokens.
    """
    counts = rollout.is_running.astype(jnp.float32)

    def mean(values: Array, where: Array = counts) -> Array:
        return jnp.sum(values.astype(jnp.float32) * where) / jnp.maximum(jnp.sum(where), 1.0)

    reward, seen = rollout.reward, counts * rollout.reward.is_seen.astype(jnp.float32)
    return {
        "reward": mean(reward.total),
        "return": mean(rollout.returns),
        "success": mean(reward.is_success),
        "perception": mean(reward.is_seen),
        "cells": mean(reward.perception),
        "reasoning": mean(reward.is_success, seen),
        "format": mean(reward.format),
        "legal": mean(rollout.is_legal),
        "readable": mean(rollout.is_readable),
        "length": mean(jnp.sum(rollout.responses.mask.astype(jnp.float32), axis=1)),
    }
