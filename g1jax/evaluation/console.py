"""Pages of results in a terminal: their tables are drawn, and fit its width. Elsewhere they stay Markdown."""

import re
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from g1jax.terminal import in_encoding, printable_lines

_SPACE = 2  # between columns


def show(markdown: str, console: Console | None = None) -> None:
    """Prints a page of `tables`: drawn in a terminal, unchanged in a file or a pipe."""
    console = console or Console(highlight=False, soft_wrap=True)
    page = printable_lines(markdown)
    if not console.is_terminal:
        console.print(page, markup=False)
        return
    rows: list[list[Text]] = []
    for line in in_encoding(page, console.encoding).split("\n"):
        if line.startswith("| "):
            rows += [] if line.startswith("| ---") else [[_text(cell) for cell in line[2:-2].split(" | ")]]
            continue
        if rows:
            _draw(console, rows)
            rows = []
        title = line.lstrip("#")
        console.print(_text(title.strip(), "bold" if title != line else ""), soft_wrap=False)


def _text(cell: str, style: str = "") -> Text:
    """Markdown without its escapes; bold where it is."""
    if cell.startswith("**"):
        cell, style = cell[2:-2], "bold"
    return Text(re.sub(r"\\(\W)", r"\1", cell), style)


def _draw(console: Console, rows: Sequence[Sequence[Text]]) -> None:
    """A table; one that is too wide is drawn as several, each with the first column."""
    columns = list(zip(*rows, strict=True))
    shortest = [max(max(map(len, cell.plain.split()), default=0) for cell in column) + _SPACE for column in columns]
    start = 1
    while start < len(columns) or start == 1:
        end = start + 1
        while end < len(columns) and shortest[0] + sum(shortest[start : end + 1]) <= console.width + _SPACE:
            end += 1
        shown = [0, *range(start, min(end, len(columns)))]
        spare = console.width + _SPACE - sum(shortest[i] for i in shown)
        widths = {}
        for i in reversed(shown):  # the first column, of names, wraps best
            longest = max(cell.cell_len for cell in columns[i]) + _SPACE
            widths[i] = shortest[i] + max(min(longest - shortest[i], spare), 0)
            spare -= widths[i] - shortest[i]
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i in shown:
            table.add_column(columns[i][0], width=widths[i] - _SPACE, overflow="fold")
        for row in rows[1:]:
            table.add_row(*(row[i] for i in shown))
        console.print(*[""] * (start > 1), table, sep="\n", soft_wrap=False)
        start = end
