"""Colored shapes as tiles: what Shisen-Sho and Swap share."""

from g1jax.envs import appearance, sprites
from g1jax.errors import LevelError
from g1jax.typing import HostImages


def check_shapes(colors: int, shapes: int) -> None:
    """Rejects numbers of colors or shapes that do not exist."""
    for key, value, known in (("colors", colors, appearance.COLORS), ("shapes", shapes, appearance.SHAPES)):
        LevelError.require(1 <= value <= len(known), f"{key}={value}: 1 to {len(known)}")


def tile_names(colors: int, shapes: int) -> list[str]:
    """The names of all colored shapes, grouped by color."""
    return [f"{color} {shape}" for color in list(appearance.COLORS)[:colors] for shape in appearance.SHAPES[:shapes]]


def draw_tiles(colors: int, shapes: int, cell_size: int, palette: str, background: str) -> list[HostImages]:
    """The sprites of all colored shapes, in the order of `tile_names`: each uint8[Z, Z, 3]."""
    return [
        sprites.shape_tile(cell_size, background, shape, appearance.shade(color, palette))
        for color in list(appearance.COLORS.values())[:colors]
        for shape in appearance.SHAPES[:shapes]
    ]
