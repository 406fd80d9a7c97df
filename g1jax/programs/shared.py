"""Helpers of several programs: names of games and folders, and lines printed for the user."""

import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from g1jax import envs
from g1jax.analysis.transfer import TransferTest
from g1jax.envs.core import Game
from g1jax.errors import EvaluationError
from g1jax.evaluation import console
from g1jax.evaluation.protocol import Progress
from g1jax.terminal import duration, one_line, printable


def split_names(names: str) -> list[str]:
    """The names in a comma-separated list."""
    return [name.strip() for name in names.split(",") if name.strip()]


def parse_games(names: str) -> list[TransferTest]:
    """The games and presets of `id,id:preset+preset`, or of all games for `all` or an empty list."""
    labels = envs.game_ids() if names in ("", "all") else split_names(names)
    EvaluationError.require(len(labels) > 0, "name at least one game, such as --games=game_2048, or all")
    return [TransferTest(label, *label.partition(":")[::2]) for label in labels]


def games_of(names: str) -> dict[str, Game[Any]]:
    """The games of `id,id:preset+preset`, or all, by label."""
    return {trial.label: envs.make(trial.game_id, trial.preset or None) for trial in parse_games(names)}


def folder_name(name: str, default: str) -> str:
    """A name reduced to characters that suit a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or default


def print_results(out: Path, markdown: str) -> None:
    """Prints a Markdown file of an output folder, with its tables drawn, and the names of all files there."""
    console.show((out / markdown).read_text("utf-8"))
    print(printable(f"In {out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_file()))}"))


def print_status(line: str) -> None:
    """Prints a line on standard error."""
    print(printable(line), file=sys.stderr, flush=True)


def progress_line(label: str, what: str = "steps") -> Progress:
    """Prints the progress of a game on standard error.

    In a terminal it is one line, overwritten each second; elsewhere a line every 10 seconds.
    """
    start = last = time.monotonic()
    is_terminal = sys.stderr.isatty()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < (1 if is_terminal else 10):
            return
        last = now
        left = f", {duration((now - start) * (total - done) / done)} left" if 0 < done < total else ""
        line = one_line(f"{label}: {done} of {total} {what}, {duration(now - start)}{left}")
        if is_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]:{width}}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    return report
