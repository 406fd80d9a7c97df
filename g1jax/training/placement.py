"""Where the arrays of a run live on its mesh."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from g1jax.typing import Array, Pytree
from g1jax.vlm import Params
from g1jax.vlm.config import Config
from g1jax.vlm.sharding import BATCH, tree_shardings


@dataclass(frozen=True)
class Placement:
    """Shardings of a model's params and of batches, without mesh axes of size 1.

    That is the form that compiled programs give their outputs; with two forms of one sharding a step would be compiled
    twice.
    """

    config: Config
    mesh: Mesh

    @property
    def num_shards(self) -> int:
        """The number of parts that a batch is divided into: of devices, or of groups of `tensor` devices."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def sharding(self, *axes: str | tuple[str, ...] | None) -> NamedSharding:
        """The sharding of an array over these mesh axes, one entry a dimension; without any, replicated."""
        split = [
            tuple(a for a in ((axis,) if isinstance(axis, str) else axis or ()) if self.mesh.shape[a] > 1)
            for axis in axes
        ]
        while split and not split[-1]:
            split.pop()
        return NamedSharding(self.mesh, PartitionSpec(*(s[0] if len(s) == 1 else s or None for s in split)))

    def row_sharding(self, leaf: Array) -> NamedSharding:
        """An array's rows over `data` and `fsdp` if they divide; else replicated."""
        return self.sharding(BATCH) if leaf.ndim and leaf.shape[0] % self.num_shards == 0 else self.sharding()

    def param_shardings(self, tree: Pytree) -> Pytree:
        """The shardings of params or an optimizer's state."""
        found = tree_shardings(self.config, self.mesh, tree)
        return jax.tree.map(lambda sharding: self.sharding(*sharding.spec), found)

    def gather_in_jit(self, params: Params) -> Params:
        """Within a jit: the params in the compute dtype, whole on each device except for what `tensor` splits.

        Generation reads all weights for every token, so they are gathered over `fsdp` once.
        """
        dtype = jnp.dtype(self.config.dtype)

        def gathered(leaf: Array, sharding: NamedSharding) -> Array:
            axes = [axis if axis == "tensor" else None for axis in sharding.spec]
            return jax.lax.with_sharding_constraint(leaf.astype(dtype), self.sharding(*axes))

        return jax.tree.map(gathered, params, tree_shardings(self.config, self.mesh, params))

    def shard_params(self, tree: Pytree) -> Pytree:
        """Shards params or an optimizer's state over the mesh."""
        return jax.device_put(tree, self.param_shardings(tree))

    def shard_rows(self, tree: Pytree) -> Pytree:
        """Shards the rows of host arrays, which are the same in every process, over `data` and `fsdp`."""
        return jax.tree.map(lambda leaf: _from_host(leaf, self.sharding(BATCH)), tree)

    def replicate(self, tree: Pytree) -> Pytree:
        """Replicates host arrays, which are the same in every process, on every device."""
        return jax.tree.map(lambda leaf: _from_host(leaf, self.sharding()), tree)

    def replicate_in_jit(self, tree: Pytree) -> Pytree:
        """Within a jit: replicates arrays on every device, so that every process can read them."""
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, self.sharding()), tree)


def _from_host(leaf: Any, sharding: NamedSharding) -> Any:
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
