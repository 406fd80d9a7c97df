"""Pages of results in a terminal: drawn, complete and within its width; elsewhere they stay Markdown."""

import io

import pytest
from rich.console import Console

from g1jax.evaluation.console import show
from g1jax.evaluation.tables import Bold, escape, table
from g1jax.terminal import PLAIN_LETTERS

NAMES = ["player", "game_2048", "shisen_sho", "shisen_sho, one board", "shisen_sho_cifar10", "swap"]
ROWS = [["g1 > *nano*", *["26.00 (18.00–30.00)"] * 5], ["Claude-3.7 (published, not run)", Bold("–"), *["1"] * 4]]
PAGE = "\n".join([f"## {escape('reward > 0')}", "", *table(NAMES, ROWS), "", f"{'word ' * 30}|"])


def shown(width: int, encoding: str = "utf-8", *, is_terminal: bool = True) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=PLAIN_LETTERS)
    show(PAGE, Console(file=out, width=width, force_terminal=is_terminal, color_system=None, soft_wrap=True))
    out.seek(0)
    return out.read()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [60, 80, 300])
def test_tables_are_drawn_within_the_width(width: int, encoding: str) -> None:
    page = shown(width, encoding)
    assert max(map(len, page.split("\n"))) <= width
    assert "\\" not in page
    assert "reward > 0" in page
    assert "| ---" not in page
    dash = "–" if encoding == "utf-8" else "-"
    assert page.count(f"(18.00{dash}30.00)") == 5
    assert page.count("g1 > *nano*") == {60: 2, 80: 2, 300: 1}[width]  # tables that repeat the first column
    assert "**" not in page


def test_a_pipe_gets_markdown() -> None:
    assert shown(80, is_terminal=False) == f"{PAGE}\n"
