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
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.policy import Policy
from g1jax.rl.rollout import Rollout
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params
from g1jax.vlm.accumulation import add_to, empty_sums, split_rows
from g1jax.vlm.master import apply_updates


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Samples:
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
    minibatching: Minibatching,
    games: Sequence[Game[Any]],
    params: Params,
    reference: Params | None,
    opt_state: Pytree,
    rollouts: Sequence[Rollout],
    key: Key,
    *,
    num_samples: int,
    full_params: Callable[[Params], Params] = lambda params: params,
) -> tuple[Params, Pytree, Metrics]:
    """New params and optimizer state, and the mean of what the steps measured.

    `full_params` makes the model's params of those that are trained, the reference's too: for LoRA.

    Raises:
        AlgorithmError: the rows do not divide into the passes' parts, or the algorithm cannot learn from them.
    """
    samples = _make_samples(
        policy, algorithm, games, None if reference is None else full_params(reference), rollouts, num_samples
    )
    for game, own in zip(games, samples, strict=True):
        minibatching.check(own.tokens.shape[0] // num_samples, game.id)

    def learn(carry: tuple[Params, Pytree], key: Key) -> tuple[tuple[Params, Pytree], Metrics]:
        keys = jax.random.split(key, len(samples))
        dealt = [_shuffled(own, minibatching, num_samples, key) for own, key in zip(samples, keys, strict=True)]
        return lax.scan(step, carry, dealt)

    def step(carry: tuple[Params, Pytree], minibatch: list[Samples]) -> tuple[tuple[Params, Pytree], Metrics]:
        params, opt_state = carry
        grads, metrics = _gradient(policy, algorithm, games, full_params, params, minibatch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return (apply_updates(params, updates, opt_state), opt_state), metrics

    (params, opt_state), metrics = lax.scan(learn, (params, opt_state), jax.random.split(key, minibatching.epochs))
    return params, opt_state, jax.tree.map(jnp.mean, metrics)


def _make_samples(
    policy: Policy,
    algorithm: Algorithm,
    games: Sequence[Game[Any]],
    reference: Params | None,
    rollouts: Sequence[Rollout],
    num_samples: int,
) -> list[Samples]:
    """What each game's rows are worth: one batch over all games, padded for the statistics, and cut up again."""
    samples = []
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
        samples.append(Samples(rollout.frames, rollout.responses.tokens, batch, nothing, None))
    batch, advantages = prepare(
        algorithm, _join([own.batch for own in samples]), num_samples=num_samples, num_games=len(games)
    )
    out, start = [], 0
    for of_game in samples:
        rows, length = of_game.tokens.shape
        part = slice(start, start + rows)
        masked = dataclasses.replace(of_game.batch, response_mask=batch.response_mask[part, :length])
        out.append(dataclasses.replace(of_game, batch=masked, advantages=advantages[part, :length]))
        start += rows
    return out


def _join(batches: Sequence[Batch]) -> Batch:
    """Several games' rows as one batch, padded to the longest response."""
    longest = max(batch.response_mask.shape[1] for batch in batches)

    def pad(leaf: Array) -> Array:
        return leaf if leaf.ndim == 1 else jnp.pad(leaf, ((0, 0), (0, longest - leaf.shape[1])))

    return jax.tree.map(lambda *leaves: jnp.concatenate([pad(leaf) for leaf in leaves]), *batches)


def _shuffled(samples: Samples, minibatching: Minibatching, num_samples: int, key: Key) -> Samples:
    """The rows in minibatches of micro-batches, of several minibatches in random order of groups: [M, m, R / Mm, …].

    Part i has the groups i, i + parts, …: rows split among devices stay where they are.
    """
    num_rows, parts = samples.tokens.shape[0], (minibatching.minibatches, minibatching.microbatches)
    order = jax.random.permutation(key, num_rows // num_samples) if minibatching.minibatches > 1 else None

    def portion(leaf: Array) -> Array:
        # A row a response, or of frames one for all responses to a state: groups either way.
        groups = leaf.reshape(num_rows // num_samples, -1, *leaf.shape[1:])
        shuffled = split_rows(groups if order is None else groups[order], math.prod(parts))
        return shuffled.reshape(*parts, -1, *leaf.shape[1:])

    return jax.tree.map(portion, samples)


def _gradient(
    policy: Policy,
    algorithm: Algorithm,
    games: Sequence[Game[Any]],
    full_params: Callable[[Params], Params],
    params: Params,
    minibatch: list[Samples],
) -> tuple[Params, Metrics]:
    """The gradient of a minibatch, leaves [micro, R, …], added up in float32 over games and micro-batches."""
    total: tuple[Params, Metrics] | None = None
    for game, samples, weights in zip(games, minibatch, _weights(algorithm, minibatch), strict=True):

        def loss(params: Params, samples: Samples, game: Game[Any] = game) -> tuple[Array, Metrics]:
            score = policy.score(full_params(params), game, samples.frames, samples.tokens, samples.batch.response_mask)
            return policy_loss(
                algorithm, score.logprobs, score.entropy, samples.batch, samples.advantages, samples.weights
            )

        def add(
            carry: tuple[Params, Metrics] | None, samples: Samples, loss: Any = loss
        ) -> tuple[tuple[Params, Metrics], None]:
            grads, metrics = jax.grad(loss, has_aux=True)(params, samples)
            return add_to(carry, (grads, metrics)), None

        samples = dataclasses.replace(samples, weights=weights)
        first = jax.tree.map(lambda leaf: leaf[0], samples)
        shapes = jax.eval_shape(lambda first=first, loss=loss: jax.grad(loss, has_aux=True)(params, first))
        total, _ = lax.scan(add, empty_sums(shapes) if total is None else total, samples)
    assert total is not None
    return total


def _weights(algorithm: Algorithm, minibatch: list[Samples]) -> list[TokenWeights]:
    """Each game's part, [micro, R, N], of the token weights of the whole minibatch."""
    masks = [own.batch.response_mask for own in minibatch]
    longest = max(mask.shape[-1] for mask in masks)
    flat = [jnp.pad(m.reshape(-1, m.shape[-1]), ((0, 0), (0, longest - m.shape[-1]))) for m in masks]
    weights = token_weights(algorithm, jnp.concatenate(flat))
    out, start = [], 0
    for mask, rows in zip(masks, flat, strict=True):
        part = slice(start, start + rows.shape[0])
        out.append(jax.tree.map(lambda w, m=mask, p=part: w[p, : m.shape[-1]].reshape(m.shape), weights))
        start += rows.shape[0]
    return out
