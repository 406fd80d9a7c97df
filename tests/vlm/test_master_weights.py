"""Float32 master weights: bfloat16 params are trained as float32 ones, which have no second copy."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType

from g1jax.vlm import lora, master_weights, param_shapes, sharding
from tests.vlm.shapes import TINY

RULE = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.1))
BF16 = jnp.dtype("bfloat16")


def make(dtype: Any = BF16) -> Any:
    """Values that bfloat16 represents exactly, in a dtype."""
    rng = np.random.default_rng(0)
    tree = {"kernel": rng.normal(size=(8, 4)), "scale": np.ones(4)}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, BF16).astype(dtype), tree)


def gradient_of(params: Any, step: Any) -> Any:
    """Gradients that bfloat16 represents exactly, sometimes large enough to be clipped."""
    return jax.tree.map(
        lambda leaf: (jnp.cos(jnp.arange(leaf.size) + step).reshape(leaf.shape) * 2.0).astype(BF16).astype(leaf.dtype),
        params,
    )


def train(rule: optax.GradientTransformation, params: Any, num_steps: int) -> tuple[Any, Any]:
    def step(i: Any, carry: Any) -> Any:
        params, state = carry
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, state = rule.update(gradient_of(params, i.astype(jnp.float32)), state, params)
        return master_weights.apply_updates(params, updates, state), state

    trained: tuple[Any, Any] = jax.jit(
        lambda params: jax.lax.fori_loop(0, num_steps, step, (params, rule.init(params)))
    )(params)
    return trained


def test_bfloat16_params_are_the_float32_ones_rounded() -> None:
    """After many steps too: the master weights and the moments are those of a float32 run, bit for bit."""
    rule = master_weights.with_master(RULE)
    wide, wide_state = train(rule, make(jnp.float32), 300)
    narrow, state = train(rule, make(), 300)
    chex.assert_trees_all_equal((state.weights, state.rule), (wide, wide_state))
    chex.assert_trees_all_equal(narrow, jax.tree.map(lambda leaf: leaf.astype(BF16), wide))
    assert all((leaf != first).any() for leaf, first in zip(*map(jax.tree.leaves, (narrow, make())), strict=True))


def test_float32_params_have_no_master_weights() -> None:
    params = make(jnp.float32)
    rule = master_weights.with_master(RULE)
    chex.assert_trees_all_equal(rule.init(params), RULE.init(params))
    for found, expected in zip(train(rule, params, 20), train(RULE, params, 20), strict=True):
        chex.assert_trees_all_equal(found, expected)
    assert master_weights.weights_of(params, rule.init(params)) is params


def test_second_moments_decay() -> None:
    """In bfloat16, 0.999 of a number rounds back to it: one large gradient would slow down its weight forever."""
    rule = master_weights.with_master(optax.scale_by_adam())
    params = {"w": jnp.ones(3, BF16)}
    state = rule.init(params)
    once = jax.jit(lambda state, size: rule.update({"w": jnp.full(3, size, BF16)}, state, params)[1])
    with jax.numpy_dtype_promotion("standard"):
        state = once(state, 1.0)
        before = state.rule.nu["w"]
        for _ in range(100):
            state = once(state, 0.0)
    np.testing.assert_allclose(state.rule.nu["w"], before * 0.999**100, rtol=1e-4)


def test_applied_updates_give_the_rounded_weights() -> None:
    """Exactly, even if a weight almost vanishes in one step; `optax.apply_updates` rounds a sum."""
    goal = np.array([1e-12, -3.0, 0.75, 1.0 + 2**-9, -1e-3, 0.0], np.float32)
    params = {"w": jnp.array([1.0, 3.0, 0.5, 1.0, 1e-3, 2.0], BF16)}
    rule = master_weights.with_master(
        optax.GradientTransformation(lambda _: (), lambda grads, state, _=None: (grads, state))
    )
    state = rule.init(params)
    updates, state = rule.update({"w": goal - params["w"].astype(jnp.float32)}, state, params)
    state = master_weights.Master({"w": jnp.asarray(goal)}, state.rule)  # free of the rounding of 1 + (1e-12 - 1)
    rounded = goal.astype(BF16)
    assert (master_weights.apply_updates(params, updates, state)["w"] == rounded).all()
    with jax.numpy_dtype_promotion("standard"):
        summed = optax.apply_updates(params, updates)["w"]
    assert summed.dtype == BF16
    np.testing.assert_allclose(summed.astype(jnp.float32), rounded.astype(np.float32), atol=2**-24, rtol=0)
    assert (summed[1:] == rounded[1:]).all()


def test_only_narrow_params_of_a_tree_have_master_weights() -> None:
    params = {"narrow": jnp.ones(3, BF16), "wide": jnp.ones(3)}
    rule = master_weights.with_master(optax.sgd(1e-3))
    state = rule.init(params)
    assert state.weights["wide"] is None
    for _ in range(10):
        updates, state = rule.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = master_weights.apply_updates(params, updates, state)
    assert {name: leaf.dtype for name, leaf in params.items()} == {"narrow": BF16, "wide": jnp.float32}
    np.testing.assert_allclose(params["wide"], 0.99, rtol=1e-6)
    chex.assert_trees_all_equal(
        master_weights.weights_of(params, state), {"narrow": params["wide"], "wide": params["wide"]}
    )


def test_a_new_optimizer_continues_at_full_precision() -> None:
    rule = master_weights.with_master(RULE)
    params, state = train(rule, make(), 50)
    again = master_weights.continued(rule.init(params), master_weights.without_rule(state))
    chex.assert_trees_all_equal(again.weights, state.weights)
    chex.assert_trees_all_equal(again.rule, RULE.init(state.weights))
    assert any(
        (master_weights.weights_of(params, again)[key] != params[key].astype(jnp.float32)).any() for key in params
    )
    wide = RULE.init(make(jnp.float32))
    assert master_weights.continued(wide, master_weights.without_rule(wide)) is wide


def test_update_needs_the_params() -> None:
    rule = master_weights.with_master(optax.sgd(1.0))
    with pytest.raises(ValueError, match="update needs the params"):
        rule.update(make(), rule.init(make()))


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (1, 1, 8)])
def test_master_weights_and_moments_are_sharded_like_the_params(shape: tuple[int, int, int]) -> None:
    mesh = AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    own = jax.eval_shape(lambda: lora.init(TINY, lora.LoRA(rank=8), jax.random.key(0)))
    for tree in (param_shapes(TINY), own):
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, BF16), tree)
        state = jax.eval_shape(master_weights.with_master(RULE).init, params)
        spread, found = (sharding.tree_shardings(TINY, mesh, tree) for tree in (params, state))
        adam = found.rule[1][0]
        assert any(leaf.spec for leaf in jax.tree.leaves(spread))
        assert found.weights == adam.mu == adam.nu == spread
