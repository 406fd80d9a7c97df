"""The program `g1jax play`: a game by hand, in a terminal."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from g1jax import envs, settings
from g1jax.envs import text
from g1jax.envs.appearance import luminance
from g1jax.envs.batch import EPISODE_STEPS
from g1jax.envs.core import Game
from g1jax.errors import EvaluationError
from g1jax.programs import command_line
from g1jax.programs.machine import keep_programs
from g1jax.programs.shared import parse_games, print_status
from g1jax.terminal import printable

DESCRIPTION = """Plays a game by hand: type a move as a policy answers, `?` for a hint, `q` to stop.

    {command} game_2048
    {command} shisen_sho:easy --seed=3
"""
_HELP = "? shows the expert's move, q stops"
_Read = Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a game."""

    game: str = "game_2048"
    """The game, optionally with presets: `swap:tiny+noisy`. Also the first argument."""
    seed: settings.Seed = 0
    """Seed of the board and of what happens by chance."""
    max_steps: settings.Steps = EPISODE_STEPS
    """The game ends after this many moves."""


def main(arguments: Sequence[str], command: str) -> int:
    """Plays until the game ends, `q`, or the end of the input; returns the exit status."""
    if arguments and not arguments[0].startswith("-"):
        arguments = [f"--game={arguments[0]}", *arguments[1:]]
    return command_line.main("play", Options, play, arguments, DESCRIPTION.format(command=command), command)


def play(options: Options, read: _Read | None = None, console: Console | None = None) -> None:
    """Plays one game; `read` asks for a line, in the terminal if None.

    Raises:
        EvaluationError: a setting is invalid, or more than one game is named.
    """
    settings.check(options, EvaluationError)
    trials = parse_games(options.game)
    EvaluationError.require(len(trials) == 1, f"game={options.game}: name one game")
    game = envs.make(trials[0].game_id, trials[0].preset or None)
    console, read = console or Console(highlight=False), read or input
    keep_programs()
    print_status("compiling …")
    key = jax.random.key(options.seed)
    state = jax.jit(game.reset)(jax.random.fold_in(key, 0))
    step, show = jax.jit(game.step), jax.jit(lambda state: (game.describe(state), game.render(state)))
    console.print(f"{game.prompt.splitlines()[0]}\n\nA move looks like {_example(game, state)}; {_HELP}.")
    score, moves = 0.0, 0
    while True:
        board, frame = show(state)
        console.print(board_table(game, text.decode(board), np.asarray(frame)))
        if bool(state.terminated) or moves == options.max_steps:
            break
        action = _ask(game, state, read, console)
        if action is None:
            break
        moves += 1
        state, result = step(state, action, jax.random.fold_in(key, moves))
        score += float(result.reward)
        legal = "" if bool(result.is_legal) else ", not a legal move"
        console.print(f"move {moves}: reward {float(result.reward):g}{legal}, {score:g} in all")
    console.print(f"{'finished' if bool(state.terminated) else 'stopped'} after {moves} moves: {score:g}")


def _ask(game: Game[Any], state: Any, read: _Read, console: Console) -> Any:
    """The next readable move, or None at `q` or the end of the input."""
    while True:
        try:
            line = read("move> ").strip()
        except (EOFError, KeyboardInterrupt):
            return None
        if line in ("q", "quit", "exit"):
            return None
        if line == "?":
            console.print(f"the expert plays {_example(game, state)}")
            continue
        action = game.parse(_as_answer(game, line))
        if int(action) != game.invalid_action:
            return action
        console.print(f"{printable(line)}: not a move, which looks like {_example(game, state)}")


def _example(game: Game[Any], state: Any) -> str:
    """The expert's move, without the tags of an answer."""
    answer = game.format_action(int(_expert(game)(state, jax.random.key(0))))
    return answer.removeprefix("<answer>").removesuffix("</answer>")


@functools.lru_cache(maxsize=1)
def _expert(game: Game[Any]) -> Any:
    return jax.jit(game.expert)


def _as_answer(game: Game[Any], line: str) -> str:
    """What was typed in the form of an answer; cells may be typed as four numbers.

    >>> _as_answer(envs.make("swap"), "0 1 0 2")
    '<answer>(0, 1) (0, 2)</answer>'
    """
    numbers = re.findall(r"\d+", line)
    if len(game.action_shape) == 4 and len(numbers) == 4:
        line = "({}, {}) ({}, {})".format(*numbers)
    return f"<answer>{line}</answer>"


def board_table(game: Game[Any], board: str, frame: np.ndarray) -> Table:
    """The board as a table: the names of cells on their colors, with the numbers of rows and columns."""
    size = game.level.appearance.cell_size
    top, left = ((side - count * size) // 2 for side, count in zip(frame.shape, (game.rows, game.cols), strict=False))
    table = Table(box=box.SQUARE, show_lines=True, padding=0, show_header=True)
    for header in ("", *map(str, range(game.cols))):
        table.add_column(header, justify="center", min_width=6 if header else 2)
    for row, line in enumerate(board.split("\n")):
        cells = []
        for col, name in enumerate(line.split(" | ")):
            y, x = top + row * size, left + col * size
            quarter = size // 4  # the middle half of the cell
            pixels = frame[y + quarter : y + size - quarter, x + quarter : x + size - quarter].reshape(-1, 3)
            cells.append(_cell("" if name == "-" else name, pixels))
        table.add_row(str(row), *cells)
    return table


def _cell(name: str, pixels: np.ndarray) -> Text:
    """A cell's name, one word a line, on the most frequent color of its pixels."""
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    red, green, blue = (int(x) for x in colors[np.argmax(counts)])
    ink = "black" if luminance((red, green, blue)) > 128 else "white"
    return Text(name.replace(" ", "\n"), style=Style(color=ink, bgcolor=f"rgb({red},{green},{blue})"))
