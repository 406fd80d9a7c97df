"""The shapes and dtypes in annotations, checked in every call that a test makes; see `g1jax.typing`.

`tests/__init__.py` installs the checks, so they hold in processes started as `python -m tests.…` as well.
"""

import functools
from collections.abc import Callable
from typing import Any

import beartype
import jax
import numpy as np
from jaxtyping import install_import_hook

# Not `core` and `batch`: they refuse an argument of any type with an error of their own, which tests expect.
_ENVS = ("games", "prng", "render", "response", "sliding", "sliding_table", "sprites", "text", "vmap_loop")
CHECKED = ("g1jax.rl", "g1jax.vlm", *(f"g1jax.envs.{name}" for name in _ENVS))
_beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int is a float


def install() -> None:
    """Checks the modules of `CHECKED`, none of which may be imported before."""
    install_import_hook(CHECKED, "tests.shape_checks.check")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, except that a constructor is checked only if all arrays that it gets are JAX's.

    JAX also makes dataclasses of shapes, shardings, placeholders and constants on the host, callers put a board of the
    host into a state, and settings raise errors of their own.
    """
    checked: Callable[..., Any] = _beartype(function)
    if function.__name__ != "__init__":
        return checked

    @functools.wraps(function)
    def check_arrays(*args: Any, **kwargs: Any) -> Any:
        leaves = jax.tree.leaves((args[1:], kwargs))
        is_on_host = any(isinstance(leaf, np.ndarray) for leaf in leaves)
        has_array = any(isinstance(leaf, jax.Array) for leaf in leaves)
        return (checked if has_array and not is_on_host else function)(*args, **kwargs)

    return check_arrays
