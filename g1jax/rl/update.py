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

from g1jax import vlm
from g1jax.envs.core import Game
from g1jax.errors import AlgorithmError
from g1jax.rl.advantages import prepare
from g1jax.rl.algorithm import Algorithm, Batch
from g1jax.rl.lengths import at_length, group_lengths, groups_by_length, rows_by_length
from g1jax.rl.losses import Metrics, TokenWeights, policy_loss, token_weights
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.policy import Policy
from g1jax.rl.rollout import Rollout
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params
from g1jax.vlm.accumulation import add_to, empty_sums, join_rows, split_rows
from g1jax.vlm.master_weights import apply_updates
from g1jax.vlm.row_selection import put_rows, take_rows


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
    for game, rollout in zip(games, rollouts, strict=True):
        minibatching.check(rollout.responses.tokens.shape[0] // num_samples, game.id)
    samples = _make_samples(
        policy,
        algorithm,
        games,
        full_params(params),
        None if reference is None else full_params(reference),
        rollouts,
        num_samples,
        minibatching,
    )

    def epoch(carry: tuple[Params, Pytree], key: Key) -> tuple[tuple[Params, Pytree], Pytree]:
        keys = jax.random.split(key, len(samples))
        minibatches = [_shuffle(rows, minibatching, num_samples, key) for rows, key in zip(samples, keys, strict=True)]
        return lax.scan(step, carry, minibatches)

    def step(carry: tuple[Params, Pytree], minibatch: list[Samples]) -> tuple[tuple[Params, Pytree], Metrics]:
        params, opt_state = carry
        grads, metrics = _gradient(
            policy, algorithm, games, full_params, params, minibatch, minibatching.length_buckets
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return (apply_updates(params, updates, opt_state), opt_state), metrics

    (params, opt_state), metrics = lax.scan(epoch, (params, opt_state), jax.random.split(key, minibatching.epochs))
    return params, opt_state, jax.tree.map(jnp.mean, metrics)


def _make_samples(
    policy: Policy,
    algorithm: Algorithm,
    games: Sequence[Game[Any]],
    params: Params,
    reference: Params | None,
    rollouts: Sequence[Rollout],
    num_samples: int,
    minibatching: Minibatching,
) -> list[Samples]:
    """Each game's rows with their advantages, which are computed in one padded batch over all games."""
    samples, importance = [], []
    for i, (game, rollout) in enumerate(zip(games, rollouts, strict=True)):
        mask = rollout.responses.mask & rollout.is_running[:, None]
        scored = (rollout.frames, rollout.boards, rollout.responses.tokens, mask)
        old, logprobs, weights = rollout.responses.logprobs, None, jnp.ones(mask.shape, jnp.float32)
        if algorithm.old_logprobs == "recomputed":
            old = _logprobs_of(policy, params, game, scored, num_samples, minibatching)
            log_ratio = jnp.where(mask, old - rollout.responses.logprobs, 0.0)
            weights = jnp.exp(jnp.minimum(log_ratio, math.log(algorithm.importance_cap)))
        importance.append(weights)
        if algorithm.needs_reference:
            if reference is None:
                raise AlgorithmError(f"{algorithm.name} needs a reference policy for its KL")
            logprobs = _logprobs_of(policy, reference, game, scored, num_samples, minibatching)
        game_id = jnp.full(mask.shape[0], i, jnp.int32)
        batch = Batch(mask, old, logprobs, rollout.returns, game_id)
        zeros = jnp.zeros(mask.shape, jnp.float32)
        frames = rollout.frames if policy.observation.picture else None
        samples.append(Samples(frames, rollout.responses.tokens, batch, zeros, None, rollout.boards))
    batch, advantages = prepare(
        algorithm, _concatenate([rows.batch for rows in samples]), num_samples=num_samples, num_games=len(games)
    )
    out, start = [], 0
    for rows, weights in zip(samples, importance, strict=True):
        count, length = rows.tokens.shape
        part = slice(start, start + count)
        masked = dataclasses.replace(rows.batch, response_mask=batch.response_mask[part, :length])
        # The surrogate is linear in the advantage, as the weights are not negative.
        out.append(dataclasses.replace(rows, batch=masked, advantages=advantages[part, :length] * weights))
        start += count
    return out


def _logprobs_of(
    policy: Policy,
    params: Params,
    game: Game[Any],
    rows: tuple[Array, Array | None, Array, Array],
    num_samples: int,
    minibatching: Minibatching,
) -> Float32[Array, "B N"]:
    """The log-probabilities of responses (frames, boards, tokens, masks) with these params, a microbatch at a time."""
    num_rows, length = rows[2].shape
    num_parts, num_groups = minibatching.minibatches * minibatching.microbatches, num_rows // num_samples

    def score(part: tuple[Array, Array | None, Array, Array]) -> Array:
        frames, boards, tokens, mask = part
        if minibatching.length_buckets == 1:
            return policy.score(params, game, frames, tokens, mask, boards=boards).logprobs
        return _logprobs_by_length(policy, params, game, part, minibatching.length_buckets)

    if num_parts == 1:
        return score(rows)
    order = split_rows(jnp.arange(num_groups, dtype=jnp.int32), num_parts)
    if minibatching.length_buckets > 1:
        order = groups_by_length(order[None], group_lengths(rows[3], num_samples))[0]
    order = join_rows(order)
    groups = jax.tree.map(lambda leaf: leaf.reshape(num_groups, -1, *leaf.shape[1:])[order], rows)
    parts = jax.tree.map(lambda leaf: join_inner(split_rows(leaf, num_parts)), groups)
    logprobs = join_rows(lax.map(score, parts).reshape(num_parts, -1, num_samples, length))
    return logprobs[jnp.argsort(order)].reshape(num_rows, length)


def _logprobs_by_length(
    policy: Policy,
    params: Params,
    game: Game[Any],
    rows: tuple[Array, Array | None, Array, Array],
    num_buckets: int,
) -> Float32[Array, "B N"]:
    """The log-probabilities of a microbatch, responses of similar lengths at a time."""
    frames, boards, tokens, mask = rows
    prompts = policy.prefill(params, game, frames, boards)
    parts, longest = rows_by_length(mask, len(prompts.mask)), mask.shape[1]

    def score(index: Array) -> Array:
        given = prompts.of_rows(index // (len(tokens) // len(prompts.mask)))
        part = take_rows(tokens, index), take_rows(mask, index)

        def at(length: int) -> Array:
            cut = (x[:, :length] for x in part)
            return jnp.pad(policy.score_responses(params, given, *cut).logprobs, ((0, 0), (0, longest - length)))

        return at_length(at, part[1], num_buckets)

    scored = lax.map(score, parts).reshape(*parts.shape, longest)  # [parts, shards, b, N]
    order, scored = parts.transpose(1, 0, 2), scored.transpose(1, 0, 2, 3)
    empty = jnp.zeros(tokens.shape, jnp.float32)
    return put_rows(empty, order.reshape(len(order), -1), scored.reshape(-1, longest))


def join_inner(parts: Array) -> Array:
    """[parts, groups, rows, …] -> [parts, groups · rows, …]."""
    return parts.reshape(parts.shape[0], -1, *parts.shape[3:])


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
    num_groups = num_rows // num_samples
    order = jax.random.permutation(key, num_groups) if minibatching.minibatches > 1 else None
    if minibatching.length_buckets > 1:
        order = jnp.arange(num_groups, dtype=jnp.int32) if order is None else order
        divided = split_rows(order, math.prod(parts)).reshape(*parts, -1)
        divided = groups_by_length(divided, group_lengths(samples.batch.response_mask, num_samples))
        order = join_rows(divided.reshape(math.prod(parts), -1))

    def split(leaf: Array) -> Array:
        # Frames and boards have one row per response or per group; both divide into groups.
        groups = leaf.reshape(num_groups, -1, *leaf.shape[1:])
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
    num_buckets: int,
) -> tuple[Params, Metrics]:
    """The gradient and metrics of a minibatch, leaves [m, R, …], summed in float32 over games and microbatches."""
    total: tuple[Params, Metrics] | None = None
    for game, samples, weights in zip(games, minibatch, _token_weights(algorithm, minibatch), strict=True):
        objective = _Objective(policy, algorithm, game, full_params)

        def add(sums: Any, samples: Samples, objective: _Objective = objective) -> tuple[Any, None]:
            if num_buckets > 1:
                return objective.add_by_length(sums, params, samples, num_buckets), None
            return add_to(sums, objective.gradient(params, samples)), None

        samples = dataclasses.replace(samples, weights=weights)
        first = jax.tree.map(lambda leaf: leaf[0], samples)
        shapes = jax.eval_shape(objective.gradient, params, first)
        total, _ = lax.scan(add, empty_sums(shapes) if total is None else total, samples)
    assert total is not None
    return total


@dataclass(frozen=True)
class _Objective:
    """The loss of a microbatch of one game, as sums over tokens, and its gradient."""

    policy: Policy
    algorithm: Algorithm
    game: Game[Any]
    full_params: Callable[[Params], Params]

    def gradient(self, params: Params, samples: Samples) -> tuple[Params, Metrics]:
        """The gradient and metrics, all rows at full length."""

        def loss(params: Params) -> tuple[Array, Metrics]:
            tokens, mask = samples.tokens, samples.batch.response_mask
            score = self.policy.score(
                self.full_params(params), self.game, samples.frames, tokens, mask, boards=samples.boards
            )
            return self._loss(score, samples)

        return jax.grad(loss, has_aux=True)(params)

    def add_by_length(
        self, sums: tuple[Params, Metrics], params: Params, samples: Samples, num_buckets: int
    ) -> tuple[Params, Metrics]:
        """Adds the gradient and metrics to the sums, responses of similar lengths at a time.

        The chain rule by hand: the prompts are computed once; each part of the responses adds to the gradients of the
        params and of the prompts' keys, values and hidden states, which then go back through the prompts. So besides
        those of the prompts only one part's activations are held. A gradient through `lax.switch` would hold residuals
        for every length.
        """

        def prefill(params: Params) -> tuple[tuple[Any, Array], vlm.Prefilled]:
            prompts = self.policy.prefill(self.full_params(params), self.game, samples.frames, samples.boards)
            return (prompts.cache, prompts.hidden), prompts

        values, back, prompts = jax.vjp(prefill, params, has_aux=True)
        rows = dataclasses.replace(samples, frames=None, boards=None)
        num_samples = len(samples.tokens) // len(prompts.mask)

        def gradient(index: Array) -> tuple[tuple[Params, Any], Metrics]:
            part = jax.tree.map(lambda x: take_rows(x, index), rows)

            def at(length: int) -> tuple[tuple[Params, Any], Metrics]:
                cut = _cut(part, length)

                def loss(params: Params, values: tuple[Any, Array]) -> tuple[Array, Metrics]:
                    of_all = dataclasses.replace(prompts, cache=values[0], hidden=values[1])
                    inputs = of_all.of_rows(index // num_samples), cut.tokens, cut.batch.response_mask
                    return self._loss(self.policy.score_responses(self.full_params(params), *inputs), cut)

                return jax.grad(loss, (0, 1), has_aux=True)(params, values)

            return at_length(at, part.batch.response_mask, num_buckets)

        parts = rows_by_length(samples.batch.response_mask, len(prompts.mask))
        start = (sums[0], empty_sums(values)), sums[1]
        ((grads, of_values), metrics), _ = lax.scan(lambda sums, i: (add_to(sums, gradient(i)), None), start, parts)
        (of_prompts,) = back(jax.tree.map(lambda x, value: x.astype(value.dtype), of_values, values))
        return add_to(grads, of_prompts), metrics

    def _loss(self, score: vlm.Score, samples: Samples) -> tuple[Array, Metrics]:
        batch, advantages, weights = samples.batch, samples.advantages, samples.weights
        return policy_loss(self.algorithm, score.logprobs, score.entropy, batch, advantages, weights)


def _cut(samples: Samples, length: int) -> Samples:
    """The first tokens of each row."""

    def first(leaf: Array) -> Array:
        return leaf if leaf.ndim == 1 else leaf[:, :length]

    cut = {name: getattr(samples, name) for name in ("tokens", "batch", "advantages", "weights")}
    return dataclasses.replace(samples, **jax.tree.map(first, cut))


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
