"""AdamW or Muon in float32, with warm-up, cosine decay and gradient clipping."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from g1jax.training.config import Optimizer
from g1jax.typing import Pytree
from g1jax.vlm.master_weights import with_master


def make_optimizer(config: Optimizer, num_steps: int) -> optax.GradientTransformation:
    """The optimizer for `num_steps` steps, which set its learning rate schedule.

    For bfloat16 params its state also holds float32 master weights: see `vlm.master_weights`.
    """
    schedule = _schedule(config, num_steps)
    rule = _muon(config, schedule) if config.name == "muon" else _adamw(config, schedule)
    if config.final_norm_lr and config.lr:  # lr=0 freezes all params
        share = config.final_norm_lr / config.lr
        norm = optax.adamw(lambda step: schedule(step) * share, b2=config.b2, weight_decay=0.0)
        rule = optax.multi_transform({"final_norm": norm, "rest": rule}, _groups)
    chain = with_master(optax.chain(optax.clip_by_global_norm(config.max_norm), rule))

    def step(updates: Any, state: Any, params: Any = None) -> Any:
        # optax mixes floats with integers and matrices with scalars
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, step)


def learning_rate(config: Optimizer, num_steps: int, step: int) -> float:
    """The learning rate of a step, counted from 0, of `num_steps`."""
    with jax.numpy_dtype_promotion("standard"):
        return float(_schedule(config, num_steps)(step))


def _schedule(config: Optimizer, num_steps: int) -> optax.Schedule:
    num_steps = max(num_steps, 1)
    warmup = min(config.warmup, num_steps - 1)
    return optax.warmup_cosine_decay_schedule(
        config.lr if warmup == 0 else 0.0, config.lr, warmup, num_steps, config.lr * config.final_lr
    )


def _groups(params: Pytree) -> Pytree:
    """Labels of the params: the final norm's scale, and the rest."""

    def group(path: Any, leaf: Any) -> str:
        names = tuple(getattr(part, "key", None) for part in path)
        return "final_norm" if names == ("model", "norm", "scale") else "rest"

    return jax.tree.map_with_path(group, params)


def _adamw(config: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay)


def _muon(config: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices: the momentum, orthogonalized by five
    steps of Newton-Schulz.

    The other params use AdamW with Nesterov momentum. Every matrix's update is scaled to a root mean square of the
    learning rate, whatever its shape (Liu et al. 2025, arXiv 2502.16982, section 2.2, who take a fifth of it).
    """
    return muon(
        schedule,
        weight_decay=config.weight_decay,
        consistent_rms=1.0,
        adam_b2=config.b2,
        adam_weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=matrices,
    )


def matrices(params: Pytree) -> Pytree:
    """The dimensions of Muon's params, the kernels of linear maps (one a layer if scanned). None for the others."""

    def dimensions(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
        is_kernel = getattr(path[-1], "key", None) == "kernel"
        return MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if is_kernel else None

    return jax.tree.map_with_path(dimensions, params)
