"""Returns in episodes of several steps, without a critic.

A rollout of T steps of B environments is T·B responses. With returns as rewards they are a batch like any other
(`flatten_steps`): the n environments that started in one state are a group at each step.

`dones` mark an episode's end, terminated or truncated; a truncated episode is not bootstrapped.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float32

from g1jax.typing import Array

Tree = TypeVar("Tree")


def discounted_returns(
    rewards: Float32[Array, "T B"], dones: Bool[Array, "T B"], discount: float | Float32[Array, ""]
) -> Float32[Array, "T B"]:
    """The discounted sum of rewards from each step to its episode's end.

    Rewards 1 0 2 with discount 0.5: returns 1.5 1 2; if the first step ends an episode, 1 1 2.
    """

    def step_back(following: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, is_done = step
        value = reward + discount * jnp.where(is_done, 0.0, following)
        return value, value

    _, returns = lax.scan(step_back, jnp.zeros_like(rewards[0]), (rewards, dones), reverse=True)
    return returns


def episode_returns(
    rewards: Float32[Array, "T B"], dones: Bool[Array, "T B"], discount: float | Float32[Array, ""]
) -> Float32[Array, "T B"]:
    """The return of the whole episode at each of its steps.

    All responses of an episode then share an advantage, which compares episodes from the same first state.
    `discounted_returns` compares the n states at a step, which may have diverged.
    """
    returns = discounted_returns(rewards, dones, discount)

    def step(current: tuple[Array, Array], step: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        (episode, is_first), (value, is_done) = current, step
        episode = jnp.where(is_first, value, episode)
        return (episode, is_done), episode

    start = (jnp.zeros_like(returns[0]), jnp.ones_like(dones[0]))
    return lax.scan(step, start, (returns, dones))[1]


def is_running(dones: Bool[Array, "T B"]) -> Bool[Array, "T B"]:
    """Which steps belong to each environment's first episode, including its last step.

    For rollouts without autoreset: `response_mask & is_running(dones)[..., None]` masks what follows the end.
    """
    num_ended = jnp.cumsum(dones.astype(jnp.int32), axis=0)
    return num_ended - dones.astype(jnp.int32) == 0


def flatten_steps(tree: Tree) -> Tree:
    """The steps of a rollout as rows of a batch: [T, B, …] -> [T·B, …]. Groups stay in adjacent rows."""
    flat: Tree = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    return flat
