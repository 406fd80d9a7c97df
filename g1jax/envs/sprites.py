"""Sprites: the images of cells, drawn on the host with Pillow, antialiased. Runs once per game, never in a jit."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from g1jax.envs.appearance import BACKGROUNDS, Color, luminance, mix

NUM_MARKS = 4
"""Kinds of distractor marks."""

Cell = UInt8[np.ndarray, "Z Z 3"]
Point = tuple[float, float]
Draw = Callable[[ImageDraw.ImageDraw, float], None]
"""(canvas, its side in canvas pixels); draws on the canvas."""


def empty_cell(size: int, background: str) -> Cell:
    """A cell with nothing in it: its color and a thin grid line."""
    return _drawn(size, background, lambda draw, side: None)


def shape_tile(size: int, background: str, shape: str, color: Color) -> Cell:
    """A cell with one of `appearance.SHAPES` in it."""
    outline = mix(color, (0, 0, 0), 0.45) if luminance(BACKGROUNDS[background][0]) > 90 else mix(color, (255,) * 3, 0.4)

    def draw_shape(draw: ImageDraw.ImageDraw, side: float) -> None:
        for points, fill in ((_outline(shape, side, 0.40), outline), (_outline(shape, side, 0.40 - 0.035), color)):
            draw.polygon(points, fill=fill)

    return _drawn(size, background, draw_shape)


def number_tile(size: int, background: str, text: str, color: Color, ink: Color) -> Cell:
    """A cell with a rounded tile that shows a number."""

    def draw_number(draw: ImageDraw.ImageDraw, side: float) -> None:
        gap = side * 0.05
        draw.rounded_rectangle((gap, gap, side - gap, side - gap), radius=side * 0.08, fill=color)
        font = ImageFont.load_default(side * 0.5)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font, anchor="mm")
        fit = min(1.0, side * 0.78 / (right - left), side * 0.6 / (bottom - top))
        font = ImageFont.load_default(side * 0.5 * fit)
        stroke = side * 0.014 if len(text) > 2 else 0
        draw.text((side / 2, side / 2), text, font=font, fill=ink, anchor="mm", stroke_width=stroke, stroke_fill=ink)

    return _drawn(size, background, draw_number)


def image_tiles(images: UInt8[np.ndarray, "n Z Z 3"], background: str) -> UInt8[np.ndarray, "n Z Z 3"]:
    """Pictures, each with the cell's grid line around it."""
    size = images.shape[1]
    tiles = images.copy()
    line = np.array(BACKGROUNDS[background][1], np.uint8)
    edge = _line_width(size)
    tiles[:, :edge], tiles[:, -edge:], tiles[:, :, :edge], tiles[:, :, -edge:] = line, line, line, line
    return tiles


def with_marks(tiles: UInt8[np.ndarray, "K Z Z 3"], num_marks: int) -> UInt8[np.ndarray, "K 1+{num_marks} Z Z 3"]:
    """Every tile without and with each distractor mark."""
    variants = [tiles]
    size = tiles.shape[1]
    for mark in range(num_marks):
        mask = _mark_mask(size, mark)[None, :, :, None]
        variants.append((tiles * (1 - mask) + 128.0 * mask).round().astype(np.uint8))
    return np.stack(variants, axis=1)


def with_shifts(
    tiles: UInt8[np.ndarray, "*K Z Z 3"], reach: int
) -> UInt8[np.ndarray, "*K 1+2*{reach} Z+2*{reach} Z 3"]:
    """Every tile shifted sideways by -reach … reach, with `reach` more pixel rows above and below.

    Z rows from row `reach - d` on are the tile shifted down by d. Uncovered pixels repeat the tile's edge, which is its
    grid line.
    """
    size = tiles.shape[-2]
    lead = ((0, 0),) * (tiles.ndim - 3)
    padded = np.pad(tiles, (*lead, (reach, reach), (reach, reach), (0, 0)), mode="edge")
    return np.stack([padded[..., reach - dx : reach - dx + size, :] for dx in range(-reach, reach + 1)], axis=-4)


def _drawn(size: int, background: str, draw_content: Draw) -> Cell:
    """A cell drawn at a multiple of its size and averaged down."""
    cell, line, _ = BACKGROUNDS[background]
    scale = 8 if size <= 40 else 4
    image = Image.new("RGB", (size * scale, size * scale), cell)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size * scale - 1, size * scale - 1), outline=line, width=_line_width(size) * scale)
    draw_content(draw, size * scale)
    return np.asarray(image.reduce(scale), np.uint8)


def _line_width(size: int) -> int:
    return max(1, size // 40)


def _outline(shape: str, side: float, radius: float) -> Sequence[Point]:
    """The corners of a shape at the center of a canvas; `radius` is a fraction of its side."""
    middle, r = side / 2, radius * side

    def polar(count: int, radii: Sequence[float], turn: float = -math.pi / 2, down: float = 0.0) -> list[Point]:
        angles = [turn + 2 * math.pi * i / count for i in range(count)]
        return [
            (middle + radii[i % len(radii)] * math.cos(a), middle + radii[i % len(radii)] * math.sin(a) + down)
            for i, a in enumerate(angles)
        ]

    match shape:
        case "circle":
            return polar(96, [r * 0.96])
        case "square":
            return polar(4, [r * 1.2], turn=-math.pi / 4)
        case "triangle":
            return polar(3, [r * 1.16], down=r * 0.22)
        case "diamond":
            return polar(4, [r * 1.12])
        case "cross":
            a, b = r * 0.95, r * 0.34
            steps = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b)]
            return [(middle + x, middle + y) for x, y in [*steps, (-b, -b)]]
        case "star":
            return polar(10, [r * 1.16, r * 0.5], down=r * 0.05)
    raise ValueError(f"unknown shape {shape!r}")


def _mark_mask(size: int, mark: int) -> np.ndarray:
    """The coverage of a cell by a distractor mark, float[Z, Z] from 0 to 1: a dot, dash, tick or ring near a corner."""
    scale = 8
    image = Image.new("L", (size * scale, size * scale), 0)
    draw = ImageDraw.Draw(image)
    s, width = size * scale, max(1, round(size * scale * 0.045))
    match mark:
        case 0:
            draw.ellipse((0.08 * s, 0.08 * s, 0.20 * s, 0.20 * s), fill=255)
        case 1:
            draw.line((0.74 * s, 0.12 * s, 0.92 * s, 0.12 * s), fill=255, width=width)
        case 2:
            draw.line((0.10 * s, 0.78 * s, 0.22 * s, 0.90 * s), fill=255, width=width)
        case _:
            draw.ellipse((0.78 * s, 0.78 * s, 0.92 * s, 0.92 * s), outline=255, width=width)
    return np.asarray(image.reduce(scale), np.float64) / 255.0
