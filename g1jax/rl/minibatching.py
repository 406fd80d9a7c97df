"""How a rollout is divided: epochs of minibatches, each an optimizer step, of microbatches, whose gradients add up."""

from dataclasses import dataclass

from g1jax.errors import AlgorithmError
from g1jax.settings import Size
from g1jax.settings import check as check_settings


@dataclass(frozen=True, kw_only=True)
class Minibatching:
    """How often and in which portions a rollout is learned from.

    Raises:
        AlgorithmError: a value that the key cannot have.
    """

    epochs: Size = 1
    minibatches: Size = 1
    """Optimizer steps an epoch; the groups are shuffled for each epoch."""
    microbatches: Size = 1
    """Parts whose gradients add up to a minibatch's: less memory, and on CPU less time."""

    def __post_init__(self) -> None:
        check_settings(self, AlgorithmError)

    def check(self, num_groups: int, game: str) -> None:
        """Refuses a number of groups that does not divide.

        Raises:
            AlgorithmError: it does not.
        """
        parts = self.minibatches * self.microbatches
        if num_groups % parts:
            raise AlgorithmError(
                f"{game}: {num_groups} groups do not divide into {self.minibatches} minibatches of {self.microbatches} "
                f"micro-batches: make the states a multiple of {parts}, or take fewer"
            )
