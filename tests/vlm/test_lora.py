"""LoRA: it starts as the base model, only its params are trained, and the merged model is equal."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import vlm
from g1jax.vlm import lora, stacking, weights
from tests.vlm.shapes import TINY, apply, make_batch, make_params

ALL = lora.LoRA(rank=3, alpha=12.0, targets=("model.*_proj", "visual.blocks.*", "merger.*"))


def trained(config: vlm.Config, spec: lora.LoRA) -> vlm.Params:
    """LoRA params with values as after training."""
    params = lora.init(config, spec, jax.random.key(1))
    rng = np.random.default_rng(0)
    moved: vlm.Params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params)
    return moved


def test_initial_lora_changes_nothing() -> None:
    params, batch = make_params(), make_batch()
    attached = lora.attach(params, lora.init(TINY, ALL, jax.random.key(0)), ALL)
    assert (np.asarray(apply(TINY, attached, *batch)) == np.asarray(apply(TINY, params, *batch))).all()


@pytest.mark.parametrize(
    ("spec", "is_scanned"),
    [
        pytest.param(ALL, False, marks=pytest.mark.slow),
        (ALL, True),
        (lora.LoRA(rank=1, alpha=3.0, targets=("down_proj", "qkv")), False),
    ],
)
def test_merged_is_the_same_model(spec: lora.LoRA, is_scanned: bool) -> None:
    config = dataclasses.replace(TINY, is_scanned=is_scanned)
    params, batch, lora_params = make_params(config), make_batch(), trained(config, spec)
    base, applied, merged = (
        np.asarray(apply(config, tree, *batch))
        for tree in (params, lora.attach(params, lora_params, spec), lora.merge(params, lora_params, spec))
    )
    assert np.abs(applied - base).max() > 0.05
    np.testing.assert_allclose(merged, applied, atol=3e-5 * np.std(base), rtol=1e-5)


def test_merging_scales_the_update() -> None:
    """W + (alpha / rank) A B, by hand."""
    params, lora_params = make_params(), trained(TINY, ALL)
    own = lora_params["model"]["layers"][1]["self_attn"]["q_proj"]
    expected = params["model"]["layers"][1]["self_attn"]["q_proj"]["kernel"] + 4.0 * own["lora_a"] @ own["lora_b"]
    merged = lora.merge(params, lora_params, ALL)["model"]["layers"][1]["self_attn"]["q_proj"]["kernel"]
    np.testing.assert_allclose(merged, expected, atol=1e-6)


def test_only_lora_is_trained() -> None:
    params, (tokens, mask, frames) = make_params(), make_batch()
    lora_params = trained(TINY, ALL)

    def loss(trained: vlm.Params) -> jax.Array:
        attached = lora.attach(params, trained, ALL)
        return -jnp.mean(
            vlm.score(TINY, attached, tokens[:, :-3], mask[:, :-3], tokens[:, -3:], mask[:, -3:], frames).logprobs
        )

    value, gradient = jax.jit(jax.value_and_grad(loss))(lora_params)
    assert {path[-1] for path in vlm.param_paths(gradient)} == {"lora_a", "lora_b"}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    stepped = jax.tree.map(lambda p, g: p - 0.02 * g, lora_params, gradient)
    assert jax.jit(loss)(stepped) < value


def test_attached_params_split_again() -> None:
    params, lora_params = make_params(), trained(TINY, ALL)
    again, rest = lora.split(lora.attach(params, lora_params, ALL))
    jax.tree.map(np.testing.assert_array_equal, rest, params)
    unit = dataclasses.replace(ALL, alpha=float(ALL.rank))  # B comes back scaled
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        apply(TINY, lora.attach(rest, again, unit), *make_batch()),
        apply(TINY, lora.attach(params, lora_params, ALL), *make_batch()),
    )
    assert lora.split(params)[0] == {}


def test_the_sampler_is_the_scorer_with_lora() -> None:
    params, batch = lora.attach(make_params(), trained(TINY, ALL), ALL), make_batch()
    generate = jax.jit(vlm.generate, static_argnums=0, static_argnames="max_new_tokens")
    response = generate(TINY, params, *batch, jax.random.key(0), max_new_tokens=7)
    found = jax.jit(vlm.score, static_argnums=0)(
        TINY, params, *batch[:2], response.response_tokens, response.response_mask, batch[2]
    )
    np.testing.assert_allclose(found.logprobs, response.logprobs, atol=1e-5)


def test_export_of_merged_params(tmp_path: Path) -> None:
    params, lora_params = make_params(), trained(TINY, ALL)
    with pytest.raises(vlm.WeightsError, match="merge LoRA first"):
        weights.save(TINY, lora.attach(params, lora_params, ALL), tmp_path / "attached")
    merged = lora.merge(params, lora_params, ALL)
    weights.save(TINY, merged, tmp_path / "merged")
    config, again = weights.load(tmp_path / "merged", **{
        key: getattr(TINY, key)
        for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    })  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, again, merged)
    assert config == TINY


def test_bfloat16_params_keep_lora_in_float32() -> None:
    config = dataclasses.replace(TINY, dtype="bfloat16", param_dtype="bfloat16")
    lora_params = trained(config, ALL)
    assert {leaf.dtype for leaf in jax.tree.leaves(lora_params)} == {jnp.dtype("float32")}
    params = vlm.init(config, jax.random.key(0))
    assert apply(config, lora.attach(params, lora_params, ALL), *make_batch()).dtype == jnp.float32
    merged = lora.merge(params, lora_params, ALL)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("q_prj",)}, "unknown LoRA target 'q_prj'; did you mean 'q_proj'"),
        ({"targets": ("q_proj", "lm_head")}, "unknown LoRA target 'lm_head'"),
        ({"targets": ("embed_tokens",)}, "unknown LoRA target 'embed_tokens'"),
        ({"targets": "q_proj"}, "targets='q_proj': expected a tuple"),
        ({"rank": -1}, "LoRA: rank=-1: expected a whole number from 0"),
    ],
)
def test_unknown_targets_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(vlm.ConfigError, match=message):
        lora.init(TINY, lora.LoRA(**changes), jax.random.key(0))


def test_lora_params_of_another_model() -> None:
    deeper = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, num_layers=3))
    with pytest.raises(vlm.ConfigError, match=r"model\.layers\.2\.\S+, which the params do not have"):
        lora.attach(make_params(), trained(deeper, ALL), ALL)


def test_layers_with_different_targets_cannot_be_stacked() -> None:
    spec = lora.LoRA(rank=2, targets=("model.layers.0.*.q_proj",))
    with pytest.raises(vlm.ConfigError, match="layers with different params cannot be stacked"):
        stacking.stack_layers(lora.attach(make_params(), trained(TINY, spec), spec))
