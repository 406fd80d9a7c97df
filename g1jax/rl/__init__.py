"""Reinforcement learning: from responses and rewards to a loss, as pure functions over arrays."""

from g1jax.errors import AlgorithmError
from g1jax.rl.advantages import has_spread, overlong_punishment, prepare, select_groups, token_advantages
from g1jax.rl.algorithm import Algorithm, Batch, algorithm_names, make_algorithm
from g1jax.rl.losses import Metrics, TokenWeights, estimate_kl, policy_loss, token_weights
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.returns import discounted_returns, episode_returns, flatten_steps, is_running
from g1jax.rl.rewards import Reward, RewardWeights, has_format, reward

__all__ = [
    "Algorithm",
    "AlgorithmError",
    "Batch",
    "Metrics",
    "Minibatching",
    "Reward",
    "RewardWeights",
    "TokenWeights",
    "algorithm_names",
    "discounted_returns",
    "episode_returns",
    "estimate_kl",
    "flatten_steps",
    "has_format",
    "has_spread",
    "is_running",
    "make_algorithm",
    "overlong_punishment",
    "policy_loss",
    "prepare",
    "reward",
    "select_groups",
    "token_advantages",
    "token_weights",
]
