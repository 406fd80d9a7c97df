"""Draws docs/gallery.png, the README's picture of all games with several presets and states.

python scripts/make_gallery.py
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from g1jax import envs

OUT = Path(__file__).parents[1] / "docs" / "gallery.png"
FRAME, GAP, LABEL = 280, 16, 24
INK, PAPER = (60, 60, 60), (255, 255, 255)
COLUMNS: list[tuple[str, int]] = [("base", 0), ("base", 1), ("tiny", 0), ("dark", 2), ("varied+jittered", 1)]
LAST = {
    "game_2048": "wide+noisy",
    "shisen_sho": "more_tiles+noisy",
    "shisen_sho_cifar10": "more_tiles+noisy",
    "swap": "more_types+noisy+distracted",
}
EXPERT_MOVES = {"game_2048": 120, "shisen_sho": 6, "shisen_sho_cifar10": 6, "swap": 5}


def main() -> None:
    """Draws and saves the picture."""
    font = ImageFont.load_default(15)
    width = (FRAME + GAP) * 6 + GAP
    height = (FRAME + GAP + LABEL) * len(envs.game_ids()) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, game_id in enumerate(envs.game_ids()):
        for col, (preset, stage) in enumerate([*COLUMNS, (LAST[game_id], 1)]):
            keys = {"images": "digits"} if game_id == "shisen_sho_cifar10" else {}
            game = envs.make(game_id, preset=preset, cell_size=28, **keys)
            frame = np.asarray(picture(game, seed=10 * row + col, moves=EXPERT_MOVES[game_id] * stage))
            left, top = GAP + col * (FRAME + GAP), GAP + row * (FRAME + GAP + LABEL)
            image = Image.fromarray(frame)
            scale = FRAME / max(image.size)
            sheet.paste(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX
                                     if scale < 1 else Image.Resampling.NEAREST), (left, top))  # fmt: skip
            draw.text((left, top + FRAME + 3), f"{game_id}  {preset}", font=font, fill=INK)
    OUT.parent.mkdir(exist_ok=True)
    sheet.quantize(128).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size / 1024:.0f} KB")


def picture(game: Any, seed: int, moves: int) -> Any:
    """The frame of a game after some moves of the expert."""

    def advance(i: Any, state: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), i)
        return game.step(state, game.expert(state, key), key)[0]

    state = jax.lax.fori_loop(0, moves, advance, game.reset(jax.random.key(seed)))
    return jax.jit(game.render)(state)


if __name__ == "__main__":
    main()
