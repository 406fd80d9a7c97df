"""Progress of a run: a live table in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from g1jax.terminal import printable, printable_lines

_LINE_SECONDS = 10.0
_SHOWN = {
    "cold_start": ("loss", "perception_nats", "reasoning_nats"),
    "rl": ("reward", "success", "perception", "reasoning", "format", "length"),
}


class Progress:
    """Prints only warnings; the base class of displays."""

    def start(self, title: Sequence[str], games: Sequence[str], num_steps: int) -> None:
        """The run starts: lines that describe it, the ids of its games, and its total number of steps."""

    def step(self, step: int, phase: str, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """A step is done."""

    def say(self, line: str) -> None:
        """Prints a line of information."""

    def warn(self, line: str) -> None:
        """Prints a problem that the run works around."""
        print(printable(f"warning: {line}"), file=sys.stderr, flush=True)

    def part(self, name: str, done: int, total: int) -> None:
        """Progress of a long task without steps, such as the evaluation."""

    def end(self) -> None:
        """The run is over."""


class Display(Progress):
    """A live table in a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._last_line = self._started = time.perf_counter()
        self._games: tuple[str, ...] = ()
        self._num_steps = 0

    def start(self, title: Sequence[str], games: Sequence[str], num_steps: int) -> None:
        """Prints the title, and starts the table."""
        self._games, self._num_steps = tuple(games), num_steps
        for line in (*title, "compiling the first step …"):
            self.say(line)
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()

    def step(self, step: int, phase: str, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """Updates the table, or prints a line every 10 seconds."""
        now = time.perf_counter()
        names = _SHOWN[phase]
        per_step = timings["seconds"]
        if self._live is not None:
            table = Table(
                title=f"{phase} · step {step} of {self._num_steps} · {per_step:.2f} s a step", title_justify="left"
            )
            for column in ("", *names):
                table.add_column(column, justify="left" if not column else "right")
            for game in self._games:
                shown = (f"{metrics.get(f'{game}/{name}', float('nan')):.3f}" for name in names)
                table.add_row(Text(printable(game)), *shown)
            self._live.update(table)
        elif now - self._last_line > _LINE_SECONDS or step in (1, self._num_steps):
            self._last_line = now
            main = names[1] if phase == "rl" else names[0]
            parts = [f"{game} {metrics.get(f'{game}/{main}', float('nan')):.3f}" for game in self._games]
            self.say(f"{now - self._started:5.0f} s  {phase} {step}/{self._num_steps}  {main}: {', '.join(parts)}")

    def say(self, line: str) -> None:
        """A line, or several, above the table if there is one."""
        self._console.print(printable_lines(line), markup=False)

    def part(self, name: str, done: int, total: int) -> None:
        """Updates the table, or prints a line every 10 seconds."""
        now = time.perf_counter()
        if self._live is not None:
            self._live.update(Text(printable(f"{name}: {done / total:.0%}")))
        elif now - self._last_line > _LINE_SECONDS or done == total:
            self._last_line = now
            self.say(f"{now - self._started:5.0f} s  {name}: {done / total:.0%}")

    def end(self) -> None:
        """Leaves the last table on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None
