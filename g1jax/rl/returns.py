"""Episodes of several steps: what a response is worth by what followed it.

A rollout of T steps of B environments is T·B responses. With their returns in place of rewards they are a batch like
any other (`flatten_steps`), and the n environments that began in one state are a group at each step. No critic.

A `done` is an episode's end, terminated or truncated; an episode that is cut counts for what it earned until then.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from g1jax.typing import Array

Tree = TypeVar("Tree")


def discounted_returns(rewards: Array, dones: Array, discount: float | Array) -> Array:
    """What each step and those after it in its episode earned, the later the less: float32[T, B], bool[T, B] -> [T, B].

    Rewards 1 0 2 with discount 0.5: returns 1.5 1 2; with an end after the first step 1 1 2.
    """

    def step_back(following: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, is_done = step
        value = reward + discount * jnp.where(is_done, 0.0, following)
        return value, value

    _, returns = lax.scan(step_back, jnp.zeros_like(rewards[0]), (rewards, dones), reverse=True)
    return returns


def episode_returns(rewards: Array, dones: Array, discount: float | Array) -> Array:
    """The return of the whole episode, at each of its steps: float32[T, B], bool[T, B] -> [T, B].

    All responses of an episode then share one advantage, which compares episodes from the same first state; returns to
    go compare the n states at a step, which may have drifted apart.
    """
    returns = discounted_returns(rewards, dones, discount)

    def step(current: tuple[Array, Array], step: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        (episode, is_first), (value, is_done) = current, step
        episode = jnp.where(is_first, value, episode)
        return (episode, is_done), episode

    start = (jnp.zeros_like(returns[0]), jnp.ones_like(dones[0]))
    return lax.scan(step, start, (returns, dones))[1]


def is_running(dones: Array) -> Array:
    """Which steps belong to each environment's first episode, its last step too: bool[T, B] -> bool[T, B].

    For rollouts without autoreset: `response_mask & is_running(dones)[..., None]` leaves out what came after the end.
    """
    num_ended = jnp.cumsum(dones.astype(jnp.int32), axis=0)
    return num_ended - dones.astype(jnp.int32) == 0


def flatten_steps(tree: Tree) -> Tree:
    """The steps of a rollout as rows of a batch: [T, B, …] -> [T·B, …]. Rows that stand together still do."""
    flat: Tree = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    return flat
