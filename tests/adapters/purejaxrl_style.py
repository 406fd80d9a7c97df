"""A learner in the manner of PureJaxRL: it knows gymnax's interface with five values, and nothing of g1jax."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training.train_state import TrainState

NUM_ENVS, NUM_STEPS, MINIBATCHES, EPOCHS = 64, 32, 4, 4
GAMMA, GAE_LAMBDA, CLIP, LEARNING_RATE = 0.9, 0.8, 0.2, 2e-3


@struct.dataclass
class LogState:
    env_state: Any
    returns: Any
    lengths: Any
    last_return: Any
    last_length: Any


class LogWrapper:
    """Adds the return and length of the last finished episode to `info`."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    @partial(jax.jit, static_argnums=0)
    def reset(self, key: Any, params: Any = None) -> Any:
        obs, env_state = self._env.reset(key, params)
        return obs, LogState(env_state, jnp.float32(0), 0, jnp.float32(0), 0)

    @partial(jax.jit, static_argnums=0)
    def step(self, key: Any, state: LogState, action: Any, params: Any = None) -> Any:
        obs, env_state, reward, done, info = self._env.step(key, state.env_state, action, params)
        total, length = state.returns + reward, state.lengths + 1
        last_return = jnp.where(done, total, state.last_return)
        last_length = jnp.where(done, length, state.last_length)
        state = LogState(env_state, total * (1 - done), length * (1 - done), last_return, last_length)
        info["returned_episode_returns"] = last_return
        info["returned_episode_lengths"] = last_length
        info["returned_episode"] = done
        return obs, state, reward, done, info


class ActorCritic(nn.Module):
    num_actions: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        hidden = nn.tanh(nn.Dense(128)(x))
        logits = nn.Dense(self.num_actions, kernel_init=nn.initializers.orthogonal(0.01))(hidden)
        return logits, nn.Dense(1)(nn.tanh(nn.Dense(128)(x)))[..., 0]


class Transition(NamedTuple):
    obs: Any
    action: Any
    log_prob: Any
    value: Any
    reward: Any
    done: Any
    info: Any


def train(env: Any, params: Any, rng: Any, num_updates: int) -> np.ndarray[Any, Any]:
    """The mean return of the episodes that ended in each update, [num_updates]."""
    network = ActorCritic(env.action_space(params).n)

    def env_step(carry: Any, _: None) -> Any:
        train_state, env_state, obs, rng = carry
        rng, action_rng, step_rng = jax.random.split(rng, 3)
        logits, value = network.apply(train_state.params, obs)
        action = jax.random.categorical(action_rng, logits)
        log_prob = log_prob_of(logits, action)
        keys = jax.random.split(step_rng, NUM_ENVS)
        next_obs, env_state, reward, done, info = jax.vmap(env.step, (0, 0, 0, None))(keys, env_state, action, params)
        step = Transition(obs, action, log_prob, value, reward, done, info)
        return (train_state, env_state, next_obs, rng), step

    def update(carry: Any, _: None) -> Any:
        (train_state, env_state, obs, rng), steps = jax.lax.scan(env_step, carry, None, NUM_STEPS)
        advantages = advantages_of(steps, network.apply(train_state.params, obs)[1])
        batch = (steps._replace(info=None), advantages, advantages + steps.value)
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        def learn(train_state: Any, index: Any) -> Any:
            part = jax.tree.map(lambda x: x[index], batch)
            gradients = jax.grad(partial(loss, network))(train_state.params, *part)
            return train_state.apply_gradients(grads=gradients), None

        rng, *keys = jax.random.split(rng, 1 + EPOCHS)
        order = jnp.stack([jax.random.permutation(key, NUM_ENVS * NUM_STEPS) for key in keys])
        train_state, _ = jax.lax.scan(learn, train_state, order.reshape(EPOCHS * MINIBATCHES, -1))
        ended = steps.info["returned_episode"]
        mean = jnp.sum(steps.info["returned_episode_returns"] * ended) / jnp.maximum(jnp.sum(ended), 1)
        return (train_state, env_state, obs, rng), mean

    rng, weights_rng, reset_rng = jax.random.split(rng, 3)
    weights = network.init(weights_rng, jnp.zeros(env.observation_space(params).shape))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(LEARNING_RATE, eps=1e-5))
    create: Any = TrainState.create
    train_state = create(apply_fn=network.apply, params=weights, tx=optimizer)
    obs, env_state = jax.vmap(env.reset, (0, None))(jax.random.split(reset_rng, NUM_ENVS), params)
    return np.asarray(jax.lax.scan(update, (train_state, env_state, obs, rng), None, num_updates)[1])


def log_prob_of(logits: Any, action: Any) -> Any:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=-1)[:, 0]


def advantages_of(steps: Transition, last_value: Any) -> Any:
    def back(carry: Any, step: Transition) -> Any:
        next_value, advantage = carry
        delta = step.reward + GAMMA * next_value * (1 - step.done) - step.value
        advantage = delta + GAMMA * GAE_LAMBDA * (1 - step.done) * advantage
        return (step.value, advantage), advantage

    return jax.lax.scan(back, (last_value, jnp.zeros_like(last_value)), steps, reverse=True)[1]


def loss(network: ActorCritic, weights: Any, steps: Transition, advantages: Any, targets: Any) -> Any:
    logits, value = network.apply(weights, steps.obs)
    ratio = jnp.exp(log_prob_of(logits, steps.action) - steps.log_prob)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantages)
    entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1)
    return (0.5 * jnp.square(value - targets) - gain - 0.01 * entropy).mean()
