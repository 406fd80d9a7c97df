"""The optimizers: Muon's step against a singular value decomposition, and which params each one updates."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from g1jax import vlm
from g1jax.training.config import Optimizer
from g1jax.training.optimizer import make_optimizer, matrices

PLAIN = Optimizer(name="muon", lr=0.01, weight_decay=0.0, max_norm=1e9)


def first_update(config: Optimizer, params: Any, grads: Any) -> Any:
    optimizer = make_optimizer(config, 10)
    return jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0]


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_muon_orthogonalizes_the_update(shape: tuple[int, int]) -> None:
    """The first update has about equal singular values, and the singular vectors of the gradient."""
    gradient = jax.random.normal(jax.random.key(0), shape)
    params = {"kernel": jnp.zeros(shape)}
    update = np.asarray(first_update(PLAIN, params, {"kernel": gradient})["kernel"])
    left, _, right = np.linalg.svd(np.asarray(gradient), full_matrices=False)
    singular = np.diag(left.T @ -update @ right.T)
    np.testing.assert_allclose(left.T @ -update @ right.T, np.diag(singular), atol=1e-4)
    # Five steps of Newton-Schulz bring singular values to 0.68 to 1.13 of their target.
    size = 0.01 * max(shape) ** 0.5
    assert (singular > 0.6 * size).all()
    assert (singular < 1.2 * size).all()
    assert 0.6 * 0.01 < np.sqrt((update**2).mean()) < 1.2 * 0.01


def test_stacked_matrices_are_updated_separately() -> None:
    grads = jax.random.normal(jax.random.key(1), (3, 6, 4))
    stacked = first_update(PLAIN, {"kernel": jnp.zeros((3, 6, 4))}, {"kernel": grads})["kernel"]
    for i in range(3):
        alone = first_update(PLAIN, {"kernel": jnp.zeros((6, 4))}, {"kernel": grads[i]})["kernel"]
        np.testing.assert_allclose(stacked[i], alone, atol=1e-6)


def test_other_params_use_adamw_with_nesterov_momentum() -> None:
    params = {"embedding": jnp.ones((5, 4)), "scale": jnp.ones(4)}
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), params)
    config = dataclasses.replace(PLAIN, weight_decay=0.1, b2=0.95)
    rule = optax.nadamw(0.01, b2=0.95, weight_decay=0.1)
    with jax.numpy_dtype_promotion("standard"):
        wanted, _ = rule.update(grads, rule.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), first_update(config, params, grads), wanted)


def test_muon_is_for_the_linear_maps() -> None:
    config = vlm.preset("nano")
    for is_scanned in (False, True):
        params = vlm.param_shapes(dataclasses.replace(config, is_scanned=is_scanned))
        chosen = matrices(params)
        for path, leaf in jax.tree.leaves_with_path(params):
            found = chosen
            for key in path:
                found = found[key.key]
            assert (found is not None) == (path[-1].key == "kernel")
            if found is not None:
                assert (found.reduction_axis, found.output_axis) == (leaf.ndim - 2, leaf.ndim - 1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_bfloat16_params_move_as_far_as_float32_ones(name: Any) -> None:
    """At the paper's 1e-6, where every step is below half of the bfloat16 spacing at 0.02 and 1."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(16, 8)) * 0.02, jnp.bfloat16), "scale": jnp.ones(8, jnp.bfloat16)}
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3, leaf.dtype), params)
    optimizer = make_optimizer(Optimizer(name=name, lr=1e-6), 400)

    @jax.jit
    def moved(params: Any) -> Any:
        def step(_: Any, carry: Any) -> Any:
            params, state = carry
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(
                    jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), state, params
                )
                return optax.apply_updates(params, updates), state

        end, _ = jax.lax.fori_loop(0, 3000, step, (params, optimizer.init(params)))
        return jax.tree.map(lambda a, b: jnp.mean(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))), end, params)

    far = moved(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))
    for key, distance in moved(params).items():
        assert far[key] > 2e-4
        assert 0.9 * far[key] < distance < 1.4 * far[key], key


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_final_norm_has_its_own_rate(name: Any) -> None:
    """AdamW's first step is the learning rate, whatever the gradient; other params are not affected."""
    without = Optimizer(name=name, lr=1e-3, weight_decay=0.0, max_norm=1e9)
    scale = {"norm": {"scale": jnp.ones(4)}, "layers": {"0": {"norm": {"scale": jnp.ones(4)}}}}
    params, grads = {"model": scale}, {"model": jax.tree.map(lambda leaf: -2 * leaf, scale)}
    update = first_update(dataclasses.replace(without, final_norm_lr=0.05), params, grads)
    np.testing.assert_allclose(update["model"]["norm"]["scale"], 0.05, rtol=1e-4)
    chex.assert_trees_all_close(
        update["model"]["layers"], first_update(without, params, grads)["model"]["layers"], rtol=1e-6
    )
