"""How a rollout is divided: epochs of minibatches (optimizer steps) of microbatches (gradient accumulation)."""

from dataclasses import dataclass
from typing import Annotated

from g1jax.errors import AlgorithmError
from g1jax.settings import Range, Size
from g1jax.settings import check as check_settings


@dataclass(frozen=True, kw_only=True)
class Minibatching:
    """Epochs over a rollout, minibatches and microbatches.

    Raises:
        AlgorithmError: a key has an invalid value.
    """

    epochs: Size = 1
    """Passes over the rollouts of an iteration."""
    minibatches: Size = 1
    """Optimizer steps per epoch. The groups are shuffled in each epoch."""
    microbatches: Size = 1
    """Parts of a minibatch whose gradients are accumulated: less memory, and on a CPU less time. A run has fewer where
    its devices have too few states for them."""
    length_buckets: Annotated[int, Range(1, 8)] = 1
    """The number of lengths that responses are computed at: the maximum, 1/2, 1/4, … of it, each compiled. With
    several, a microbatch is computed in up to four parts of responses of similar lengths (as many as divide the rows
    that a device has of it): use fewer microbatches."""

    def __post_init__(self) -> None:
        check_settings(self, AlgorithmError)

    def check(self, num_groups: int, game: str) -> None:
        """Checks that a game's groups divide into microbatches.

        Raises:
            AlgorithmError: they do not.
        """
        parts = self.minibatches * self.microbatches
        if num_groups % parts:
            raise AlgorithmError(
                f"{game}: {num_groups} groups do not divide into {self.minibatches} minibatches of {self.microbatches} "
                f"microbatches: make the number of states a multiple of {parts}, or use fewer parts"
            )
