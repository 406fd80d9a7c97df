"""PPO from pixels to moves: environments, network and learner in one compiled program.

python examples/ppo_pixels.py --game=game_2048

The network sees frames and nothing else. It chooses among all actions and has to see which are legal; with `--mask` it
chooses among the legal ones. Prints the mean return of fresh episodes over training, beside random play on the same
boards. Shisen-Sho has 4×4 cells, and Swap 5×5 cells and two colors, so that minutes on two CPU cores suffice; `--full`
plays the paper's levels. An episode has at most 100 steps, as in the paper.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import tyro
from jaxtyping import Bool, Float32, Int32, UInt8

from g1jax.adapters import gymnax
from g1jax.typing import Array, Key, Pytree

_4X4 = {"rows": 4, "cols": 4}
SMALL = {"game_2048": {}, "shisen_sho": _4X4, "shisen_sho_cifar10": _4X4, "swap": {"rows": 5, "cols": 5, "colors": 2}}
Act = Callable[[Array, gymnax.EnvState, Key], Int32[Array, "B"]]


@dataclass(frozen=True)
class Settings:
    """The settings of a run."""

    game: Literal["game_2048", "shisen_sho", "shisen_sho_cifar10", "swap"] = "game_2048"
    mask: bool = False  # choose among the legal actions only
    full: bool = False  # play the paper's board
    seed: int = 0
    updates: int = 160
    rows: int = 8  # of the table, after the first
    episodes: int = 128  # behind each row
    num_envs: int = 128
    num_steps: int = 32  # of every environment, per update
    epochs: int = 2
    minibatches: int = 8  # per epoch
    lr: float = 1e-3
    discount: float = 0.9
    gae_lambda: float = 0.8
    clip: float = 0.2
    entropy: float = 0.01
    width: int = 32
    depth: int = 2
    cell_size: int = 8


class Network(nn.Module):
    """A vector per cell, updated from its 3×3 neighborhood; a score for each action, and a value.

    A move of two cells has the score q(first) · k(second), so that R·C·R·C actions cost two small projections. Products
    also tell a cell which neighbors are its like, which sums learn slowly.
    """

    s: Settings
    num_actions: int

    @nn.compact
    def __call__(self, frames: UInt8[Array, "B H W 3"]) -> tuple[Float32[Array, "B A"], Float32[Array, "B"]]:
        width, size, (batch, h, w, _) = self.s.width, self.s.cell_size, frames.shape
        x = frames.reshape(batch, h // size, size, w // size, size, 3).swapaxes(2, 3)
        x = nn.Dense(width)(x.reshape(*x.shape[:3], -1).astype(jnp.float32) / 255 - 0.5)
        x = nn.Dense(width)(nn.gelu(x))
        x = x + self.param("place", nn.initializers.normal(0.1), (1, *x.shape[1:]))
        for _ in range(self.s.depth):
            own = nn.LayerNorm()(x)
            near = neighborhoods(own)
            products = (near.reshape(*x.shape[:3], 9, 4, -1) * own.reshape(*x.shape[:3], 1, 4, -1)).mean(-1)
            x = x + nn.Dense(width)(nn.gelu(nn.Dense(width)(near)))
            x = x + nn.Dense(width)(nn.gelu(nn.Dense(width)(products.reshape(*x.shape[:3], -1))))
        x = nn.LayerNorm()(x).reshape(batch, -1, width)
        flat = x.reshape(batch, -1)
        value = nn.Dense(1)(nn.gelu(nn.Dense(2 * width)(flat)))[:, 0]
        if self.num_actions == x.shape[1] ** 2:
            q, k = nn.Dense(width)(x), nn.Dense(width)(x)
            return (jnp.einsum("bid,bjd->bij", q, k) / math.sqrt(width)).reshape(batch, -1), value
        head = nn.Dense(self.num_actions, kernel_init=nn.initializers.normal(0.01))
        return head(nn.gelu(nn.Dense(2 * width)(flat))), value


def neighborhoods(x: Float32[Array, "B R C D"]) -> Float32[Array, "B R C 9*D"]:
    """The 3×3 cells around each cell; a projection of them is a convolution, and on CPU much faster than `nn.Conv`."""
    rows, cols = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, r : r + rows, c : c + cols] for r in range(3) for c in range(3)], axis=-1)


class Steps(NamedTuple):  # leaves [T, B, …]
    obs: Array
    mask: Array
    action: Array
    logprob: Array
    value: Array
    reward: Array
    is_done: Array


class Run(NamedTuple):
    params: Pytree
    optimizer: Pytree
    obs: Array
    state: gymnax.EnvState
    key: Key


@dataclass(frozen=True)
class Learner:
    """PPO on one environment: pure functions of a Run."""

    env: gymnax.Environment
    s: Settings

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(0.5), optax.adam(self.s.lr, eps=1e-5))

    def mask(self, state: gymnax.EnvState) -> Bool[Array, "B A"]:
        """The actions to choose from; [B, 1] for all."""
        return jax.vmap(self.env.legal_actions)(state) if self.s.mask else jnp.ones((len(state.time), 1), bool)

    def apply(self, params: Pytree, obs: Array, mask: Array) -> tuple[Array, Array]:
        """Log-probabilities of the actions, and values."""
        out: Any = Network(self.s, self.env.num_actions).apply(params, obs)
        return jax.nn.log_softmax(jnp.where(mask, out[0], -1e9)), out[1]

    @partial(jax.jit, static_argnames="self")
    def start(self, key: Key) -> Run:
        """Fresh weights and episodes."""
        key, weights_key, envs_key = jax.random.split(key, 3)
        obs, state = jax.vmap(self.env.reset)(jax.random.split(envs_key, self.s.num_envs))
        params = Network(self.s, self.env.num_actions).init(weights_key, obs[:1])
        return Run(params, self.optimizer.init(params), obs, state, key)

    def step(self, run: Run, _: None) -> tuple[Run, Steps]:
        """Acts and steps every environment."""
        key, action_key, step_key = jax.random.split(run.key, 3)
        mask = self.mask(run.state)
        logprobs, value = self.apply(run.params, run.obs, mask)
        action = jax.random.categorical(action_key, logprobs).astype(jnp.int32)
        keys = jax.random.split(step_key, len(action))
        obs, state, reward, is_done, _ = jax.vmap(self.env.step)(keys, run.state, action)
        # Rewards of 2048 span three decades. The error of values far above 1 would drown the policy gradient.
        reward = (1 - self.s.discount) * jnp.sign(reward) * jnp.sqrt(jnp.abs(reward))
        logprob = jnp.take_along_axis(logprobs, action[:, None], axis=1)[:, 0]
        steps = Steps(run.obs, mask, action, logprob, value, reward, is_done)
        return run._replace(obs=obs, state=state, key=key), steps

    def advantages(self, steps: Steps, last_value: Array) -> Array:
        """Generalized advantage estimates, [T, B]."""

        def back(carry: tuple[Array, Array], step: Steps) -> tuple[tuple[Array, Array], Array]:
            next_value, next_advantage = carry
            discount = self.s.discount * (1 - step.is_done.astype(jnp.float32))
            advantage = step.reward + discount * next_value - step.value
            advantage += discount * self.s.gae_lambda * next_advantage
            return (step.value, advantage), advantage

        return jax.lax.scan(back, (last_value, jnp.zeros_like(last_value)), steps, reverse=True)[1]

    def loss(self, params: Pytree, steps: Steps, advantage: Array, target: Array) -> Array:
        """The clipped objective, the squared error of the values, and the entropy."""
        logprobs, value = self.apply(params, steps.obs, steps.mask)
        logprob = jnp.take_along_axis(logprobs, steps.action[:, None], axis=1)[:, 0]
        ratio = jnp.exp(logprob - steps.logprob)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - self.s.clip, 1 + self.s.clip) * advantage)
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        return jnp.mean(0.5 * jnp.square(value - target) - gain - self.s.entropy * entropy)

    def update(self, run: Run, _: None) -> tuple[Run, None]:
        """One rollout, and some epochs on it."""
        run, steps = jax.lax.scan(self.step, run, None, self.s.num_steps)
        advantages = self.advantages(steps, self.apply(run.params, run.obs, self.mask(run.state))[1])
        data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (steps, advantages, advantages + steps.value))

        def learn(carry: tuple[Pytree, Pytree], index: Array) -> tuple[tuple[Pytree, Pytree], None]:
            params, optimizer = carry
            gradient = jax.grad(self.loss)(params, *jax.tree.map(lambda x: x[index], data))
            change, optimizer = self.optimizer.update(gradient, optimizer)
            return (optax.apply_updates(params, change), optimizer), None

        key, *keys = jax.random.split(run.key, 1 + self.s.epochs)
        order = jnp.stack([jax.random.permutation(k, len(data[1])) for k in keys])
        order = order.reshape(self.s.epochs * self.s.minibatches, -1)
        (params, optimizer), _ = jax.lax.scan(learn, (run.params, run.optimizer), order)
        return run._replace(params=params, optimizer=optimizer, key=key), None

    @partial(jax.jit, static_argnames=("self", "updates"))
    def train(self, run: Run, updates: int) -> Run:
        """Some updates, one compiled program."""
        return jax.lax.scan(self.update, run, None, updates)[0]

    @partial(jax.jit, static_argnames="self")
    def evaluate(self, params: Pytree) -> Array:
        """The mean return of the policy."""
        policy = partial(self.apply, params)
        return self.mean_return(lambda obs, state, key: jax.random.categorical(key, policy(obs, self.mask(state))[0]))

    @partial(jax.jit, static_argnames=("self", "legal"))
    def evaluate_random(self, legal: bool) -> Array:
        """The mean return of random play, among the legal actions or all."""
        sample = jax.vmap(partial(self.env.game.sample_action, legal=legal))
        return self.mean_return(lambda obs, state, key: sample(state.game, jax.random.split(key, len(obs))))

    def mean_return(self, act: Act) -> Array:
        """The mean return of fresh episodes, each from its reset to its end."""
        key = jax.random.key(self.s.seed + 1)
        obs, state = jax.vmap(self.env.reset)(jax.random.split(key, self.s.episodes))

        def step(carry: Any) -> Any:
            obs, state, total, is_over, key = carry
            key, action_key, step_key = jax.random.split(key, 3)
            action = act(obs, state, action_key).astype(jnp.int32)
            keys = jax.random.split(step_key, len(action))
            obs, state, reward, is_done, _ = jax.vmap(self.env.step)(keys, state, action)
            return obs, state, total + jnp.where(is_over, 0, reward), is_over | is_done, key

        carry = (obs, state, jnp.zeros(len(obs)), jnp.zeros(len(obs), bool), key)
        return jax.lax.while_loop(lambda carry: ~jnp.all(carry[3]), step, carry)[2].mean()


def main(s: Settings) -> None:
    """Trains and prints the table."""
    level: dict[str, Any] = {} if s.full else SMALL[s.game]
    env, _ = gymnax.make(s.game, obs="pixels", mask_in_info=False, cell_size=s.cell_size, **level)
    learner = Learner(env, s)
    print(f"{env.game!r}, {env.num_actions} actions, episodes of at most {env.max_steps} steps; mean returns")
    print(f"random play: {learner.evaluate_random(legal=False):.1f} among all actions, ", end="")
    print(f"{learner.evaluate_random(legal=True):.1f} among the legal ones", flush=True)
    print("| steps | seconds | PPO |\n| --- | --- | --- |", flush=True)
    run, start, updates = learner.start(jax.random.key(s.seed)), time.perf_counter(), s.updates // s.rows
    for row in range(s.rows + 1):
        run = learner.train(run, updates) if row else run
        mean, steps = learner.evaluate(run.params), row * updates * s.num_envs * s.num_steps
        print(f"| {steps} | {time.perf_counter() - start:.0f} | {mean:.1f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
