"""Float32 master weights for params of fewer bits, such as bfloat16.

A step of 1e-6 is lost in a bfloat16 weight, whose neighbors are a 256th of it apart, and so is the decay of a second
moment by a thousandth. Here the optimizer only sees float32: its state holds float32 weights and moments, gradients are
float32, and the params of the model are the rounded master weights::

    optimizer = with_master(optax.adamw(1e-6))
    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    params = apply_updates(params, updates, state)

Float32 params have no second copy; the optimizer and its state do not change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from g1jax.typing import Array, Pytree
from g1jax.vlm.accumulation import is_narrow, widened


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Master:
    """An optimizer's state where some params have fewer than 32 bits."""

    weights: Pytree
    """Their float32 weights, in the structure of the params; None for a param that is float32 itself."""
    rule: Pytree
    """The state of the wrapped optimizer."""


def with_master(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer, applied to float32 weights whatever the params' dtype.

    Updates of params with fewer than 32 bits are float32 differences to the rounded master weights. This module's
    `apply_updates` applies them exactly, `optax.apply_updates` up to the rounding of a float32 sum.
    """

    def init(params: Pytree) -> Any:
        weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if is_narrow(leaf) else None, params)
        if not jax.tree.leaves(weights):
            return optimizer.init(params)
        return Master(weights, optimizer.init(_or_else(params, weights)))

    def update(grads: Pytree, state: Any, params: Any = None) -> tuple[Pytree, Any]:
        if not isinstance(state, Master):
            return optimizer.update(grads, state, params)
        if params is None:
            raise ValueError("with_master: update needs the params")
        wide = _or_else(params, state.weights)
        steps, inner = optimizer.update(widened(grads), state.rule, wide)
        weights = jax.tree.map(lambda step, old: None if old is None else old + step, steps, state.weights)

        def difference(step: Array, new: Array | None, param: Array) -> Array:
            return step if new is None else _rounded(new, param).astype(jnp.float32) - param.astype(jnp.float32)

        return jax.tree.map(difference, steps, weights, params), Master(weights, inner)

    return optax.GradientTransformation(init, update)


def apply_updates(params: Pytree, updates: Pytree, state: Any) -> Pytree:
    """The params after the update that returned `state`: the rounded master weights, or sums where there are none."""
    if not isinstance(state, Master):
        return optax.apply_updates(params, updates)

    def new(param: Array, step: Array, weight: Array | None) -> Array:
        return param + step if weight is None else _rounded(weight, param)

    return jax.tree.map(new, params, updates, state.weights)


def weights_of(params: Pytree, state: Any) -> Pytree:
    """The params at training precision: the master weights where they exist."""
    return _or_else(params, state.weights) if isinstance(state, Master) else params


def without_rule(state: Any) -> Any:
    """The part of an optimizer's state that `continued` needs: the master weights, without moments."""
    return Master(state.weights, None) if isinstance(state, Master) else None


def continued(fresh: Any, before: Any) -> Any:
    """A new optimizer's initial state with the master weights of the previous one, at full precision."""
    return Master(before.weights, fresh.rule) if isinstance(before, Master) else fresh


def mapped(function: Callable[[Pytree], Pytree], state: Any) -> Any:
    """An optimizer's state with a function applied to its master weights, such as one that drops some."""
    return Master(function(state.weights), state.rule) if isinstance(state, Master) else state


def _rounded(weight: Array, like: Array) -> Array:
    return weight.astype(like.dtype)


def _or_else(params: Pytree, weights: Pytree) -> Pytree:
    """The master weights, or the params where these are None."""
    return jax.tree.map(lambda param, weight: param if weight is None else weight, params, weights)
