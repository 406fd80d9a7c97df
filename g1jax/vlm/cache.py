"""The keys and values of earlier tokens, and one layer's part of them."""

from dataclasses import dataclass, replace

import jax
from jax import lax
from jaxtyping import Float, Int32

from g1jax.typing import Array

KeyValue = tuple[Float[Array, "*layers B g T d"], Float[Array, "*layers B g T d"]]
"""The keys and values of one layer, or stacked ones of all layers: T tokens, g heads."""
Cache = tuple[KeyValue, ...]
"""The keys and values of each layer; of a scanned decoder, a single stacked pair."""
PrefixKeyValue = tuple[Float[Array, "*layers n g P d"], Float[Array, "*layers n g P d"]]
"""The same of the P tokens of n prompts, each for B / n adjacent rows."""
Prefix = tuple[PrefixKeyValue, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CachedLayer:
    """The cache of one layer, alone or in the stack of all layers.

    A stack is written and read in place: taking a layer out and putting it back would copy all of its positions for
    every token.
    """

    key_value: KeyValue
    index: Int32[Array, ""] | None = None
    """The layer in the stack; None: the arrays are the layer's own."""

    @property
    def length(self) -> int:
        """The number of positions, T."""
        return self.key_value[0].shape[-2]

    def write(
        self, key: Float[Array, "B g S d"], value: Float[Array, "B g S d"], slot: Int32[Array, ""] | int
    ) -> "CachedLayer":
        """The cache with new keys and values from position `slot` on."""

        def put(part: Array, new: Array) -> Array:
            if self.index is None:
                return lax.dynamic_update_slice_in_dim(part, new, slot, axis=2)
            return lax.dynamic_update_slice(part, new[None], (self.index, 0, 0, slot, 0))

        held_key, held_value = self.key_value
        return replace(self, key_value=(put(held_key, key), put(held_value, value)))

    def read(self, start: Int32[Array, ""] | int = 0, size: int | None = None) -> KeyValue:
        """[B, g, size, d] from position `start` on; without a size, all positions."""
        size = self.length if size is None else size

        def take(part: Array) -> Array:
            if self.index is None:
                return part if size == self.length else lax.dynamic_slice_in_dim(part, start, size, axis=2)
            _, rows, groups, _, width = part.shape
            return lax.dynamic_slice(part, (self.index, 0, 0, start, 0), (1, rows, groups, size, width))[0]

        key, value = self.key_value
        return take(key), take(value)
