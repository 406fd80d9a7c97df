"""Progress of a run: a live table in a terminal, plain lines elsewhere."""

import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from g1jax.evaluation import console
from g1jax.terminal import duration, printable, printable_lines

_LINE_SECONDS = 10.0
_SHOWN = {
    "cold_start": ("loss", "perception_nats", "reasoning_nats"),
    "rl": ("reward", "success", "perception", "reasoning", "format", "length"),
}
_IN_LINE = {"cold_start": ("loss",), "rl": ("reward", "perception")}


class Progress:
    """Prints only warnings; the base class of displays."""

    is_stopped = False
    """Whether the run stopped on request, before its end."""

    def start(self, title: Sequence[str], games: Sequence[str], last_steps: Mapping[str, int]) -> None:
        """The run starts: lines that describe it, the ids of its games, and the last step of each phase."""

    def step(self, step: int, phase: str, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """A step is done."""

    def say(self, line: str) -> None:
        """Prints a line of information."""

    def warn(self, line: str) -> None:
        """Prints a problem that the run works around."""
        print(printable(f"warning: {line}"), file=sys.stderr, flush=True)

    def part(self, name: str, done: int, total: int) -> None:
        """Progress of a long task without steps, such as the evaluation."""

    def results(self, markdown: str) -> None:
        """Prints a page of results."""

    def end(self) -> None:
        """The run is over."""


class Display(Progress):
    """A live table in a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._last_line = self._started = time.perf_counter()
        self._games: tuple[str, ...] = ()
        self._last_steps: Mapping[str, int] = {}
        self._phase = ""
        self._seconds: deque[float] = deque(maxlen=21)  # of the latest steps

    def start(self, title: Sequence[str], games: Sequence[str], last_steps: Mapping[str, int]) -> None:
        """Prints the title, and starts the table."""
        self._games, self._last_steps = tuple(games), last_steps
        for line in (*title, "compiling the first step …"):
            self.say(line)
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()

    def step(self, step: int, phase: str, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """Updates the table, or prints a line every 10 seconds."""
        now, last = time.perf_counter(), self._last_steps[phase]
        if phase == self._phase:
            self._seconds.append(timings["seconds"])
        else:  # its first step was compiled
            self._phase = phase
            self._seconds.clear()
        title = f"{phase} · step {step} of {last} · {timings['seconds']:.2f} s a step{self._left(last - step)}"
        names = _SHOWN[phase]
        values = {
            game: [f"{metrics.get(f'{game}/{name}', float('nan')):.3f}" for name in names] for game in self._games
        }
        if self._live is not None:
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
            for column in ("", *names):
                table.add_column(column, justify="left" if not column else "right")
            for game, row in values.items():
                table.add_row(Text(printable(game)), *row)
            self._live.update(table)
        elif now - self._last_line > _LINE_SECONDS or step in (1, last):
            self._last_line = now
            shown = [
                f"{game} {' '.join(row[names.index(name)] for name in _IN_LINE[phase])}" for game, row in values.items()
            ]
            about = f"{title} · {', '.join(_IN_LINE[phase])}: {', '.join(shown)}"
            self.say(f"{now - self._started:5.0f} s  {about}")

    def _left(self, num_steps: int) -> str:
        """The time for further steps of this phase. The median of the latest ignores evaluation and compiling."""
        return f" · {duration(num_steps * statistics.median(self._seconds))} left" if self._seconds else ""

    def say(self, line: str) -> None:
        """A line, or several, above the table if there is one."""
        self._console.print(printable_lines(line), markup=False)

    def results(self, markdown: str) -> None:
        """Prints a page of results, above the table if there is one."""
        console.show(f"\n{markdown}", self._console)

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
