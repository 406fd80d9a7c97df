"""A program for 8 fake devices: one update on a mesh, and the same with `jax.pmap`. See test_update.

    python -m tests.rl.with_pmap

With pmap, each device has its groups and a copy of the params; the mean over tokens needs the number of tokens on all
devices, and gradients are summed over devices. On a mesh the compiler does this.
"""

import json
import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from g1jax import rl, vlm
from g1jax.rl.losses import TokenWeights
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.rollout import Rollout
from g1jax.rl.update import update
from g1jax.vlm import sharding
from tests import conftest  # noqa: F401  (strict promotion, and the compilation cache)
from tests.rl import tiny

jax.config.update("jax_disable_most_optimizations", True)

STATES, SAMPLES, DEVICES = 8, 2, 8
SGD = optax.sgd(0.1)
ALGORITHM = rl.make_algorithm("grpo")
GAMES = tiny.GAMES[:1]


@jax.jit
def on_mesh(params: vlm.Params, reference: vlm.Params, rollouts: tuple[Rollout, ...]) -> Any:
    return update(
        tiny.POLICY, ALGORITHM, SGD, GAMES, params, SGD.init(params), rollouts, jax.random.key(0),
        num_samples=SAMPLES, minibatching=Minibatching(), reference=reference,
    )[0]  # fmt: skip


@functools.partial(jax.pmap, axis_name="data", in_axes=(None, None, 0))
def with_pmap(params: vlm.Params, reference: vlm.Params, rollout: Rollout) -> vlm.Params:
    """The gradient of this device's groups, summed over devices, and the step, equal on all devices."""
    game = GAMES[0]
    mask = rollout.responses.mask & rollout.is_running[:, None]
    inputs = (game, rollout.frames, rollout.responses.tokens, mask)
    reference_logprobs = tiny.POLICY.score(reference, *inputs).logprobs
    game_id = jnp.zeros(mask.shape[0], jnp.int32)
    batch = rl.Batch(mask, rollout.responses.logprobs, reference_logprobs, rollout.returns, game_id)
    batch, advantages = rl.prepare(ALGORITHM, batch, num_samples=SAMPLES)  # a group is on one device
    weights = mask.astype(jnp.float32) / lax.psum(jnp.sum(mask.astype(jnp.float32)), "data")

    def loss(params: vlm.Params) -> jax.Array:
        score = tiny.POLICY.score(params, *inputs)
        token_weights = TokenWeights(weights, weights)
        return rl.policy_loss(ALGORITHM, score.logprobs, score.entropy, batch, advantages, token_weights)[0]

    grads = lax.psum(jax.grad(loss)(params), "data")
    updates, _ = SGD.update(grads, SGD.init(params), params)
    stepped: vlm.Params = optax.apply_updates(params, updates)
    return stepped


def max_difference(a: Any, b: Any) -> float:
    both = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True)
    return max(float(abs(x - y).max()) for x, y in both)


def main() -> None:
    params, reference = jax.device_get((tiny.make_params(), tiny.make_params(1)))
    rollouts = jax.device_get(tiny.make_rollouts(params, STATES, SAMPLES))[:1]
    single = on_mesh(params, reference, rollouts)
    mesh = sharding.make_mesh(data=DEVICES)
    with jax.set_mesh(mesh):
        replicated = jax.device_put((params, reference), jax.NamedSharding(mesh, jax.P()))
        sharded = on_mesh(*replicated, sharding.shard_batch(mesh, rollouts))
    parts = jax.tree.map(lambda leaf: leaf.reshape(DEVICES, -1, *leaf.shape[1:]), rollouts[0])
    mapped = with_pmap(params, reference, parts)
    copies = jax.device_get(mapped)
    print(
        json.dumps(
            {
                "devices": len(jax.devices()),
                "moved": max_difference(single, params),
                "mesh": max_difference(sharded, single),
                "pmap": max(
                    max_difference(jax.tree.map(lambda leaf, i=i: leaf[i], copies), single) for i in range(DEVICES)
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
