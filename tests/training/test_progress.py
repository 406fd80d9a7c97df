"""What a user sees while a run trains: a table within 80 columns in a terminal, a line each elsewhere."""

import io
import re

import pytest
from rich.console import Console

from g1jax.terminal import duration
from g1jax.training import progress
from g1jax.training.config import ALL_GAMES
from g1jax.training.progress import Display

NAMES = ("reward", "success", "perception", "reasoning", "format", "length")


def displayed(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> str:
    out = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **o: Console(**o, file=out, width=80, force_terminal=is_terminal, color_system=None)
    )
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0)
    display = Display()
    display.start(["a title"], ALL_GAMES, {"cold_start": 2, "rl": 400})
    metrics = {f"{game}/{name}": 101.25 for game in ALL_GAMES for name in NAMES}
    for step, seconds in ((3, 300.0), (4, 60.0), (5, 60.0)):  # the first step is compiled
        display.step(step, "rl", metrics, {"seconds": seconds})
        if display._live is not None:
            display._live.refresh()
    display.results("| a | b |\n| --- | --- |\n| 1 | 2 |")
    display.part("evaluation of final: swap", 1, 2)
    display.end()
    return out.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    page = displayed(monkeypatch, is_terminal=False)
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", page) is None
    line = page.split("\n")[4]
    assert "rl · step 5 of 400 · 60.00 s a step · 6 h 35 min left" in line
    assert "reward, perception: game_2048 101.250 101.250, shisen_sho" in line
    assert "| 1 | 2 |" in page


def test_a_table_that_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    page = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", displayed(monkeypatch, is_terminal=True)).replace("\r", "\n")
    assert max(map(len, page.split("\n"))) <= 80
    assert "rl · step 5 of 400 · 60.00 s a step · 6 h 35 min left" in page
    assert re.search(r"shisen_sho_cifar10( +101\.250){6}", page)
    assert "| 1 | 2 |" not in page


def test_durations() -> None:
    shown = [duration(seconds) for seconds in (0.4, 42, 150, 3599, 7500)]
    assert shown == ["0 s", "42 s", "2 min", "1 h 00 min", "2 h 05 min"]
