"""Array aliases and the dimension table: the letters used in shapes throughout g1jax.

An annotation gives an array's dtype and shape, as in jaxtyping: `UInt8[Array, "B H W 3"]`, or `Int32[Array, ""]` for a
scalar. Within a signature or a dataclass a name has one size. `*B` is any number of axes, and `...` any others; `_` is
an axis of any size, `#B` one of size B or 1, and `{config.patch_dim}` is computed from an argument. Docstrings and
comments write `uint8[B, H, W, 3]`. Tests check every call (`tests/shape_checks.py`); elsewhere nothing is checked.

| letter | meaning                                                       |
|--------|---------------------------------------------------------------|
| `A`    | bytes of a written action                                     |
| `B`    | environments in a batch                                       |
| `C`    | columns of a board, in cells                                  |
| `D`    | width of the policy's residual stream                         |
| `E`    | episodes of an evaluation                                     |
| `F`    | facts of a cell, `Game.fact_names`                            |
| `H`    | height of a frame, in pixels                                  |
| `K`    | kinds of cell contents (index 0 is the empty cell or tile)    |
| `L`    | bytes of a board text, zero-padded to the game's longest text |
| `M`    | bytes of the longest name in a name table                     |
| `N`    | tokens of a response; in `envs`, its bytes, zero-padded       |
| `P`    | tokens of a prompt                                            |
| `R`    | rows of a board, in cells                                     |
| `S`    | tokens of a sequence                                          |
| `T`    | steps of an episode; tokens attended to; pieces to join       |
| `V`    | vocabulary size, in tokens                                    |
| `W`    | width of a frame, in pixels                                   |
| `Z`    | side of a square cell, in pixels                              |

Lowercase names are local to a module: `d` the width of a head, `n` images, `p` their patches, `t` their visual tokens.
A function written for one environment takes and returns arrays without `B`; `jax.vmap` adds it.
"""

from typing import Any

import jax
import jaxtyping
import numpy as np

Array = jax.Array
"""An array on a device, or a tracer of one."""

ArrayLike = jax.Array | np.ndarray
"""An array on a device or on the host."""

Key = jaxtyping.Key[jax.Array, ""]
"""A typed random key, `jax.random.key(seed)`."""

Keys = jaxtyping.Key[jax.Array, "..."] | jaxtyping.UInt32[jax.Array, "... 2"]
"""One random key, or one per row; raw `jax.random.PRNGKey` ones are accepted."""

Pytree = Any
"""A nested structure of arrays."""

HostImages = jaxtyping.UInt8[np.ndarray, "... _ _ 3"]
"""Images on the host."""
