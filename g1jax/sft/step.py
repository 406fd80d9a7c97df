"""A supervised step: next-token loss on demonstrations."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from g1jax import vlm
from g1jax.envs.core import Game
from g1jax.rl.losses import Metrics
from g1jax.rl.policy import Policy
from g1jax.sft.batch import SFTBatch
from g1jax.sft.fact_loss import HEADS, facts_loss
from g1jax.typing import Array, Pytree
from g1jax.vlm import Params
from g1jax.vlm.accumulation import add_to, empty_sums, split_rows
from g1jax.vlm.master_weights import apply_updates


def supervised_step(
    policy: Policy,
    optimizer: optax.GradientTransformation,
    games: Sequence[Game[Any]],
    params: Params,
    opt_state: Pytree,
    batches: Sequence[SFTBatch],
    *,
    see_weight: float,
    num_micro: int,
    full_params: Callable[[Params], Params] = lambda params: params,
    facts_weight: float = 0.0,
) -> tuple[Params, Pytree, Metrics]:
    """New params and optimizer state, and metrics by game: the loss, and nats per token of perception and reasoning.

    The loss is the mean over games of the mean over tokens, with weight `see_weight` on those of the perception, plus
    `facts_weight` times the loss of the facts, where the batches have facts and `params` the heads.
    """
    grads: Params | None = None
    metrics: Metrics = {}
    for game, batch in zip(games, batches, strict=True):
        weights = jnp.where(batch.is_perception, see_weight, 1.0) * batch.mask.astype(jnp.float32)
        weights = weights / (jnp.sum(weights) * len(games))
        game_facts_weight = facts_weight / len(games)
        grads, sums = _gradient(policy, game, game_facts_weight, num_micro, full_params, params, batch, weights, grads)
        metrics |= {f"{game.id}/{name}": value for name, value in _metrics(sums, len(games)).items()}
    updates, opt_state = optimizer.update(grads, opt_state, params)
    metrics["gradient_norm"] = optax.tree.norm(grads)
    return apply_updates(params, updates, opt_state), opt_state, metrics


def _gradient(
    policy: Policy,
    game: Game[Any],
    facts_weight: float,
    num_micro: int,
    full_params: Callable[[Params], Params],
    params: Params,
    batch: SFTBatch,
    weights: Array,
    grads: Params | None,
) -> tuple[Params, dict[str, Array]]:
    """The gradient of one game's share of the loss added to `grads`, summed over microbatches in float32, and sums for
    its metrics.

    Games follow one another, since each starts with the sum so far: see `vlm.ordering`.
    """

    def loss(params: Params, part: tuple[SFTBatch, Array]) -> tuple[Array, dict[str, Array]]:
        batch, weights = part
        model_params = full_params(params)
        visual_tokens = vlm.see(policy.config, model_params, batch.frames) if policy.observation.picture else None
        score = policy.score(
            model_params, game, batch.frames, batch.tokens, batch.mask, visual_tokens, boards=batch.boards
        )
        loss = -jnp.sum(score.logprobs * weights)
        facts_metrics: Metrics = {}
        total = loss
        if batch.facts is not None and visual_tokens is not None:
            loss_of_facts, facts_metrics = facts_loss(params[HEADS][game.id], visual_tokens, batch.facts)
            total += facts_weight / num_micro * loss_of_facts
        perception, reasoning = batch.is_perception & batch.mask, ~batch.is_perception & batch.mask
        return total, {
            **{name: value / num_micro for name, value in facts_metrics.items()},
            "loss": loss,
            "perception_nats": -jnp.sum(jnp.where(perception, score.logprobs, 0.0)),
            "reasoning_nats": -jnp.sum(jnp.where(reasoning, score.logprobs, 0.0)),
            "perception_tokens": jnp.sum(perception.astype(jnp.float32)),
            "reasoning_tokens": jnp.sum(reasoning.astype(jnp.float32)),
        }

    def add(carry: Any, part: tuple[SFTBatch, Array]) -> tuple[Any, None]:
        return add_to(carry, jax.grad(loss, has_aux=True)(params, part)), None

    parts = jax.tree.map(lambda leaf: split_rows(leaf, num_micro), (batch, weights))
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    shapes = jax.eval_shape(functools.partial(jax.grad(loss, has_aux=True), params), first)
    total: tuple[Params, dict[str, Array]]
    before, sums = empty_sums(shapes)
    total, _ = lax.scan(add, (before if grads is None else grads, sums), parts)
    return total


def _metrics(sums: dict[str, Array], num_games: int) -> Metrics:
    return {
        **{name: sums[name] for name in ("facts_loss", "facts_right", "best_pair_legal") if name in sums},
        "loss": sums["loss"] * num_games,
        **{f"{part}_nats": sums[f"{part}_nats"] / sums[f"{part}_tokens"] for part in ("perception", "reasoning")},
    }
