"""Films: episodes side by side, written and read back."""

from pathlib import Path

import numpy as np
import pytest

from g1jax.evaluation import EvaluationError
from g1jax.evaluation.media import side_by_side, write_film

RED, BLUE = (200, 30, 30), (30, 30, 200)


def film_of(num_steps: int = 3) -> np.ndarray:
    frames = np.zeros((3, num_steps, 112, 112, 3), np.uint8)
    frames[0], frames[1], frames[2] = RED, BLUE, (255, 255, 255)
    frames[0, -1] = BLUE
    frames[2, 0] = (0, 0, 0)  # a GIF merges equal frames
    return side_by_side(frames)


def test_games_are_laid_out_in_rows() -> None:
    film = film_of()
    assert film.shape == (3, 112, 3 * 120 - 8, 3)
    assert tuple(film[0, 0, 0]) == RED
    assert tuple(film[0, 0, 120]) == BLUE
    assert tuple(film[-1, 111, 111]) == BLUE
    assert tuple(film[0, 0, 116]) == (255, 255, 255)


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (4, 2, 2), (6, 2, 3), (7, 1, 7), (11, 3, 4)])
def test_a_grid_without_empty_places(count: int, rows: int, columns: int) -> None:
    film = side_by_side(np.zeros((count, 1, 8, 8, 3), np.uint8))
    assert film.shape == (1, rows * 16 - 8, columns * 16 - 8, 3)


def test_odd_frames_are_made_even() -> None:
    assert side_by_side(np.zeros((2, 1, 55, 57, 3), np.uint8), columns=1).shape == (1, 118, 58, 3)


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_films_can_be_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "films" / f"games.{suffix}"
    film = film_of()
    write_film(path, film)
    assert path.stat().st_size > 100
    if suffix == "gif":
        import imageio.v3 as imageio

        back = imageio.imread(path, index=None)
    else:
        back = decode(path, film.shape)
    assert back.shape == film.shape
    assert np.abs(back.astype(int) - film).max() < (5 if suffix == "gif" else 60)
    assert np.abs(back.astype(int) - film).mean() < 6


def decode(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    import subprocess

    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(shape)


def test_invalid_films(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"\.gif or an \.mp4"):
        write_film(tmp_path / "film.avi", film_of())
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(EvaluationError, match="ffmpeg failed"):
        write_film(tmp_path / "taken.mp4", film_of())
