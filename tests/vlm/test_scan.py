"""A scanned decoder computes the same as the plain one from the same params, with a much smaller program."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import vlm
from g1jax.vlm import generation, lora, stacking, weights
from tests.vlm.shapes import TINY, apply, make_batch, make_params

SCANNED = dataclasses.replace(TINY, is_scanned=True)
IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def loss(config: vlm.Config, params: vlm.Params, batch: tuple[jax.Array, ...]) -> jax.Array:
    tokens, mask, frames = batch
    found = vlm.score(config, params, tokens[:, :-3], mask[:, :-3], tokens[:, -3:], mask[:, -3:], frames)
    return jnp.mean(found.logprobs) + 0.1 * jnp.mean(found.entropy)


def test_logits_are_those_of_the_layers() -> None:
    params, batch = make_params(), make_batch()
    plain = np.asarray(apply(TINY, params, *batch))
    scanned = np.asarray(apply(SCANNED, stacking.stack_layers(params), *batch))
    assert np.std(plain) > 0.3
    np.testing.assert_allclose(scanned, plain, atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_layers() -> None:
    params, batch = make_params(), make_batch()
    gradient = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
    plain = stacking.stack_layers(gradient(TINY, params, batch))
    for is_remat in (False, True):
        scanned = gradient(dataclasses.replace(SCANNED, is_remat=is_remat), make_params(SCANNED), batch)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(scanned), strict=True):
            assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a) + 1e-7


def test_responses_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "FIRST_STAGE", 4)  # so that the caches grow
    monkeypatch.setattr(generation, "STAGE_GROWTH", 2)
    generate = jax.jit(vlm.generate, static_argnums=0, static_argnames=("max_new_tokens", "num_samples", "stop_tokens"))
    params, batch = make_params(), make_batch()
    found = [
        generate(config, tree, *batch, jax.random.key(3), max_new_tokens=7, num_samples=3, stop_tokens=(8, 9))
        for config, tree in ((TINY, params), (SCANNED, make_params(SCANNED)))
    ]
    np.testing.assert_array_equal(found[0].response_tokens, found[1].response_tokens)
    np.testing.assert_allclose(found[0].logprobs, found[1].logprobs, atol=1e-5)


def test_params_stack_and_unstack() -> None:
    params = vlm.init(TINY, jax.random.key(7))
    stacked = stacking.stack_layers(params)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), stacked)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), vlm.param_shapes(SCANNED))
    jax.tree.map(np.testing.assert_array_equal, stacking.unstack_layers(stacked), params)
    jax.tree.map(np.testing.assert_array_equal, vlm.init(SCANNED, jax.random.key(7)), stacked)
    assert vlm.count_params(SCANNED) == vlm.count_params(TINY)


def test_a_folder_is_the_same_for_both(tmp_path: Path) -> None:
    params = vlm.init(TINY, jax.random.key(7))
    weights.save(TINY, params, tmp_path / "plain", max_shard_bytes=10_000)
    weights.save(SCANNED, stacking.stack_layers(params), tmp_path / "scanned")
    for folder in ("plain", "scanned"):
        ids = {key: getattr(TINY, key) for key in IDS}
        config, stacked = weights.load(tmp_path / folder, is_scanned=True, **ids)
        assert config == SCANNED
        jax.tree.map(np.testing.assert_array_equal, stacking.unstack_layers(stacked), params)


def test_lora_stacks_too() -> None:
    spec, params, batch = lora.LoRA(rank=2), make_params(), make_batch()
    own = lora.init(TINY, spec, jax.random.key(0))
    own = jax.tree.map(lambda x: x + 0.1, own)
    plain = apply(TINY, lora.attach(params, own, spec), *batch)
    attached = lora.attach(stacking.stack_layers(params), stacking.stack_layers(own), spec)
    np.testing.assert_allclose(apply(SCANNED, attached, *batch), plain, atol=1e-5 * np.std(plain), rtol=1e-5)


@pytest.mark.slow
def test_the_program_does_not_grow_with_layers() -> None:
    """With 28 layers it is hardly larger than with 2, and much smaller than unrolled."""

    def size(config: vlm.Config, layers: int) -> int:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=layers))
        gradient = jax.jit(jax.grad(loss, argnums=1), static_argnums=0)
        return len(gradient.lower(config, vlm.param_shapes(config), make_batch()).as_text())

    remat = dataclasses.replace(SCANNED, is_remat=True)
    few, many, unrolled = size(remat, 2), size(remat, 28), size(dataclasses.replace(TINY, is_remat=True), 28)
    assert many < 1.05 * few
    assert many < 0.4 * unrolled
