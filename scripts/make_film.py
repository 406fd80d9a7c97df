"""Films a policy that plays all four games, with what it writes: the README's animation.

python scripts/make_film.py --player=g1-nano --out=docs/g1_nano.gif
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from g1jax import envs
from g1jax.envs.core import Game
from g1jax.envs.games.game_2048 import DIRECTIONS
from g1jax.envs.response import THINK
from g1jax.errors import G1Error
from g1jax.evaluation import play
from g1jax.evaluation.protocol import Episodes
from g1jax.programs.evaluate import player_named
from g1jax.terminal import one_line

TITLES = {
    "game_2048": "2048",
    "shisen_sho": "Shisen-Sho",
    "shisen_sho_cifar10": "Shisen-Sho, pictures",
    "swap": "Swap",
}
SIDE, GAP, HEAD, LINE, NUM_LINES = 224, 16, 30, 15, 13
PAPER, INK, FAINT, MARK = (255, 255, 255), (40, 40, 40), (120, 120, 120), (220, 30, 90)
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def main() -> None:
    """Reads the command line, plays and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--player", default="g1-nano", help="a model that ships, its folder, or a run's")
    parser.add_argument("--out", type=Path, default=Path("docs/g1_nano.gif"), help="the GIF to write")
    parser.add_argument("--steps", type=int, default=18, help="moves of each game")
    parser.add_argument("--seed", type=int, default=3, help="seed of the boards")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: greedy")
    args = parser.parse_args()
    games = [envs.make(name) for name in TITLES]
    try:
        player = player_named(args.player, games, args.temperature)
    except G1Error as error:
        sys.exit(one_line(f"film: {error}"))
    episodes = [play(game, player, 1, args.steps, args.seed, num_recorded=1) for game in games]
    pages = [draw_step(episodes, step) for step in range(args.steps)]
    palette = pages[0].quantize(96)
    pages = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(args.out, save_all=True, append_images=pages[1:], duration=1400, loop=0, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1024:.0f} KB")


def draw_step(episodes: list[Episodes], step: int) -> Image.Image:
    """One picture: each game's board with the chosen move marked, its score and what the policy wrote."""
    width = GAP + (SIDE + GAP) * len(episodes)
    page = Image.new("RGB", (width, HEAD + SIDE + GAP // 2 + LINE * NUM_LINES + GAP), PAPER)
    for i, played in enumerate(episodes):
        draw_game(page, GAP + i * (SIDE + GAP), played, step)
    return page


def draw_game(page: Image.Image, left: int, played: Episodes, step: int) -> None:
    """A column of the picture."""
    game, recorded = played.game, played.recorded
    assert recorded is not None
    assert recorded.responses is not None
    draw = ImageDraw.Draw(page)
    bold, plain = (ImageFont.truetype(str(FONTS / name), 13) for name in ("DejaVuSans-Bold.ttf", "DejaVuSans.ttf"))
    mono = ImageFont.truetype(str(FONTS / "DejaVuSansMono.ttf"), 12)
    state = _at(recorded.states, step)
    score = f"{'score' if len(game.action_shape) == 1 else 'moves'} {played.score[0, :step].sum():g}"
    draw.text((left, 8), TITLES[game.id], font=bold, fill=INK)
    draw.text((left + SIDE, 8), score, font=plain, fill=FAINT, anchor="ra")
    frame = Image.fromarray(np.asarray(game.render(state))).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    page.paste(frame, (left, HEAD))
    action = int(recorded.actions[0, step])
    mark_move(draw, game, action, left)
    top = HEAD + SIDE + GAP // 2
    response = recorded.responses[0][step]
    exact = bool(game.perception_exact(response, state))
    draw.text((left, top), f"board read {'exactly' if exact else 'with errors'}", font=mono, fill=FAINT)
    for n, line in enumerate(rationale(response)[: NUM_LINES - 2], start=1):
        draw.text((left, top + n * LINE), line, font=mono, fill=INK)
    answer = f"answer {describe(game, action)}"
    draw.text((left, top + (NUM_LINES - 1) * LINE), answer, font=mono, fill=MARK)


def _at(states: Any, step: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[0, step], states)


def rationale(response: str) -> list[str]:
    """The lines of the reasoning."""
    return response.partition(f"<{THINK}>")[2].partition(f"</{THINK}>")[0].strip().split("\n")


def describe(game: Game[Any], action: int) -> str:
    """An action in words."""
    if action == game.invalid_action:
        return "unreadable"
    if len(game.action_shape) == 1:
        return DIRECTIONS[action]
    r1, c1, r2, c2 = np.unravel_index(action, game.action_shape)
    return f"({r1}, {c1}) ({r2}, {c2})"


def mark_move(draw: ImageDraw.ImageDraw, game: Game[Any], action: int, left: int) -> None:
    """Outlines the two chosen cells, or draws an arrow at the side that tiles slide to."""
    if action == game.invalid_action:
        return
    if len(game.action_shape) == 1:
        x, y, r = left + SIDE / 2, HEAD + SIDE / 2, SIDE / 2
        dx, dy = ((0, -1), (1, 0), (0, 1), (-1, 0))[action]
        tip, base = (x + dx * (r - 2), y + dy * (r - 2)), (x + dx * (r - 16), y + dy * (r - 16))
        draw.polygon([tip, (base[0] - dy * 14, base[1] - dx * 14), (base[0] + dy * 14, base[1] + dx * 14)], fill=MARK)
        return
    r1, c1, r2, c2 = (int(n) for n in np.unravel_index(action, game.action_shape))
    height, width = SIDE / game.rows, SIDE / game.cols
    for r, c in ((r1, c1), (r2, c2)):
        box = (left + c * width + 1, HEAD + r * height + 1, left + (c + 1) * width - 2, HEAD + (r + 1) * height - 2)
        draw.rectangle(box, outline=MARK, width=3)


if __name__ == "__main__":
    main()
