"""From rollouts of several games to new params: advantages once, then epochs of minibatches of microbatches.

A minibatch has an equal share of every game's groups, a microbatch of its minibatch's. Each game keeps its own shapes;
only masks and per-token scalars are padded to a common length, for statistics over all games.
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
from jaxtyping import Float32, Int32, UInt8

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
    """Rows of one game with everything that a gradient needs; frames and boards as in a rollout."""

    frames: UInt8[Array, "... H W 3"] | None  # None for a policy without pictures
    tokens: Int32[Array, "*B N"]
    batch: Batch
    advantages: Float32[Array, "*B N"]
    weights: TokenWeights | None  # set in a minibatch
    boards: UInt8[Array, "... L"] | None = None


def update(
    policy: Policy,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    games: Sequence[Game[Any]],
    params: Params,
    opt_state: Pytree,
    rollouts: Sequence[Rollout],
    key: Key,
    *,
    num_samples: int,
    minibatching: Minibatching,
    reference: Params | None,
    full_params: Callable[[Params], Params] = lambda params: params,
) -> tuple[Params, Pytree, Metrics]:
    """New params and optimizer state, and the metrics, averaged over optimizer steps.

    `full_params` maps trained params, also the reference's, to the model's: for LoRA.

    Raises:
        AlgorithmError: groups do not divide into microbatches, or the algorithm cannot learn from the rollouts.
    """
    samples = _make_samples(
        policy, algorithm, games, None if reference is None else full_params(reference), rollouts, num_samples
    )
    for game, rows in zip(games, samples, strict=True):
        minibatching.check(rows.tokens.shape[0] // num_samples, game.id)

    def epoch(carry: tuple[Params, Pytree], key: Key) -> tuple[tuple[Params, Pytree], Pytree]:
        keys = jax.random.split(key, len(samples))
        minibatches = [_shuffle(rows, minibatching, num_samples, key) for rows, key in zip(samples, keys, strict=True)]
        return lax.scan(step, carry, minibatches)

    def step(carry: tuple[Params, Pytree], minibatch: list[Samples]) -> tuple[tuple[Params, Pytree], Metrics]:
        params, opt_state = carry
        grads, metrics = _gradient(policy, algorithm, games, full_params, params, minibatch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return (apply_updates(params, updates, opt_state), opt_state), metrics

    (params, opt_state), metrics = lax.scan(epoch, (params, opt_state), jax.random.split(key, minibatching.epochs))
    return params, opt_state, jax.tree.map(jnp.mean, metrics)


def _make_samples(
    policy: Policy,
    algorithm: Algorithm,
    games: Sequence[Game[Any]],
    reference: Params | None,
    rollouts: Sequence[Rollout],
    num_samples: int,
) -> list[Samples]:
    """Each game's rows with their advantages, which are computed in one padded batch over all games."""
    samples = []
    for i, (game, rollout) in enumerate(zip(games, rollouts, strict=True)):
        mask = rollout.responses.mask & rollout.is_running[:, None]
        logprobs = None
        if algorithm.needs_reference:
            if reference is None:
                raise AlgorithmError(f"{algorithm.name} needs a reference policy for its KL")
            tokens, boards = rollout.responses.tokens, rollout.boards
            logprobs = policy.score(reference, game, rollout.frames, tokens, mask, boards=boards).logprobs
        game_id = jnp.full(mask.shape[0], i, jnp.int32)
        batch = Batch(mask, rollout.responses.logprobs, logprobs, rollout.returns, game_id)
        zeros = jnp.zeros(mask.shape, jnp.float32)
        frames = rollout.frames if policy.observation.picture else None
        samples.append(Samples(frames, rollout.responses.tokens, batch, zeros, None, rollout.boards))
    batch, advantages = prepare(
        algorithm, _concatenate([rows.batch for rows in samples]), num_samples=num_samples, num_games=len(games)
    )
    out, start = [], 0
    for rows in samples:
        count, length = rows.tokens.shape
        part = slice(start, start + count)
        masked = dataclasses.replace(rows.batch, response_mask=batch.response_mask[part, :length])
        out.append(dataclasses.replace(rows, batch=masked, advantages=advantages[part, :length]))
        start += count
    return out


def _concatenate(batches: Sequence[Batch]) -> Batch:
    """The rows of several games as one batch, padded to the longest response."""
    longest = max(batch.response_mask.shape[1] for batch in batches)

    def pad(leaf: Array) -> Array:
        return leaf if leaf.ndim == 1 else jnp.pad(leaf, ((0, 0), (0, longest - leaf.shape[1])))

    return jax.tree.map(lambda *leaves: jnp.concatenate([pad(leaf) for leaf in leaves]), *batches)


def _shuffle(samples: Samples, minibatching: Minibatching, num_samples: int, key: Key) -> Samples:
    """Rows as minibatches of microbatches, [M, m, R / Mm, …]; with several minibatches the groups are shuffled.

    Part i has the groups i, i + parts, …, so that sharded rows stay on their devices.
    """
    num_rows, parts = samples.tokens.shape[0], (minibatching.minibatches, minibatching.microbatches)
    order = jax.random.permutation(key, num_rows // num_samples) if minibatching.minibatches > 1 else None

    def split(leaf: Array) -> Array:
        # Frames and boards have one row per response or per group; both divide into groups.
        groups = leaf.reshape(num_rows // num_samples, -1, *leaf.shape[1:])
        shuffled = split_rows(groups if order is None else groups[order], math.prod(parts))
        return shuffled.reshape(*parts, -1, *leaf.shape[1:])

    return jax.tree.map(split, samples)


def _gradient(
    policy: Policy,
    algorithm: Algorithm,
    games: Sequence[Game[Any]],
    full_params: Callable[[Params], Params],
    params: Params,
    minibatch: list[Samples],
) -> tuple[Params, Metrics]:
    """The gradient and metrics of a minibatch, leaves [m, R, …], summed in float32 over games and microbatches."""
    total: tuple[Params, Metrics] | None = None
    for game, samples, weights in zip(games, minibatch, _token_weights(algorithm, minibatch), strict=True):

        def loss(params: Params, samples: Samples, game: Game[Any] = game) -> tuple[Array, Metrics]:
            tokens, mask = samples.tokens, samples.batch.response_mask
            score = policy.score(full_params(params), game, samples.frames, tokens, mask, boards=samples.boards)
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


def _token_weights(algorithm: Algorithm, minibatch: list[Samples]) -> list[TokenWeights]:
    """Each game's part, [m, R, N], of the token weights of the whole minibatch."""
    masks = [samples.batch.response_mask for samples in minibatch]
    longest = max(mask.shape[-1] for mask in masks)
    flat = [jnp.pad(m.reshape(-1, m.shape[-1]), ((0, 0), (0, longest - m.shape[-1]))) for m in masks]
    weights = token_weights(algorithm, jnp.concatenate(flat))
    out, start = [], 0
    for mask, rows in zip(masks, flat, strict=True):
        part = slice(start, start + rows.shape[0])
        out.append(jax.tree.map(lambda w, m=mask, p=part: w[p, : m.shape[-1]].reshape(m.shape), weights))
        start += rows.shape[0]
    return out
