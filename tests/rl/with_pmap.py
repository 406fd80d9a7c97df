"""A program for 8 fake devices: one update on a mesh, and the same written with `jax.pmap`. See test_update.

    python -m tests.rl.with_pmap

With pmap every device has its groups and a copy of the weights; a token's weight in the mean over all devices' tokens
needs their number, and the gradients are summed over the devices. On a mesh this is the compiler's work.
"""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

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
from tests import conftest  # noqa: F401  (strict promotion, and the cache of compiled programs)
from tests.rl import tiny

jax.config.update("jax_disable_most_optimizations", True)

STATES, SAMPLES, DEVICES = 8, 2, 8
SGD = optax.sgd(0.1)
ALGORITHM = rl.make_algorithm("grpo")
GAMES = tiny.GAMES[:1]


@jax.jit
def on_mesh(params: vlm.Params, reference: vlm.Params, rollouts: tuple[Rollout, ...]) -> Any:
    return update(
        tiny.POLICY, ALGORITHM, SGD, Minibatching(), GAMES, params, reference, SGD.init(params), rollouts,
        jax.random.key(0), num_samples=SAMPLES,
    )[0]  # fmt: skip


@functools.partial(jax.pmap, axis_name="data", in_axes=(None, None, 0))
def with_pmap(params: vlm.Params, reference: vlm.Params, rollout: Rollout) -> vlm.Params:
    """This device's groups: their gradient, summed over the devices, and the step that all of them take."""
    game = GAMES[0]
    mask = rollout.responses.mask & rollout.is_running[:, None]
    given = (game, rollout.frames, rollout.responses.tokens, mask)
    then = tiny.POLICY.score(reference, *given).logprobs
    batch = rl.Batch(mask, rollout.responses.logprobs, then, rollout.returns, jnp.zeros(mask.shape[0], jnp.int32))
    batch, advantages = rl.prepare(ALGORITHM, batch, num_samples=SAMPLES)  # of groups, which no device shares
    each = mask.astype(jnp.float32) / lax.psum(jnp.sum(mask.astype(jnp.float32)), "data")

    def loss(params: vlm.Params) -> jax.Array:
        now = tiny.POLICY.score(params, *given)
        return rl.policy_loss(ALGORITHM, now.logprobs, now.entropy, batch, advantages, TokenWeights(each, each))[0]

    grads = lax.psum(jax.grad(loss)(params), "data")
    updates, _ = SGD.update(grads, SGD.init(params), params)
    stepped: vlm.Params = optax.apply_updates(params, updates)
    return stepped


def farthest(a: Any, b: Any) -> float:
    both = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True)
    return max(float(abs(x - y).max()) for x, y in both)


def main() -> None:
    params, reference = jax.device_get((tiny.make_params(), tiny.make_params(1)))
    rollouts = jax.device_get(tiny.make_rollouts(params, STATES, SAMPLES))[:1]
    alone = on_mesh(params, reference, rollouts)
    mesh = sharding.make_mesh(data=DEVICES)
    with jax.set_mesh(mesh):
        everywhere = jax.device_put((params, reference), jax.NamedSharding(mesh, jax.P()))
        spread = on_mesh(*everywhere, sharding.shard_batch(mesh, rollouts))
    parts = jax.tree.map(lambda leaf: leaf.reshape(DEVICES, -1, *leaf.shape[1:]), rollouts[0])
    mapped = with_pmap(params, reference, parts)
    copies = jax.device_get(mapped)
    print(
        json.dumps(
            {
                "devices": len(jax.devices()),
                "moved": farthest(alone, params),
                "mesh": farthest(spread, alone),
                "pmap": max(farthest(jax.tree.map(lambda leaf, i=i: leaf[i], copies), alone) for i in range(DEVICES)),
            }
        )
    )


if __name__ == "__main__":
    main()
