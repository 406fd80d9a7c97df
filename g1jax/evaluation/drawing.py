"""A board as a picture for people: its frame with row and column labels, the chosen move and a caption."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from g1jax.envs.core import Game
from g1jax.envs.games.game_2048 import DIRECTIONS, Game2048
from g1jax.typing import HostImages

MARK, INK, PAPER = (220, 30, 140), (90, 90, 90), (255, 255, 255)
_LABELS, _CAPTION = 16, 20  # pixels: width of the labels, height of the caption
_SMALLEST_SIDE = 224  # of an enlarged frame


def move_of(game: Game[Any], action: int) -> tuple[list[list[int]], str]:
    """What a move marks: its cells, (row, column), or for 2048 its direction. Nothing for an invalid action."""
    if not 0 <= action < game.num_actions:
        return [], ""
    numbers = [int(number) for number in np.unravel_index(action, game.action_shape)]
    if isinstance(game, Game2048):
        return [], DIRECTIONS[numbers[0]]
    return [numbers[i : i + 2] for i in range(0, len(numbers) - 1, 2)], ""


def answer_of(game: Game[Any], action: int) -> str:
    """An action in words; empty for an invalid action."""
    cells, direction = move_of(game, action)
    named = " ".join(f"({', '.join(map(str, cell))})" for cell in cells) or direction
    return named or (str(action) if 0 <= action < game.num_actions else "")


def draw_board(game: Game[Any], frame: HostImages, action: int, caption: str = "") -> Image.Image:
    """A frame, enlarged if it is small, with its labels, the marked move and a caption below."""
    height, width = frame.shape[:2]
    factor = -(-_SMALLEST_SIDE // min(height, width))
    side, top, left = (n * factor for n in (game.level.appearance.cell_size, game.renderer.above, game.renderer.left))
    top, left = top + _LABELS, left + _LABELS
    size = (width * factor + _LABELS, height * factor + _LABELS + (_CAPTION if caption else 0))
    page = Image.new("RGB", size, PAPER)
    page.paste(
        Image.fromarray(frame).resize((width * factor, height * factor), Image.Resampling.NEAREST), (_LABELS,) * 2
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for r in range(game.rows):
        draw.text((_LABELS / 2, top + (r + 0.5) * side), str(r), INK, font, "mm")
    for c in range(game.cols):
        draw.text((left + (c + 0.5) * side, _LABELS / 2), str(c), INK, font, "mm")
    cells, direction = move_of(game, action)
    for r, c in cells:
        box = (left + c * side, top + r * side, left + (c + 1) * side - 1, top + (r + 1) * side - 1)
        for color, inset, line in ((PAPER, 0, 5), (MARK, 1, 3)):  # visible on tiles of its color too
            draw.rectangle([box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset], outline=color, width=line)
    if direction:
        _draw_arrow(draw, direction, (left + game.cols * side / 2, top + game.rows * side / 2), side)
    draw.text((_LABELS, size[1] - _CAPTION / 2), caption, INK, ImageFont.load_default(12), "lm")
    return page


def _draw_arrow(draw: ImageDraw.ImageDraw, direction: str, center: tuple[float, float], side: int) -> None:
    """An arrow from the center of a board towards one of its sides."""
    dx, dy = ((0, -1), (1, 0), (0, 1), (-1, 0))[DIRECTIONS.index(direction)]
    outline = ((-0.5, 0.12), (0.2, 0.12), (0.2, 0.32), (0.75, 0), (0.2, -0.32), (0.2, -0.12), (-0.5, -0.12))
    points = [
        (center[0] + side * (along * dx - across * dy), center[1] + side * (along * dy + across * dx))
        for along, across in outline
    ]
    draw.polygon(points, fill=MARK, outline=PAPER, width=2)
