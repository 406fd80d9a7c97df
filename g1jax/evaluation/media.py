"""Films: several episodes side by side, as GIF or MP4."""

import importlib.util
import math
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from g1jax.errors import EvaluationError
from g1jax.typing import HostImages

_MISSING = "films need two packages: pip install imageio imageio-ffmpeg"
_GAP = 8  # pixels between episodes
_PAPER = 255
_MAX_COLUMNS = 7


def side_by_side(frames: HostImages, columns: int = 0) -> HostImages:
    """Episodes of one game in a grid: uint8[n, T, H, W, 3] -> uint8[T, h, w, 3].

    By default the grid is near square, and has no empty place if it need not be wider than 7 episodes for that.

    h and w are even, as video codecs require.
    """
    count, num_steps, height, width, _ = frames.shape
    root = math.ceil(math.sqrt(count))
    columns = columns or next((n for n in range(root, _MAX_COLUMNS + 1) if count % n == 0), root)
    rows = -(-count // columns)
    shape = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    film = np.full((num_steps, shape[0] + shape[0] % 2, shape[1] + shape[1] % 2, 3), _PAPER, np.uint8)
    for i, episode in enumerate(frames):
        top, left = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        film[:, top : top + height, left : left + width] = episode
    return film


def require_writer(suffixes: Iterable[str]) -> None:
    """Checks, before any play, that the packages for these film formats are installed.

    Raises:
        EvaluationError: A package is missing.
    """
    packages = [{"gif": "imageio", "mp4": "imageio_ffmpeg"}[suffix] for suffix in suffixes]
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise EvaluationError(_MISSING)


def write_film(path: Path, frames: HostImages, frames_per_second: float = 4.0) -> None:
    """Writes uint8[T, h, w, 3] in the format of the path's suffix: `.gif` or `.mp4`.

    Raises:
        EvaluationError: The suffix is another, a package is missing, or encoding fails.
    """
    writers = {".gif": _write_gif, ".mp4": _write_mp4}
    EvaluationError.require(path.suffix in writers, f"{path}: a film must be a .gif or an .mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writers[path.suffix](path, frames, frames_per_second)
    except ImportError:
        raise EvaluationError(_MISSING) from None


def _write_gif(path: Path, frames: HostImages, frames_per_second: float) -> None:
    import imageio.v3 as imageio

    imageio.imwrite(path, frames, duration=1000 / frames_per_second, loop=0)


def _write_mp4(path: Path, frames: HostImages, frames_per_second: float) -> None:
    """Pipes the frames to imageio-ffmpeg's executable; its own writer forks, which is unsafe with JAX's threads."""
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(frames_per_second), "-i", "-"]
    encode = ["-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *raw, *encode, str(path)]
    done = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
    if done.returncode:
        raise EvaluationError(
            f"{path}: ffmpeg failed: {' '.join(done.stderr.decode('utf-8', 'replace').split())[:300]}"
        )
