"""Recorded episodes as JSON data for a page: frame, perception, response, action and reward of every step.

A board changes little from step to step, so an episode's frames are stored as one sheet of the distinct cell-sized
tiles, and for each step the index of the tile at each place.
"""

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from g1jax.envs import text
from g1jax.envs.core import Game
from g1jax.envs.response import PERCEPTION
from g1jax.evaluation.drawing import answer_of, draw_board, move_of
from g1jax.evaluation.protocol import Episodes, Recorded
from g1jax.typing import Array, HostImages, Pytree

FILE = "replays.json"
SHEET_BYTES = 300_000
"""The size limit of a sheet's data URL; frames whose tiles all differ, as with noise, are compressed with loss."""

_LONGEST_PERCEPTION = 2**16
_SHEET_COLUMNS = 64


def replays_of(episodes: dict[str, Episodes]) -> list[dict[str, Any]]:
    """A replay of each recorded episode of each game."""
    out = []
    for label, played in episodes.items():
        if played.recorded is not None:
            frames = frames_of(played)
            true, read = _boards(played.game, played.recorded)
            for i in range(len(frames)):
                replay = {"game": label, "episode": i, "rows": played.game.rows, "cols": played.game.cols}
                replay |= {"names": list(played.game.cell_names()), **_tiled(played.game, frames[i])}
                replay["steps"] = [
                    {**step, "true": true[i][t], "read": None if read is None else read[i][t]}
                    for t, step in enumerate(_steps(played, i))
                ]
                out.append(replay)
    return out


def save(replays: list[dict[str, Any]], folder: Path) -> None:
    """Writes replays.json."""
    (folder / FILE).write_text(json.dumps(replays, separators=(",", ":")), "utf-8")


def frames_of(played: Episodes) -> HostImages:
    """The frames of the recorded episodes: uint8[n, T, H, W, 3].

    Raises:
        ValueError: Nothing was recorded.
    """
    if played.recorded is None:
        raise ValueError("no episode was recorded")
    return np.stack([np.asarray(_render(played.game, states)) for states in _episode_states(played.recorded)])


def film_of(played: Episodes) -> HostImages:
    """The recorded episodes as pictures for people, with the moves marked: uint8[n, T, h, w, 3].

    Raises:
        ValueError: Nothing was recorded.
    """
    game, frames, recorded = played.game, frames_of(played), played.recorded
    assert recorded is not None
    totals = played.score.cumsum(axis=1)
    return np.stack(
        [
            [
                draw_board(game, frames[i, t], int(action), _caption(game, t, int(action), totals[i, t]))
                for t, action in enumerate(actions)
            ]
            for i, actions in enumerate(recorded.actions)
        ]
    )


def _caption(game: Game[Any], step: int, action: int, score: float) -> str:
    return f"step {step + 1}: {answer_of(game, action) or 'unreadable'}, score {score:g}"


def _episode_states(recorded: Recorded) -> list[Pytree]:
    """The states of each episode: leaves [T, …]."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], recorded.states) for i in range(len(recorded.actions))]


@functools.partial(jax.jit, static_argnums=0)
def _render(game: Game[Any], states: Pytree) -> Array:
    return jax.vmap(game.render)(states)


# Boards, steps and answers


def _boards(game: Game[Any], recorded: Recorded) -> tuple[list[Any], list[Any] | None]:
    """The true kind of every cell, and the kind read if there are responses: [n][T][R·C]; -1 where not read."""
    true = [np.asarray(_cells(game, states)).tolist() for states in _episode_states(recorded)]
    if recorded.responses is None:
        return true, None
    raw = [[one.encode("utf-8", "surrogatepass")[:_LONGEST_PERCEPTION] for one in row] for row in recorded.responses]
    longest = max(len(one) for row in raw for one in row)
    length = 1 << max(longest - 1, 63).bit_length()
    read = [np.asarray(_read(game, np.stack([text.encode(one, length) for one in row]))).tolist() for row in raw]
    return true, read


@functools.partial(jax.jit, static_argnums=0)
def _cells(game: Game[Any], states: Pytree) -> Array:
    return jax.vmap(lambda state: game.cells(state).astype(jnp.int32).reshape(-1))(states)


@functools.partial(jax.jit, static_argnums=0)
def _read(game: Game[Any], responses: Array) -> Array:
    def read(response: Array) -> Array:
        span = text.find_tag(response, PERCEPTION)
        return jnp.where(span.is_found, game.board_text.read_span(response, span), -1).reshape(-1)

    return jax.vmap(read)(responses)


def _steps(played: Episodes, episode: int) -> list[dict[str, Any]]:
    """Everything about each step except the boards."""
    recorded, steps = played.recorded, played.steps
    assert recorded is not None
    return [
        {
            "answer": answer_of(played.game, int(action)),
            "move": move_of(played.game, int(action)),
            "response": None if recorded.responses is None else recorded.responses[episode][t],
            "reward": float(steps.reward[episode, t]),
            "score": float(played.score[episode, : t + 1].sum()),
            "legal": bool(steps.is_legal[episode, t]),
            "invalid": bool(steps.is_invalid[episode, t]),
            "end": bool(steps.is_end[episode, t]),
            "exact": None if steps.is_exact is None else bool(steps.is_exact[episode, t]),
        }
        for t, action in enumerate(recorded.actions[episode])
    ]


# Frames


def _tiled(game: Game[Any], frames: HostImages) -> dict[str, Any]:
    """An episode's frames, uint8[T, H, W, 3], as a sheet of tiles and the tile at each place by step."""
    size = game.level.appearance.cell_size
    above, left = game.renderer.above, game.renderer.left
    num_steps, height, width, _ = frames.shape
    # Tiles are aligned with the cells, so the margins are padded to whole tiles.
    top, before = -above % size, -left % size
    padded = np.pad(frames, ((0, 0), (top, -(height + top) % size), (before, -(width + before) % size), (0, 0)), "edge")
    rows, columns = padded.shape[1] // size, padded.shape[2] // size
    pieces = padded.reshape(num_steps, rows, size, columns, size, 3).swapaxes(2, 3).reshape(-1, size, size, 3)
    known: dict[bytes, int] = {}
    places = [known.setdefault(piece.tobytes(), len(known)) for piece in pieces]
    sheet = np.frombuffer(b"".join(known), np.uint8).reshape(-1, size, size, 3)
    return {
        "piece": size,
        "grid": [rows, columns],
        "board": [(above + top), (left + before)],
        "frame": [top, before, height, width],
        "sheet_columns": _SHEET_COLUMNS,
        "sheet": _sheet(sheet),
        "places": np.array(places).reshape(num_steps, -1).tolist(),
    }


def _sheet(pieces: HostImages) -> str:
    """Tiles, uint8[n, Z, Z, 3], in rows of one image, as a data URL: PNG if it fits, else the best JPEG that does."""
    size = pieces.shape[1]
    columns = _SHEET_COLUMNS
    rows = -(-len(pieces) // columns)
    filled = np.zeros((rows * columns, size, size, 3), np.uint8)
    filled[: len(pieces)] = pieces
    pixels = filled.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)
    image = Image.fromarray(pixels)
    url = _data_url(image, "PNG", optimize=True)
    for factor in (1, 2, 4):
        for quality in (85, 60, 35):
            if len(url) <= SHEET_BYTES:
                return url
            smaller = image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)
            url = _data_url(smaller, "JPEG", quality=quality)
    return url


def _data_url(image: Image.Image, kind: str, **options: Any) -> str:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
