"""A program for 8 fake devices: differences between results on meshes and on one device. See test_sharding.

python -m tests.vlm.on_eight_devices plain "[[2, 2, 2]]" logits,responses,gradient
"""

import dataclasses
import functools
import json
import os
import sys
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np

from g1jax import vlm
from g1jax.vlm import lora, sharding
from tests import conftest  # noqa: F401  (strict promotion, and the compilation cache)
from tests.vlm import shapes

VISION = vlm.VisionConfig(
    depth=2, hidden_size=32, intermediate_size=48, num_heads=4, full_attention_blocks=(1,), window_size=56
)
TEXT = vlm.TextConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=8, num_kv_heads=2,
    positions="mrope", mrope_section=(2, 1, 1), is_tied=False,
)  # fmt: skip
CONFIG = vlm.Config(vision=VISION, text=TEXT)
SPEC = lora.LoRA(rank=4, targets=("model.*_proj", "visual.*.qkv"))
Shape = tuple[int, int, int]


def make_params(config: vlm.Config) -> tuple[vlm.Params, vlm.Params]:
    """Params and LoRA params on the host, large enough that all matter."""
    params = shapes.make_params(config, 5.0)
    params = jax.tree.map(np.asarray, params)
    lora_params = jax.tree.map(np.array, lora.init(config, SPEC, jax.random.key(1)))
    rng = np.random.default_rng(2)
    lora_params = jax.tree.map(lambda x: x + 0.02 * rng.standard_normal(x.shape, np.float32), lora_params)
    return params, lora_params


def make_batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = [3, *[CONFIG.image_token_id] * 6, 4]
    tokens = np.concatenate(
        [rng.integers(7, 64, (8, 3)), np.tile(image, (8, 1)), rng.integers(7, 64, (8, 4))], axis=1
    ).astype(np.int32)
    mask = np.arange(tokens.shape[1])[None] >= np.arange(8)[:, None] % 3
    return tokens, mask, rng.integers(0, 256, (8, 56, 84, 3)).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config: vlm.Config, params: Any, lora_params: Any, tokens: Any, mask: Any, frames: Any) -> jax.Array:
    return vlm.apply(config, lora.attach(params, lora_params, SPEC), tokens, mask, frames)


@functools.partial(jax.jit, static_argnums=0)
def gradient_of(config: vlm.Config, params: Any, tokens: Any, mask: Any, frames: Any) -> Any:
    """The gradient of a loss of the last four tokens as responses."""

    def loss(params: Any) -> jax.Array:
        found = vlm.score(config, params, tokens[:, :-4], mask[:, :-4], tokens[:, -4:], mask[:, -4:], frames)
        return jnp.mean(found.logprobs) + 0.1 * jnp.mean(found.entropy)

    return jax.grad(loss)(params)


def respond(config: vlm.Config, params: Any, batch: Any) -> Any:
    """Greedy tokens, sampled tokens, their logprobs and scores."""
    names = ("max_new_tokens", "sampling", "stop_tokens")
    generate = jax.jit(vlm.generate, static_argnums=0, static_argnames=names)
    greedy, sampled = (
        generate(config, params, *batch, jax.random.key(2), max_new_tokens=12, sampling=sampling, stop_tokens=(9, 10))
        for sampling in (vlm.GREEDY, vlm.Sampling(top_k=20))
    )
    score = jax.jit(vlm.score, static_argnums=0)
    scores = score(config, params, *batch[:2], sampled.response_tokens, sampled.response_mask, batch[2])
    return jax.device_get((greedy.response_tokens, sampled.response_tokens, sampled.logprobs, scores.logprobs))


def max_difference(a: Any, b: Any) -> float:
    """The largest difference anywhere in two trees."""
    both = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y)).max()) for x, y in both)


def on_mesh(config: vlm.Config, host: Any, shape: Shape, single: dict[str, Any], parts: list[str]) -> dict[str, Any]:
    """The differences to results on one device, and the bytes of params on a device."""
    mesh = sharding.make_mesh(*shape)
    place = sharding.placer(config, mesh)
    params, lora_params = (
        jax.tree.map_with_path(lambda path, x: place([entry.key for entry in path], x), tree) for tree in host
    )
    batch = sharding.shard_batch(mesh, make_batch())
    first = jax.devices()[0]
    num_bytes = sum(
        part.data.nbytes for leaf in jax.tree.leaves(params) for part in leaf.addressable_shards if part.device == first
    )
    found: dict[str, Any] = {"shape": shape, "bytes": num_bytes}
    with jax.set_mesh(mesh):
        if "logits" in parts:
            found["logits"] = max_difference(logits_of(config, params, lora_params, *batch), single["logits"])
        if "responses" in parts:
            pairs = zip(respond(config, params, batch), single["responses"], strict=True)
            found["responses"] = [max_difference(a, b) for a, b in pairs]
        if "gradient" in parts:
            found["gradient"] = max_difference(gradient_of(config, params, *batch), single["gradient"])
    return found


def main() -> None:
    configs = {"plain": CONFIG, "scanned": dataclasses.replace(CONFIG, is_scanned=True, is_remat=True)}
    config, meshes, parts = configs[sys.argv[1]], json.loads(sys.argv[2]), sys.argv[3].split(",")
    host = make_params(config)
    params, lora_params = jax.device_put(host)
    batch = tuple(map(jnp.asarray, make_batch()))
    compute = {"logits": lambda: logits_of(config, params, lora_params, *batch),
             "responses": lambda: respond(config, params, batch),
             "gradient": lambda: gradient_of(config, params, *batch)}  # fmt: skip
    single = {part: jax.device_get(compute[part]()) for part in parts}
    results = [on_mesh(config, host, shape, single, parts) for shape in meshes]
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(json.dumps({"results": results, "bytes": total, "std": float(np.std(single["logits"]))}))


if __name__ == "__main__":
    main()
