"""From rollouts of several games to new params: advantages once, then epochs of minibatches of micro-batches.

A minibatch takes the same share of every game's groups, a micro-batch of every minibatch's. Each game keeps its own
shapes, so no row is padded to another game's; only masks and figures are, for statistics over all games.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from g1jax.envs.core import Game
from g1jax.errors import AlgorithmError
from g1jax.rl.advantages import prepare
from g1jax.rl.algorithm import Algorithm, Batch
from g1jax.rl.losses import Metrics, TokenWeights, policy_loss, token_weights
from g1jax.rl.passes import Passes
from g1jax.rl.policy import Policy
from g1jax.rl.rollout import Rollout
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params
from g1jax.vlm.accumulation import add_to, deal, empty_sums
from g1jax.vlm.master import apply_updates


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lot:
    """The rows of one game, or a part of them, with all that learning needs: leaves [R, …]; frames as in a rollout."""

    frames: Array
    tokens: Array  # int32[R, N]
    batch: Batch
    advantages: Array  # float32[R, N]
    weights: TokenWeights | None  # [R, N], of a minibatch


def update(
    policy: Policy,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    passes: Passes,
    games: Sequence[Game[Any]],
    params: Params,
    reference: Params | None,
    opt_state: Pytree,
    rollouts: Sequence[Rollout],
    key: Key,
    *,
    num_samples: int,
    complete: Callable[[Params], Params] = lambda params: params,
) -> tuple[Params, Pytree, Metrics]:
    """New params and optimizer state, and the mean of what the steps measured.

    `complete` makes the model's params of those that are trained, the reference's too: for LoRA.

    Raises:
        AlgorithmError: the rows do not divide into the passes' parts, or the algorithm cannot learn from them.
    """
    lots = _make_lots(
        policy, algorithm, games, None if reference is None else complete(reference), rollouts, num_samples
    )
    for game, lot in zip(games, lots, strict=True):
        passes.check(lot.tokens.shape[0] // num_samples, game.id)

    def learn(carry: tuple[Params, Pytree], key: Key) -> tuple[tuple[Params, Pytree], Metrics]:
        keys = jax.random.split(key, len(lots))
        dealt = [_deal(lot, passes, num_samples, key) for lot, key in zip(lots, keys, strict=True)]
        return lax.scan(step, carry, dealt)

    def step(carry: tuple[Params, Pytree], minibatch: list[Lot]) -> tuple[tuple[Params, Pytree], Metrics]:
        params, opt_state = carry
        grads, metrics = _gradient(policy, algorithm, games, complete, params, minibatch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return (apply_updates(params, updates, opt_state), opt_state), metrics

    (params, opt_state), metrics = lax.scan(learn, (params, opt_state), jax.random.split(key, passes.epochs))
    return params, opt_state, jax.tree.map(jnp.mean, metrics)


def _make_lots(
    policy: Policy,
    algorithm: Algorithm,
    games: Sequence[Game[Any]],
    reference: Params | None,
    rollouts: Sequence[Rollout],
    num_samples: int,
) -> list[Lot]:
    """What each game's rows are worth: one batch over all games, padded for the statistics, and cut up again."""
    lots = []
    for i, (game, rollout) in enumerate(zip(games, rollouts, strict=True)):
        mask = rollout.responses.mask & rollout.is_running[:, None]
        logprobs = None
        if algorithm.needs_reference:
            if reference is None:
                raise AlgorithmError(f"{algorithm.name} needs a reference policy for its KL")
            logprobs = policy.score(reference, game, rollout.frames, rollout.responses.tokens, mask).logprobs
        game_id = jnp.full(mask.shape[0], i, jnp.int32)
        batch = Batch(mask, rollout.responses.logprobs, logprobs, rollout.returns, game_id)
        nothing = jnp.zeros(mask.shape, jnp.float32)
        lots.append(Lot(rollout.frames, rollout.responses.tokens, batch, nothing, None))
    batch, advantages = prepare(
        algorithm, _join([lot.batch for lot in lots]), num_samples=num_samples, num_games=len(games)
    )
    out, start = [], 0
    for lot in lots:
        rows, length = lot.tokens.shape
        part = slice(start, start + rows)
        mask = batch.response_mask[part, :length]
        own = dataclasses.replace(lot.batch, response_mask=mask)
        out.append(dataclasses.replace(lot, batch=own, advantages=advantages[part, :length]))
        start += rows
    return out


def _join(batches: Sequence[Batch]) -> Batch:
    """Several games' rows as one batch, padded to the longest response."""
    longest = max(batch.response_mask.shape[1] for batch in batches)

    def pad(leaf: Array) -> Array:
        return leaf if leaf.ndim == 1 else jnp.pad(leaf, ((0, 0), (0, longest - leaf.shape[1])))

    return jax.tree.map(lambda *leaves: jnp.concatenate([pad(leaf) for leaf in leaves]), *batches)


def _deal(lot: Lot, passes: Passes, num_samples: int, key: Key) -> Lot:
    """The rows in minibatches of micro-batches, of several minibatches in random order of groups: [M, m, R / Mm, …].

    Part i has the groups i, i + parts, …: rows split among devices stay where they are.
    """
    num_rows, parts = lot.tokens.shape[0], (passes.minibatches, passes.microbatches)
    order = jax.random.permutation(key, num_rows // num_samples) if passes.minibatches > 1 else None

    def portion(leaf: Array) -> Array:
        # A row a response, or of frames one for all responses to a state: groups either way.
        groups = leaf.reshape(num_rows // num_samples, -1, *leaf.shape[1:])
        dealt = deal(groups if order is None else groups[order], math.prod(parts))
        return dealt.reshape(*parts, -1, *leaf.shape[1:])

    return jax.tree.map(portion, lot)


def _gradient(
    policy: Policy,
    algorithm: Algorithm,
    games: Sequence[Game[Any]],
    complete: Callable[[Params], Params],
    params: Params,
    minibatch: list[Lot],
) -> tuple[Params, Metrics]:
    """The gradient of a minibatch, leaves [micro, R, …], added up in float32 over games and micro-batches."""
    total: tuple[Params, Metrics] | None = None
    for game, lot, weights in zip(games, minibatch, _weights(algorithm, minibatch), strict=True):

        def loss(params: Params, lot: Lot, game: Game[Any] = game) -> tuple[Array, Metrics]:
            score = policy.score(complete(params), game, lot.frames, lot.tokens, lot.batch.response_mask)
            return policy_loss(algorithm, score.logprobs, score.entropy, lot.batch, lot.advantages, lot.weights)

        def add(
            carry: tuple[Params, Metrics] | None, lot: Lot, loss: Any = loss
        ) -> tuple[tuple[Params, Metrics], None]:
            grads, metrics = jax.grad(loss, has_aux=True)(params, lot)
            return add_to(carry, (grads, metrics)), None

        lot = dataclasses.replace(lot, weights=weights)
        first = jax.tree.map(lambda leaf: leaf[0], lot)
        shapes = jax.eval_shape(lambda first=first, loss=loss: jax.grad(loss, has_aux=True)(params, first))
        total, _ = lax.scan(add, empty_sums(shapes) if total is None else total, lot)
    assert total is not None
    return total


def _weights(algorithm: Algorithm, minibatch: list[Lot]) -> list[TokenWeights]:
    """Each game's part, [micro, R, N], of the token weights of the whole minibatch."""
    masks = [lot.batch.response_mask for lot in minibatch]
    longest = max(mask.shape[-1] for mask in masks)
    flat = [jnp.pad(m.reshape(-1, m.shape[-1]), ((0, 0), (0, longest - m.shape[-1]))) for m in masks]
    weights = token_weights(algorithm, jnp.concatenate(flat))
    out, start = [], 0
    for mask, rows in zip(masks, flat, strict=True):
        part = slice(start, start + rows.shape[0])
        out.append(jax.tree.map(lambda w, m=mask, p=part: w[p, : m.shape[-1]].reshape(m.shape), weights))
        start += rows.shape[0]
    return out
