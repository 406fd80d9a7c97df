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
from g1jax.envs.response import THINK
from g1jax.errors import G1Error
from g1jax.evaluation import play
from g1jax.evaluation.drawing import MARK, PAPER, answer_of, draw_board
from g1jax.evaluation.protocol import Episodes
from g1jax.programs.evaluate import player_named
from g1jax.terminal import one_line

TITLES = {
    "game_2048": "2048",
    "shisen_sho": "Shisen-Sho",
    "shisen_sho_cifar10": "Shisen-Sho, pictures",
    "swap": "Swap",
}
SIDE, GAP, HEAD, LINE, NUM_LINES = 240, 16, 30, 15, 13
INK, FAINT = (40, 40, 40), (120, 120, 120)
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
    action = int(recorded.actions[0, step])
    board = draw_board(game, np.asarray(game.render(state)), action)
    page.paste(board.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, HEAD))
    top = HEAD + SIDE + GAP // 2
    response = recorded.responses[0][step]
    exact = bool(game.perception_exact(response, state))
    draw.text((left, top), f"board read {'exactly' if exact else 'with errors'}", font=mono, fill=FAINT)
    for n, line in enumerate(rationale(response)[: NUM_LINES - 2], start=1):
        draw.text((left, top + n * LINE), line, font=mono, fill=INK)
    answer = f"answer {answer_of(game, action) or 'unreadable'}"
    draw.text((left, top + (NUM_LINES - 1) * LINE), answer, font=mono, fill=MARK)


def _at(states: Any, step: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[0, step], states)


def rationale(response: str) -> list[str]:
    """The lines of the reasoning."""
    return response.partition(f"<{THINK}>")[2].partition(f"</{THINK}>")[0].strip().split("\n")


if __name__ == "__main__":
    main()
