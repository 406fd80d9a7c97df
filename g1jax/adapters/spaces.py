"""The two spaces that `adapters.gymnax` needs where gymnax is not installed, with gymnax's names and attributes."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int32, Shaped

from g1jax.typing import Array, Key


@dataclass(frozen=True)
class Discrete:
    """The integers 0 to n - 1."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = jnp.int32

    def sample(self, key: Key) -> Int32[Array, ""]:
        """A uniformly random element."""
        return jax.random.randint(key, self.shape, 0, self.n, self.dtype)

    def contains(self, x: Array) -> Bool[Array, ""]:
        """Whether a number is in the space."""
        return jnp.logical_and(x >= 0, x < self.n)


@dataclass(frozen=True)
class Box:
    """Arrays of a shape with entries from `low` to `high`."""

    low: float
    high: float
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: Key) -> Shaped[Array, "..."]:
        """A uniformly random element."""
        return jax.random.uniform(key, self.shape, minval=self.low, maxval=self.high).astype(self.dtype)

    def contains(self, x: Array) -> Bool[Array, ""]:
        """Whether all entries of an array are within the bounds."""
        return jnp.all((x >= self.low) & (x <= self.high))
