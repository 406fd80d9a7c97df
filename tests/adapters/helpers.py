"""Small environments, made through Gymnasium."""

from typing import Any

import gymnasium
import jax
import numpy as np

import g1jax.adapters.gymnasium  # noqa: F401  (registers the games)

TINY: dict[str, dict[str, Any]] = {
    "Game2048": {"rows": 2, "cols": 3, "cell_size": 4},
    "ShisenSho": {"rows": 4, "cols": 4, "colors": 2, "shapes": 2, "tile_types": 4, "cell_size": 4},
    "ShisenShoCifar10": {"rows": 4, "cols": 4, "tile_types": 4, "cell_size": 4, "images": "digits"},
    "Swap": {"rows": 4, "cols": 4, "colors": 2, "shapes": 2, "cell_size": 4},
}
STAY = 4
"""The invalid action of 2048: a move that changes nothing."""


# The defaults are those of most tests, so that these share compiled programs.


def make(name: str = "Game2048", **keys: Any) -> Any:
    return gymnasium.make(f"g1jax/{name}-v0", **TINY[name] | {"observation": "both"} | keys)


def make_vec(mode: Any = "NextStep", **keys: Any) -> Any:
    """Four environments, whose episodes have three steps."""
    own = {"observation": "both", "board_text": True, "max_steps": 3, "autoreset_mode": mode}
    return gymnasium.make_vec(
        "g1jax/Game2048-v0", num_envs=4, vectorization_mode="vector_entry_point", **TINY["Game2048"] | own | keys
    )


def assert_equal(a: Any, b: Any) -> None:
    """Equal trees of arrays, numbers and strings."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (a, b)]
    assert structures[0] == structures[1]
    jax.tree.map(np.testing.assert_array_equal, a, b)
