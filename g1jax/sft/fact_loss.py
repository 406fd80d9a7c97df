"""An auxiliary loss of the cold start on visual tokens: the facts of each cell, and which pairs of cells are legal.

A small vision tower learns relations between tiles if it is trained on them directly, and hardly from the text loss
alone (docs/lab_notes.md). Each game has a linear head on the visual tokens for its facts and, where an action is two
cells, two projections whose product scores the pairs. The heads are trained with the policy and exist only in the cold
start's checkpoints: a policy that is exported, evaluated or trained by RL has none.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool

from g1jax import keys, vlm
from g1jax.envs.core import Game
from g1jax.errors import ExperimentError
from g1jax.rl.losses import Metrics
from g1jax.rl.policy import Policy
from g1jax.typing import Array, Key
from g1jax.vlm import Params

HEADS = "facts"
"""The key of the heads in the trained params."""
_PAIR_WIDTH = 64
_FACT_BIAS, _PAIR_BIAS = -2.0, -3.0  # few facts hold, and very few pairs are legal


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Facts:
    """The facts of a batch of states of one game."""

    cells: Bool[Array, "B _ F"]
    pairs: Array | None  # bool[B, R·C, R·C], legal pairs of cells; None if an action is not a pair


def facts_of(game: Game[Any], states: Any) -> Facts:
    """The facts of a batch of states."""
    cells = jax.vmap(game.facts)(states)
    cells = cells.reshape(cells.shape[0], game.rows * game.cols, -1)
    size = game.rows * game.cols
    return Facts(cells, jax.vmap(game.legal_actions)(states).reshape(-1, size, size) if _acts_on_pairs(game) else None)


def check_facts(policy: Policy, game: Game[Any]) -> None:
    """Raises ExperimentError unless the policy has one visual token per cell of the game."""
    grid = vlm.grid_of(policy.config.vision, *game.frame_shape[:2])
    ExperimentError.require(
        grid == (game.rows, game.cols),
        f"cold_start.facts_weight: a frame of {game.id} is {grid[0]} × {grid[1]} visual tokens and its board "
        f"{game.rows} × {game.cols} cells: facts need a token per cell; set "
        f"cell_size={policy.config.vision.token_size}, or facts_weight=0",
    )


def init_heads(policy: Policy, games: tuple[Game[Any], ...], key: Key) -> Params:
    """Random heads, by game, with small normal kernels."""
    width = policy.config.text.hidden_size
    heads: Params = {}
    for i, game in enumerate(games):
        sizes = {"cells": len(game.fact_names)}
        if _acts_on_pairs(game):
            sizes |= {"first": _PAIR_WIDTH, "second": _PAIR_WIDTH}
        head_keys = jax.random.split(keys.of_game(key, i), len(sizes))
        heads[game.id] = {
            name: {"kernel": jax.random.normal(head_key, (width, size), jnp.float32) * 0.02}
            for head_key, (name, size) in zip(head_keys, sizes.items(), strict=True)
        }
    return heads


def facts_loss(heads: Params, visual_tokens: Array, facts: Facts) -> tuple[Array, Metrics]:
    """The loss of a batch's facts from its visual tokens, float[B, R·C, D]: the sum of mean binary cross-entropies.

    Metrics: the shares of boards with every fact right, and with a legal pair scored best.
    """
    visual_tokens = visual_tokens.astype(jnp.float32)
    logits = visual_tokens @ heads["cells"]["kernel"] + _FACT_BIAS
    loss = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, facts.cells.astype(jnp.float32)))
    metrics = {"facts_right": jnp.mean(jnp.all((logits > 0) == facts.cells, axis=(1, 2)).astype(jnp.float32))}
    if facts.pairs is not None:
        first, second = (visual_tokens @ heads[name]["kernel"] for name in ("first", "second"))
        scores = jnp.einsum("bid,bjd->bij", first, second) / math.sqrt(_PAIR_WIDTH) + _PAIR_BIAS
        loss += jnp.mean(optax.sigmoid_binary_cross_entropy(scores, facts.pairs.astype(jnp.float32)))
        flat_scores, is_legal = (x.reshape(len(x), -1) for x in (scores, facts.pairs))
        is_best_legal = jnp.take_along_axis(is_legal, jnp.argmax(flat_scores, axis=1)[:, None], axis=1)
        metrics["best_pair_legal"] = jnp.mean(is_best_legal.astype(jnp.float32))
    return loss, metrics | {"facts_loss": loss}


def without_heads(trained: Params) -> Params:
    """The policy's own params, without the facts' heads."""
    return {key: value for key, value in trained.items() if key != HEADS}


def _acts_on_pairs(game: Game[Any]) -> bool:
    return len(game.action_shape) == 4
