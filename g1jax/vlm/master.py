"""Float32 master weights for params of fewer bits, such as bfloat16.

A step of 1e-6 is lost in a bfloat16 weight, whose neighbours lie a 256th of it apart, and so is the decay of a second
moment by a thousandth. Here the optimizer's rule sees float32 alone: its state holds the weights in float32 and its
moments, gradients come in float32, and the params the model computes with are the master weights, rounded::

    rule = with_master(optax.adamw(1e-6))
    state = rule.init(params)
    updates, state = rule.update(grads, state, params)
    params = apply_updates(params, updates, state)

Of float32 params there is no second copy, and nothing about the rule or its state changes.
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
    """An optimizer's state for params of which some have less than 32 bits."""

    weights: Pytree
    """Their float32 weights, in the params' places; None in the place of a param that is float32 itself."""
    rule: Pytree
    """The state of the rule that moves them."""


def with_master(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same rule, applied to float32 weights whatever the params' type.

    The updates of params with less than 32 bits are float32 differences to the rounded master weights:
    `optax.apply_updates` gets there up to the rounding of one float32 sum, `apply_updates` of this module exactly.
    """

    def init(params: Pytree) -> Any:
        weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if is_narrow(leaf) else None, params)
        if not jax.tree.leaves(weights):
            return rule.init(params)
        return Master(weights, rule.init(_or_else(params, weights)))

    def update(grads: Pytree, state: Any, params: Any = None) -> tuple[Pytree, Any]:
        if not isinstance(state, Master):
            return rule.update(grads, state, params)
        if params is None:
            raise ValueError("with_master: update needs the params")
        wide = _or_else(params, state.weights)
        steps, inner = rule.update(widened(grads), state.rule, wide)
        weights = jax.tree.map(lambda step, old: None if old is None else old + step, steps, state.weights)

        def difference(step: Array, new: Array | None, param: Array) -> Array:
            return step if new is None else _rounded(new, param).astype(jnp.float32) - param.astype(jnp.float32)

        return jax.tree.map(difference, steps, weights, params), Master(weights, inner)

    return optax.GradientTransformation(init, update)


def apply_updates(params: Pytree, updates: Pytree, state: Any) -> Pytree:
    """The params after an update that gave this state: the rounded master weights, or the sum where there are none."""
    if not isinstance(state, Master):
        return optax.apply_updates(params, updates)

    def new(param: Array, step: Array, weight: Array | None) -> Array:
        return param + step if weight is None else _rounded(weight, param)

    return jax.tree.map(new, params, updates, state.weights)


def weights_of(params: Pytree, state: Any) -> Pytree:
    """The params at the precision they are trained in: the master weights where there are some."""
    return _or_else(params, state.weights) if isinstance(state, Master) else params


def without_rule(state: Any) -> Any:
    """What `continued` reads of an optimizer's state: the master weights, and none of its moments."""
    return Master(state.weights, None) if isinstance(state, Master) else None


def continued(fresh: Any, before: Any) -> Any:
    """A new optimizer's first state with the master weights of the one before, so that no bit of them is lost."""
    return Master(before.weights, fresh.rule) if isinstance(before, Master) else fresh


def mapped(function: Callable[[Pytree], Pytree], state: Any) -> Any:
    """An optimizer's state with a function applied to its master weights, such as one that leaves some out."""
    return Master(function(state.weights), state.rule) if isinstance(state, Master) else state


def _rounded(weight: Array, like: Array) -> Array:
    return weight.astype(like.dtype)


def _or_else(params: Pytree, weights: Pytree) -> Pytree:
    """The master weights, and the params where these are None."""
    return jax.tree.map(lambda param, weight: param if weight is None else weight, params, weights)
