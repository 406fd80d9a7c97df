"""Array aliases and the dimension table: the letters used in shapes throughout g1jax.

Shapes are written as `dtype[dims]`, after a field or in a docstring: `uint8[B, H, W, 3]`.

| letter | meaning                                                       |
|--------|---------------------------------------------------------------|
| `A`    | bytes of a written action                                     |
| `B`    | environments in a batch                                       |
| `C`    | columns of a board, in cells                                  |
| `D`    | width of the policy's residual stream                         |
| `E`    | episodes of an evaluation                                     |
| `H`    | height of a frame, in pixels                                  |
| `K`    | kinds of cell contents (index 0 is the empty cell or tile)    |
| `L`    | bytes of a board text, zero-padded to the game's longest text |
| `M`    | bytes of the longest name in a name table                     |
| `N`    | bytes of a response, zero-padded                              |
| `R`    | rows of a board, in cells                                     |
| `S`    | tokens of a sequence                                          |
| `T`    | steps of an episode; in `envs.text`, pieces of text to join   |
| `V`    | vocabulary size, in tokens                                    |
| `W`    | width of a frame, in pixels                                   |
| `Z`    | side of a square cell, in pixels                              |

A function written for one environment takes and returns arrays without `B`; `jax.vmap` adds it.
"""

from typing import Any

import jax
import numpy as np

Array = jax.Array
"""An array on a device, or a tracer of one."""

ArrayLike = jax.Array | np.ndarray
"""An array on a device or on the host."""

Key = jax.Array
"""A typed random key, `jax.random.key(seed)`; `key<fry>[]` in shapes."""

Pytree = Any
"""A nested structure of arrays."""

HostImages = np.ndarray
"""Images on the host, `uint8[..., h, w, 3]`."""
