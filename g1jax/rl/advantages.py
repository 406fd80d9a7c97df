"""From rewards to the advantage of each token: shaping, comparison with the group, normalisation."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from g1jax.rl.algorithm import Algorithm, Batch
from g1jax.rl.losses import estimate_kl
from g1jax.typing import Array

STD_EPSILON = 1e-6
"""Added to a deviation before it divides, as the release does."""


def prepare(algorithm: Algorithm, batch: Batch, *, num_samples: int, num_games: int = 1) -> tuple[Batch, Array]:
    """The batch to learn from and the advantages of its tokens, float32[B, N]: once a rollout, before any minibatch.

    The batch is the one given, but that dynamic sampling has masked the groups it leaves out.

    Raises:
        AlgorithmError: the algorithm cannot learn from such a batch: rows that are no groups of `num_samples`, one
            response a state where responses are compared, no reference where there is a KL.
    """
    algorithm.check_batch(batch, num_samples)
    batch = select_groups(algorithm, batch, num_samples)
    return batch, token_advantages(algorithm, batch, num_samples=num_samples, num_games=num_games)


def select_groups(algorithm: Algorithm, batch: Batch, num_samples: int) -> Batch:
    """The batch with the groups masked that dynamic sampling leaves out: those whose rewards, before any shaping by
    length or KL, are all the same. If there are no others, the batch is empty and its loss is 0.
    """
    if not algorithm.dynamic_sampling:
        return batch
    is_kept = has_spread(batch, num_samples)
    return dataclasses.replace(batch, response_mask=batch.response_mask & is_kept[:, None])


def has_spread(batch: Batch, num_samples: int) -> Array:
    """Which rows are of a group whose rewards differ, so that there is something to learn: bool[B]."""
    is_row = jnp.any(batch.response_mask, axis=1).reshape(-1, num_samples)
    rewards = batch.rewards.reshape(-1, num_samples)
    highest = jnp.max(jnp.where(is_row, rewards, -jnp.inf), axis=1)
    lowest = jnp.min(jnp.where(is_row, rewards, jnp.inf), axis=1)
    return jnp.repeat(highest > lowest, num_samples)


def token_advantages(algorithm: Algorithm, batch: Batch, *, num_samples: int, num_games: int = 1) -> Array:
    """The advantage of each token, float32[B, N], 0 outside of the mask. All tokens of a response have the same one,
    unless the KL is taken off each token's return.
    """
    algorithm.check_batch(batch, num_samples)
    mask = batch.response_mask
    groups = _Segments("group", num_samples, num_games, batch.game_id)
    is_row = jnp.any(mask, axis=1, keepdims=True)
    rewards = batch.rewards + algorithm.overlong_weight * overlong_punishment(
        jnp.sum(mask.astype(jnp.int32), axis=1), algorithm.max_length or mask.shape[1], algorithm.overlong_buffer
    )
    penalty = _kl_penalty(algorithm, batch)
    values = rewards[:, None] - penalty[:, :1] if algorithm.kl == "reward" else rewards[:, None]  # [B, 1]
    if algorithm.baseline != "none":
        values, _, count = groups.compare(values, is_row, ddof=0)
        if algorithm.baseline == "leave_one_out":  # R − mean of the others = (R − mean of all) · n / (n − 1)
            values = values * (count / jnp.maximum(count - 1, 1.0))[:, None]
    if algorithm.normalize == "group":
        values = _normalized(*groups.compare(values, is_row, ddof=1))
    values = jnp.broadcast_to(values, mask.shape)
    if algorithm.kl == "token_reward":
        values = values - penalty
    if algorithm.normalize in ("game", "batch"):
        segments = _Segments(algorithm.normalize, num_samples, num_games, batch.game_id)
        values = _normalized(*segments.compare(values, mask, ddof=0))
    return jnp.where(mask, values, 0.0)


def overlong_punishment(lengths: Array, max_length: int, buffer: float) -> Array:
    """DAPO's soft punishment, equation 13, of lengths in tokens: int32[B] -> float32[B], from 0 to −1.

    With a buffer of 0.2 of 100 tokens: 0 up to length 80, then falling to −0.5 at 90 and to −1 at 100 and beyond.
    """
    size = buffer * max_length
    return jnp.clip((max_length - size - lengths.astype(jnp.float32)) / size, -1.0, 0.0)


def _kl_penalty(algorithm: Algorithm, batch: Batch) -> Array:
    """What the KL of each token and of those after it takes off a reward: float32[B, N]; 0 if it does not."""
    if algorithm.kl not in ("reward", "token_reward") or batch.reference_logprobs is None:
        return jnp.zeros(batch.logprobs.shape, jnp.float32)
    kl = estimate_kl(algorithm.kl_estimator, batch.logprobs, batch.reference_logprobs)
    kl = jnp.where(batch.response_mask, kl, 0.0)
    return algorithm.kl_coefficient * jnp.cumsum(kl[:, ::-1], axis=1)[:, ::-1]


def _normalized(centred: Array, std: Array, count: Array) -> Array:
    del count
    return centred / (std + STD_EPSILON)[:, None]


@dataclass(frozen=True)
class _Segments:
    """The rows among which statistics are taken: those of each group, of each game, or all."""

    level: str
    num_samples: int
    num_games: int
    game_id: Array  # int32[B]

    def compare(self, values: Array, mask: Array, ddof: int) -> tuple[Array, Array, Array]:
        """Values less the mean of the masked values in their row's segment, float32[B, T] with bool[B, T]; and the
        deviation and the number of these, float32[B].

        Values are measured from the largest one: equal values then differ by 0, not by a rounding error, and large
        rewards do not cost precision.
        """
        origin = self._reduce(jnp.max, jnp.max(jnp.where(mask, values, -jnp.inf), axis=1), -jnp.inf)
        values = values - jnp.where(jnp.isfinite(origin), origin, 0.0)[:, None]
        count = self._total(mask.astype(jnp.float32))
        mean = self._total(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1.0)
        centred = values - mean[:, None]
        square = self._total(jnp.where(mask, centred**2, 0.0))
        return centred, jnp.sqrt(square / jnp.maximum(count - ddof, 1.0)), count

    def _total(self, x: Array) -> Array:
        """The sum over each row's segment: float32[B, T] -> float32[B]."""
        return self._reduce(jnp.sum, jnp.sum(x, axis=1), 0.0)

    def _reduce(self, reduce: Callable[..., Array], x: Array, nothing: float) -> Array:
        """A reduction over each row's segment, as each row sees it: float32[B] -> float32[B].

        Without scatters, whose order of addition a GPU does not promise.
        """
        if self.level == "batch":
            return jnp.broadcast_to(reduce(x), x.shape)
        if self.level == "group":
            return jnp.repeat(reduce(x.reshape(-1, self.num_samples), axis=1), self.num_samples)
        is_of_game = jnp.arange(self.num_games, dtype=jnp.int32)[:, None] == self.game_id[None]
        return reduce(jnp.where(is_of_game, x[None], nothing), axis=1)[self.game_id]
