"""Reinforcement learning as pure functions over pytrees: rollouts, rewards, advantages, losses and updates.

An iteration: `respond_and_branch` or `play_on` gives a `Rollout` for each game, and `update` learns from them by an
`Algorithm`. With a training loop of your own: `prepare` gives advantages, `policy_loss` the loss.
"""

from g1jax.errors import AlgorithmError
from g1jax.rl.advantages import prepare
from g1jax.rl.algorithm import Algorithm, Batch, algorithm_names, make_algorithm
from g1jax.rl.losses import Metrics, TokenWeights, policy_loss, token_weights
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.policy import Policy, Responses
from g1jax.rl.rewards import Reward, RewardWeights, reward
from g1jax.rl.rollout import Rollout, play_on, respond_and_branch, respond_and_branch_jointly, rollout_metrics
from g1jax.rl.update import update

__all__ = [
    "Algorithm",
    "AlgorithmError",
    "Batch",
    "Metrics",
    "Minibatching",
    "Policy",
    "Responses",
    "Reward",
    "RewardWeights",
    "Rollout",
    "TokenWeights",
    "algorithm_names",
    "make_algorithm",
    "play_on",
    "policy_loss",
    "prepare",
    "respond_and_branch",
    "respond_and_branch_jointly",
    "reward",
    "rollout_metrics",
    "token_weights",
    "update",
]
