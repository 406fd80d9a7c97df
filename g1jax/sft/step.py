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
from g1jax.sft.facts import HEADS, facts_loss
from g1jax.typing import Array, Pytree
from g1jax.vlm import Params
from g1jax.vlm.accumulation import add_to, empty_sums, split_rows
from g1jax.vlm.master import apply_updates


def supervised_step(
    policy: Policy,
    optimizer: optax.GradientTransformation,
    games: Sequence[Game[Any]],
    see_weight: float,
    num_micro: int,
    params: Params,
    opt_state: Pytree,
    batches: Sequence[SFTBatch],
    full_params: Callable[[Params], Params] = lambda params: params,
    facts_weight: float = 0.0,
) -> tuple[Params, Pytree, Metrics]:
    """New params and optimizer state, and by game the loss and how often the likeliest token is the teacher's.

    The loss is the mean over games of the mean over tokens, those of the perception counted `see_weight` times, and
    `facts_weight` times the loss of the facts, where the batches have them and `params` the heads.
    """
    grads: Params | None = None
    metrics: Metrics = {}
    for game, batch in zip(games, batches, strict=True):
        weights = jnp.where(batch.is_perception, see_weight, 1.0) * batch.mask.astype(jnp.float32)
        weights = weights / (jnp.sum(weights) * len(games))
        share = facts_weight / len(games)
        own, figures = _gradient(policy, game, share, num_micro, full_params, params, batch, weights)
        grads = own if grads is None else jax.tree.map(jnp.add, grads, own)
        metrics |= {f"{game.id}/{name}": value for name, value in _rates(figures, len(games)).items()}
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
) -> tuple[Params, dict[str, Array]]:
    """The gradient of one game's share of the loss, its micro-batches added up in float32, and sums of figures."""

    def loss(params: Params, part: tuple[SFTBatch, Array]) -> tuple[Array, dict[str, Array]]:
        batch, weights = part
        own = full_params(params)
        seen_tokens = vlm.see(policy.config, own, batch.frames)
        score = policy.score(own, game, batch.frames, batch.tokens, batch.mask, seen_tokens)
        loss = -jnp.sum(score.logprobs * weights)
        facts: Metrics = {}
        total = loss
        if batch.facts is not None:
            facts_own, facts = facts_loss(params[HEADS][game.id], seen_tokens, batch.facts)
            total += facts_weight / num_micro * facts_own
        seen, said = batch.is_perception & batch.mask, ~batch.is_perception & batch.mask
        return total, {
            **{name: value / num_micro for name, value in facts.items()},
            "loss": loss,
            "seen_nats": -jnp.sum(jnp.where(seen, score.logprobs, 0.0)),
            "said_nats": -jnp.sum(jnp.where(said, score.logprobs, 0.0)),
            "seen": jnp.sum(seen.astype(jnp.float32)),
            "said": jnp.sum(said.astype(jnp.float32)),
        }

    def add(carry: Any, part: tuple[SFTBatch, Array]) -> tuple[Any, None]:
        return add_to(carry, jax.grad(loss, has_aux=True)(params, part)), None

    parts = jax.tree.map(lambda leaf: split_rows(leaf, num_micro), (batch, weights))
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    shapes = jax.eval_shape(functools.partial(jax.grad(loss, has_aux=True), params), first)
    total: tuple[Params, dict[str, Array]]
    total, _ = lax.scan(add, empty_sums(shapes), parts)
    return total


def _rates(figures: dict[str, Array], num_games: int) -> Metrics:
    """Nats a token of what the policy thinks of the perception and of the rest."""
    return {
        **{name: figures[name] for name in ("facts_loss", "facts_right", "best_pair_legal") if name in figures},
        "loss": figures["loss"] * num_games,
        "perception_nats": figures["seen_nats"] / figures["seen"],
        "reasoning_nats": figures["said_nats"] / figures["said"],
    }
