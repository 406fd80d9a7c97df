"""Rollouts: states of one game, the policy's responses to them, and their rewards."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float32, Int32, UInt8

from g1jax.envs.core import Game
from g1jax.rl.losses import Metrics
from g1jax.rl.policy import Policy, Responses
from g1jax.rl.returns import discounted_returns, flatten_steps, is_running
from g1jax.rl.rewards import Reward, RewardWeights, reward
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params, TokenBytes
from g1jax.vlm.accumulation import join_rows, split_rows
from g1jax.vlm.ordering import after


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollout:
    """Responses of one game: B rows; the n rows of a group (one state, or n copies of it) are adjacent."""

    frames: UInt8[Array, "... H W 3"]  # one per row or one per group
    responses: Responses
    reward: Reward
    returns: Float32[Array, "*B"]  # what advantages are computed from: the reward, or the discounted return
    is_legal: Bool[Array, "*B"]
    is_readable: Bool[Array, "*B"]
    is_running: Bool[Array, "*B"]  # False after an episode's end
    boards: UInt8[Array, "... L"] | None = None  # for captions; rows as of the frames


def respond_and_branch(
    policy: Policy,
    params: Params,
    table: TokenBytes,
    game: Game[Any],
    states: Pytree,
    key: Key,
    *,
    num_samples: int,
    num_parts: int = 1,
    weights: RewardWeights,
) -> tuple[Rollout, Int32[Array, "b {num_samples}"]]:
    """One step, as in the paper: n responses to each of b states, each played from that state.

    All n moves share a random key, so that only the responses differ. `num_parts`: parts of the states that are
    responded to one after the other, which takes less memory. Also returns the actions.
    """
    generate_key, step_key = jax.random.split(key)
    frames, boards = _show(policy, game, states)
    respond = functools.partial(policy.respond, params, table, game, num_samples=num_samples)
    responses = _in_parts(respond, frames, boards, generate_key, num_samples, num_parts)
    return _branch(game, states, frames, boards, responses, step_key, num_samples=num_samples, weights=weights)


def respond_and_branch_jointly(
    policy: Policy,
    params: Params,
    table: TokenBytes,
    games: Sequence[Game[Any]],
    states: Sequence[Pytree],
    keys: Sequence[Key],
    *,
    num_samples: int,
    num_parts: int = 1,
    weights: Sequence[RewardWeights],
) -> list[tuple[Rollout, Int32[Array, "_ {num_samples}"]]]:
    """`respond_and_branch` for several games, whose responses are decoded in one loop: see `Policy.respond_jointly`."""
    shown = [_show(policy, game, of_game) for game, of_game in zip(games, states, strict=True)]
    pairs = [jax.random.split(key) for key in keys]

    def respond(frames: Any, keys: Any, boards: Any) -> tuple[Responses, ...]:
        return policy.respond_jointly(params, table, games, frames, keys, num_samples=num_samples, boards=boards)

    frames, boards = zip(*shown, strict=True)
    responses = _in_parts(respond, frames, boards, [generate for generate, _ in pairs], num_samples, num_parts)
    results: list[tuple[Rollout, Array]] = []
    for i, game in enumerate(games):
        # The loops of games run in order: see `vlm.ordering`.
        played = after(results[-1][0].returns, states[i]) if results else states[i]
        results.append(
            _branch(game, played, *shown[i], responses[i], pairs[i][1], num_samples=num_samples, weights=weights[i])
        )
    return results


def _show(
    policy: Policy, game: Game[Any], states: Pytree
) -> tuple[UInt8[Array, "b H W 3"], UInt8[Array, "b L"] | None]:
    """The frames of some states, and the board texts of captions."""
    return jax.vmap(game.render)(states), policy.boards(game, states)


def _branch(
    game: Game[Any],
    states: Pytree,
    frames: UInt8[Array, "b H W 3"],
    boards: UInt8[Array, "b L"] | None,
    responses: Responses,
    key: Key,
    *,
    num_samples: int,
    weights: RewardWeights,
) -> tuple[Rollout, Int32[Array, "b {num_samples}"]]:
    """Plays each response from its state."""
    actions = jax.vmap(game.parse)(responses.bytes).reshape(-1, num_samples)
    keys = jax.random.split(key, actions.shape[0])
    _, results = jax.vmap(game.branch)(states, actions, keys)
    reward_of = functools.partial(reward, game, weights=weights)
    texts = responses.bytes.reshape(*actions.shape, -1)
    rewards = jax.vmap(jax.vmap(reward_of, (0, None, 0)))(texts, states, results)
    rewards, is_legal = jax.tree.map(lambda leaf: leaf.reshape(-1), (rewards, results.is_legal))
    is_readable = actions.reshape(-1) != game.invalid_action
    running = jnp.ones(is_legal.shape, bool)
    return Rollout(frames, responses, rewards, rewards.total, is_legal, is_readable, running, boards), actions


def play_on(
    policy: Policy,
    params: Params,
    table: TokenBytes,
    game: Game[Any],
    states: Pytree,
    key: Key,
    *,
    num_samples: int,
    num_parts: int = 1,
    weights: RewardWeights,
    num_steps: int,
    discount: float,
) -> Rollout:
    """Episodes of `num_steps` steps, n from each of b states; advantages are computed from discounted returns.

    Rows are ordered by step, then state, then sample: at each step, the n that started in one state are a group.
    """
    states = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_samples, axis=0), states)
    reward_of = functools.partial(reward, game, weights=weights)

    def step(states: Pytree, key: Key) -> tuple[Pytree, tuple[Rollout, Array]]:
        generate_key, step_key = jax.random.split(key)
        frames, boards = _show(policy, game, states)
        respond = functools.partial(policy.respond, params, table, game)
        responses = _in_parts(respond, frames, boards, generate_key, 1, num_parts)
        actions = jax.vmap(game.parse)(responses.bytes)
        after, results = jax.vmap(game.step)(states, actions, jax.random.split(step_key, actions.shape[0]))
        rewards = jax.vmap(reward_of)(responses.bytes, states, results)
        is_readable = actions != game.invalid_action
        running = ~states.terminated
        rows = Rollout(frames, responses, rewards, rewards.total, results.is_legal, is_readable, running, boards)
        return after, (rows, after.terminated)

    _, (rollout, dones) = lax.scan(step, states, jax.random.split(key, num_steps))
    returns = discounted_returns(rollout.returns, dones, discount)
    running = is_running(dones) & rollout.is_running
    return flatten_steps(dataclasses.replace(rollout, returns=returns, is_running=running))


def _in_parts(
    respond: Callable[..., Any], frames: Pytree, boards: Pytree, keys: Pytree, num_samples: int, num_parts: int
) -> Any:
    """The responses to equal parts of the states, one part after the other; of one game, or trees of several."""
    if num_parts == 1:
        return respond(frames, keys, boards=boards)
    shown = jax.tree.map(lambda leaf: split_rows(leaf, num_parts), (frames, boards))
    part_keys = jax.tree.map(lambda key: jax.random.split(key, num_parts), keys)
    responses = lax.map(lambda part: respond(part[0][0], part[1], boards=part[0][1]), (shown, part_keys))

    def join(leaf: Array) -> Array:
        return join_rows(leaf.reshape(num_parts, -1, num_samples, *leaf.shape[2:])).reshape(-1, *leaf.shape[2:])

    return jax.tree.map(join, responses)


def rollout_metrics(rollout: Rollout) -> Metrics:
    """Means over the rows that are running.

    `perception` is the rate of exact boards, `reasoning` is P(reward > 0 | board exact); others are the rates of
    success, format, legal and readable moves, and the length in tokens.
    """
    counts = rollout.is_running.astype(jnp.float32)

    def mean(values: Array, where: Array = counts) -> Array:
        return jnp.sum(values.astype(jnp.float32) * where) / jnp.maximum(jnp.sum(where), 1.0)

    reward, exact = rollout.reward, counts * rollout.reward.is_seen.astype(jnp.float32)
    return {
        "reward": mean(reward.total),
        "return": mean(rollout.returns),
        "success": mean(reward.is_success),
        "perception": mean(reward.is_seen),
        "cells": mean(reward.perception),
        "reasoning": mean(reward.is_success, exact),
        "format": mean(reward.format),
        "legal": mean(rollout.is_legal),
        "readable": mean(rollout.is_readable),
        "length": mean(jnp.sum(rollout.responses.mask.astype(jnp.float32), axis=1)),
    }
