"""From rewards to the advantage of each token: shaping, comparison with the group, normalization."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int32

from g1jax.rl.algorithm import Algorithm, Batch
from g1jax.rl.losses import estimate_kl
from g1jax.typing import Array

STD_EPSILON = 1e-6
"""Added to a standard deviation before dividing by it, as in the release."""


def prepare(
    algorithm: Algorithm, batch: Batch, *, num_samples: int, num_games: int = 1
) -> tuple[Batch, Float32[Array, "B N"]]:
    """The batch to learn from and the advantages of its tokens: once per rollout, before minibatching.

    With dynamic sampling, the groups whose rewards (before any shaping by length or KL) are all the same are masked in
    the returned batch. If no group is left, the batch is empty and its loss is 0.

    Raises:
        AlgorithmError: the algorithm cannot learn from this batch: rows do not divide into groups of `num_samples`, one
            response per state where responses are compared, or no reference where there is a KL.
    """
    algorithm.check_batch(batch, num_samples)
    if algorithm.dynamic_sampling:
        is_kept = has_spread(batch, num_samples)
        batch = dataclasses.replace(batch, response_mask=batch.response_mask & is_kept[:, None])
    return batch, _token_advantages(algorithm, batch, num_samples=num_samples, num_games=num_games)


def has_spread(batch: Batch, num_samples: int) -> Bool[Array, "B"]:
    """Which rows belong to a group whose rewards differ, so that there is something to learn."""
    is_row = jnp.any(batch.response_mask, axis=1).reshape(-1, num_samples)
    rewards = batch.rewards.reshape(-1, num_samples)
    highest = jnp.max(jnp.where(is_row, rewards, -jnp.inf), axis=1)
    lowest = jnp.min(jnp.where(is_row, rewards, jnp.inf), axis=1)
    return jnp.repeat(highest > lowest, num_samples)


def _token_advantages(algorithm: Algorithm, batch: Batch, *, num_samples: int, num_games: int) -> Array:
    """The advantage of each token, float32[B, N], 0 outside the mask. It is the same for all tokens of a response,
    unless the KL is subtracted from each token's return.
    """
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
        values = groups.normalize(values, is_row, ddof=1)
    values = jnp.broadcast_to(values, mask.shape)
    if algorithm.kl == "token_reward":
        values = values - penalty
    if algorithm.normalize in ("game", "batch"):
        segments = _Segments(algorithm.normalize, num_samples, num_games, batch.game_id)
        values = segments.normalize(values, mask, ddof=0)
    return jnp.where(mask, values, 0.0)


def overlong_punishment(lengths: Int32[Array, "B"], max_length: int, buffer: float) -> Float32[Array, "B"]:
    """DAPO's soft overlong punishment, equation 13, by length in tokens: from 0 to −1.

    With a buffer of 0.2 of 100 tokens: 0 up to length 80, −0.5 at 90, −1 from 100 on, linear in between.
    """
    size = buffer * max_length
    return jnp.clip((max_length - size - lengths.astype(jnp.float32)) / size, -1.0, 0.0)


def _kl_penalty(algorithm: Algorithm, batch: Batch) -> Array:
    """The KL of each token and all later ones times the coefficient: float32[B, N]; 0 if the reward has no KL."""
    if algorithm.kl not in ("reward", "token_reward") or batch.reference_logprobs is None:
        return jnp.zeros(batch.logprobs.shape, jnp.float32)
    kl = estimate_kl(algorithm.kl_estimator, batch.logprobs, batch.reference_logprobs)
    kl = jnp.where(batch.response_mask, kl, 0.0)
    return algorithm.kl_coefficient * jnp.cumsum(kl[:, ::-1], axis=1)[:, ::-1]


@dataclass(frozen=True)
class _Segments:
    """Segments of rows over which statistics are taken: each group, each game, or the whole batch."""

    level: str
    num_samples: int
    num_games: int
    game_id: Int32[Array, "B"]

    def compare(self, values: Array, mask: Array, ddof: int) -> tuple[Array, Array, Array]:
        """Values minus the mean of the masked values in their row's segment, float32[B, T] with bool[B, T]; and the
        standard deviation and number of the masked values, float32[B].

        The largest value is subtracted first: equal values then differ by exactly 0, and large rewards lose no
        precision.
        """
        origin = self._reduce(jnp.max, jnp.max(jnp.where(mask, values, -jnp.inf), axis=1), -jnp.inf)
        values = values - jnp.where(jnp.isfinite(origin), origin, 0.0)[:, None]
        count = self._total(mask.astype(jnp.float32))
        mean = self._total(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1.0)
        centered = values - mean[:, None]
        square = self._total(jnp.where(mask, centered**2, 0.0))
        return centered, jnp.sqrt(square / jnp.maximum(count - ddof, 1.0)), count

    def normalize(self, values: Array, mask: Array, ddof: int) -> Array:
        """Values brought to mean 0 and standard deviation 1 in their row's segment: float32[B, T]."""
        centered, std, _ = self.compare(values, mask, ddof)
        return centered / (std + STD_EPSILON)[:, None]

    def _total(self, x: Array) -> Array:
        """The sum over each row's segment: float32[B, T] -> float32[B]."""
        return self._reduce(jnp.sum, jnp.sum(x, axis=1), 0.0)

    def _reduce(self, reduce: Callable[..., Array], x: Array, identity: float) -> Array:
        """A reduction over segments, broadcast back to their rows: float32[B] -> float32[B].

        It uses no scatter, whose order of addition is not deterministic on a GPU.
        """
        if self.level == "batch":
            return jnp.broadcast_to(reduce(x), x.shape)
        if self.level == "group":
            return jnp.repeat(reduce(x.reshape(-1, self.num_samples), axis=1), self.num_samples)
        is_of_game = jnp.arange(self.num_games, dtype=jnp.int32)[:, None] == self.game_id[None]
        return reduce(jnp.where(is_of_game, x[None], identity), axis=1)[self.game_id]
