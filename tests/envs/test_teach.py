"""What the teachers say is true, by the oracles, and their move follows from it."""

import itertools
import re
from typing import Any

import jax
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import text
from g1jax.envs.lines import all_pairs_walk
from g1jax.typing import Array
from tests.envs import helpers
from tests.oracles import game_2048, shisen_sho, swap

Cell = tuple[int, int]


def lessons(game_id: str, num_games: int, num_steps: int, **level: Any) -> list[tuple[list[list[int]], int, str]]:
    """(board, action, words) of states met in play that are not over."""
    game = envs.make(game_id, **level)
    states = helpers.play(game, num_games, num_steps).flat().states

    def look(state: Any, key: Array) -> Any:
        return game.cells(state), *game.teach(state, key)

    boards, actions, words = jax.jit(jax.vmap(look))(states, helpers.keys(num_games * num_steps))
    is_on = ~np.asarray(states.terminated)
    chosen = zip(
        helpers.to_lists(np.asarray(boards)[is_on]), np.asarray(actions)[is_on], np.asarray(words)[is_on], strict=True
    )
    return [(board, int(action), text.decode(said)) for board, action, said in chosen]


def cells_in(words: str) -> list[Cell]:
    return [(int(r), int(c)) for r, c in re.findall(r"\((\d+), (\d+)\)", words)]


def action_of(a: Cell, b: Cell, rows: int, cols: int) -> int:
    return ((a[0] * cols + a[1]) * rows + b[0]) * cols + b[1]


def seen_from(board: list[list[int]], side: str) -> list[Cell | None]:
    """The first tile of each line, seen from a side."""
    rows, cols = len(board), len(board[0])
    lines = {
        "Top": [[(r, c) for r in range(rows)] for c in range(cols)],
        "Bottom": [[(r, c) for r in reversed(range(rows))] for c in range(cols)],
        "Left": [[(r, c) for c in range(cols)] for r in range(rows)],
        "Right": [[(r, c) for c in reversed(range(cols))] for r in range(rows)],
    }[side]
    return [next((cell for cell in line if board[cell[0]][cell[1]]), None) for line in lines]


@pytest.mark.parametrize("count", range(1, 10))
def test_a_walk_over_lines_has_every_pair_next_to_each_other(count: int) -> None:
    walk = [line for line in all_pairs_walk(count, 9) if line >= 0]
    assert walk[:count] == list(range(count))
    assert {frozenset(pair) for pair in itertools.pairwise(walk)} == {
        frozenset(pair) for pair in itertools.combinations(range(count), 2)
    }
    assert len(walk) <= count * (count - 1) // 2 + max(1, count // 2)


def twins_along(lines: list[list[Cell]], board: list[list[int]]) -> tuple[list[list[Cell]], bool]:
    """The tiles of every line that has any, up to the first equal to the one before it there; whether there is one."""
    named: list[list[Cell]] = []
    for line in lines:
        tiles = [(r, c) for r, c in line if board[r][c]]
        for i, (r, c) in enumerate(tiles):
            if i == 0:
                named.append([])
            named[-1].append((r, c))
            if i and board[r][c] == board[tiles[i - 1][0]][tiles[i - 1][1]]:
                return named, True
    return named, False


@pytest.mark.parametrize(
    ("game_id", "rows", "cols"), [("shisen_sho", 6, 6), ("shisen_sho_cifar10", 6, 6), ("shisen_sho", 2, 8)]
)
def test_shisen_sho_takes_the_first_equal_tiles_that_follow_each_other(game_id: str, rows: int, cols: int) -> None:
    seen = lessons(game_id, 24, 20, rows=rows, cols=cols)
    name_of = envs.make(game_id, rows=rows, cols=cols).cell_names()
    assert len(seen) > 200
    said_of = {"from a side": 0, "Rows": 0, "Columns": 0, "A path joins": 0}
    for board, action, words in seen:
        said = re.fullmatch(
            r"(Top|Right|Bottom|Left): \| (.*?)(?: (Rows|Columns):\n(.*))? (again:|A path joins) (\(.*\))\.",
            words,
            re.DOTALL,
        )
        assert said, words
        side, outer, along, inner, how, places = said.groups()
        a, b = cells_in(places)
        assert action == action_of(a, b, rows, cols)
        pairs = shisen_sho.legal_pairs(board)
        assert (a, b) in pairs
        lines = seen_from(board, side)
        walk = [lines[line] for line in all_pairs_walk(len(lines), max(rows, cols)) if line >= 0]
        named = walk[: outer.count(" | ") + 1]
        kinds = [board[cell[0]][cell[1]] if cell else 0 for cell in named]
        assert outer.split(" | ") == [name_of[kind] for kind in kinds]
        assert not any(a == b != 0 for a, b in itertools.pairwise(kinds))
        if along is None:
            said_of["from a side"] += 1
            assert how == "again:"
            assert (a, b) == (walk[len(named)], named[-1])
            continue
        assert named == walk
        said_of[along if how == "again:" else "A path joins"] += 1
        in_rows = [[(r, c) for c in range(cols)] for r in range(rows)]
        ways = {"Rows": in_rows, "Columns": [list(column) for column in zip(*in_rows, strict=True)]}
        tiles, is_found = twins_along(ways[along], board)
        assert is_found == (how == "again:")
        if is_found:
            (first, second), tiles[-1] = tiles[-1][-2:], tiles[-1][:-1]
            assert (a, b) == (first, second)
        else:
            assert not any(twins_along(way, board)[1] for way in ways.values())
            steps = {pair: abs(pair[0][0] - pair[1][0]) + abs(pair[0][1] - pair[1][1]) for pair in pairs}
            assert (a, b) == min(pair for pair in pairs if steps[pair] == min(steps.values()) and pair[0] < pair[1])
        assert inner.split("\n") == [" | ".join(name_of[board[r][c]] for r, c in line) for line in tiles]
    assert said_of["from a side"] > 100
    assert min(said_of["Rows"], said_of["Columns"]) > 3


def test_where_no_equal_tiles_follow_each_other_shisen_sho_takes_the_nearest_pair() -> None:
    game = envs.make("shisen_sho", rows=2, cols=4)
    a, b = "Red circle", "Blue square"
    rows = [[a, "-", "-", b], [b, "-", "-", a]]
    state = game.from_text("\n".join(" | ".join(row) for row in rows))
    said = [jax.jit(game.teach)(state, jax.random.key(i)) for i in range(64)]
    words = {text.decode(np.asarray(words)) for _, words in said}
    assert {int(action) for action, _ in said} == {action_of((0, 0), (1, 3), 2, 4)}
    assert len(words) == 8  # from four sides, then along rows or columns
    assert f"Left: | {a} | {b} Columns:\n{a} | {b}\n{b} | {a} A path joins (0, 0) (1, 3)." in words


def test_shisen_sho_looks_from_all_sides() -> None:
    sides = [words.partition(":")[0] for _, _, words in lessons("shisen_sho", 16, 5)]
    assert min(sides.count(side) for side in ("Top", "Right", "Bottom", "Left")) > 5


PATHS = ("x.x.", ".x.x", "xx..", "x..x", "..xx", ".xx.")
"""Where six paths along two lines are in the first of them, from its beginning; then the same anew."""
GAPS = ("xx.", ".xx", "x.x")
"""Which tiles of a line are on the paths that leave some out; then the same anew."""


def paths_of(what: str, first: int, size: int = 8) -> list[list[Cell]]:
    """The cells of the paths along two rows or columns."""
    rows = [[(first + (path[i % 4] == "."), i) for i in range(size)] for path in PATHS]
    rows += [[(first + row, i) for i in range(size) if gaps[i % 3] == "x"] for row in (0, 1) for gaps in GAPS]
    return rows if what == "Rows" else [[(c, r) for r, c in path] for path in rows]


def threes(board: list[list[int]], path: list[Cell]) -> list[int]:
    """Where the third of three equal tiles stands that follow each other on a path."""
    kinds = [board[r][c] for r, c in path]
    return [i for i in range(2, len(kinds)) if kinds[i - 2] == kinds[i - 1] == kinds[i]]


def test_paths_meet_every_three_of_two_rows_once_unless_they_are_in_one_row() -> None:
    met = [tuple(path[i : i + 3]) for path in paths_of("Rows", 0)[:6] for i in range(6)]
    wanted = {((a, i), (b, i + 1), (c, i + 2)) for a, b, c in itertools.product((0, 1), repeat=3) for i in range(6)}
    assert len(met) == len(set(met))
    assert set(met) == {three for three in wanted if len({row for row, _ in three}) == 2}


def test_paths_with_gaps_meet_every_three_of_four_tiles_in_a_row_once() -> None:
    met = [tuple(path[i : i + 3]) for path in paths_of("Rows", 0)[6:] for i in range(len(path) - 2)]
    wanted = {
        tuple((row, c) for c in range(first, first + 4) if c != gap)
        for row in (0, 1)
        for first in range(5)
        for gap in (first + 1, first + 2)
    }
    assert len(met) == len(set(met))
    assert set(met) == wanted


def test_swap_looks_along_paths_twice_and_lines_up_the_first_three_equal_tiles() -> None:
    seen = lessons("swap", 16, 12)
    name_of = envs.make("swap").cell_names()
    bands, how = set(), {"first": 0, "second": 0, "not at all": 0}
    assert len(seen) > 150
    for board, action, words in seen:
        said = re.fullmatch(r"(.*) (Take|Else) (\(.*\))\.", words, re.DOTALL)
        assert said, words
        source, target = cells_in(said[3])
        assert action == action_of(source, target, 8, 8)
        assert swap.is_valid_swap(board, source, target)
        looks = [re.fullmatch(r"(Rows|Columns) (\d) (\d):\n(.*)", part, re.DOTALL) for part in said[1].split(" Else ")]
        for look in looks:
            assert look, words
            assert int(look[3]) == int(look[2]) + 1
            bands.add(look[0].partition(":")[0])
            paths = paths_of(look[1], int(look[2]))
            lines = [line.split(" | ") for line in look[4].split("\n")]
            for line, path in zip(lines, paths, strict=False):
                assert line == [name_of[board[r][c]] for r, c in path][: len(line)]
            ends = [threes(board, path)[:1] for path in paths]
            if look is looks[-1] and said[2] == "Take":
                assert not any(ends[: len(lines) - 1])
                assert ends[len(lines) - 1] == [len(lines[-1]) - 1]
                assert all(len(line) == len(path) for line, path in zip(lines[:-1], paths, strict=False))
                assert source in paths[len(lines) - 1][len(lines[-1]) - 3 : len(lines[-1])]
                assert target in wins_of(board, source, along=look[1])
            else:
                assert not any(ends)
                assert sum(map(len, lines)) == 48 + 32
        assert len({look[0].partition(":")[0] for look in looks if look}) == len(looks)
        assert len(looks) == 2 or (len(looks) == 1 and said[2] == "Take")
        how["not at all" if said[2] == "Else" else ("first", "second")[len(looks) - 1]] += 1
    assert len(bands) == 14
    assert min(how.values()) > 10


@pytest.mark.parametrize(("rows", "cols"), [(3, 6), (2, 3), (4, 1)])
def test_swap_teaches_on_boards_of_any_shape(rows: int, cols: int) -> None:
    for board, _, words in lessons("swap", 32, 4, rows=rows, cols=cols):
        source, target = cells_in(words)[-2:]
        assert swap.is_valid_swap(board, source, target)
        kind = board[source[0]][source[1]]
        assert " Else" in words or words.split(" Take")[0].endswith(envs.make("swap").cell_names()[kind])


def wins_of(board: list[list[int]], at: Cell, along: str) -> list[Cell]:
    """The neighbours of a cell with which its tile can be exchanged so that this tile stands in a run along a line."""
    found, kind = [], board[at[0]][at[1]]
    for down, right in ((-1, 0), (0, -1), (0, 1), (1, 0)):
        r, c = at[0] + down, at[1] + right
        if 0 <= r < 8 and 0 <= c < 8 and board[r][c] != kind:
            after = [list(row) for row in board]
            after[at[0]][at[1]], after[r][c] = after[r][c], kind
            row, col = after[r], [line[c] for line in after]
            if (run_through(row, c) if along == "Rows" else run_through(col, r)) >= 3:
                found.append((r, c))
    return found


def run_through(line: list[int], at: int) -> int:
    """How many equal cells in a row a cell stands among."""
    first = last = at
    while first > 0 and line[first - 1] == line[at]:
        first -= 1
    while last + 1 < len(line) and line[last + 1] == line[at]:
        last += 1
    return last - first + 1


@pytest.mark.parametrize("size", [(4, 4), (2, 5)])
def test_2048_says_what_each_line_makes_and_goes_the_way_of_the_largest(size: tuple[int, int]) -> None:
    seen = lessons("game_2048", 16, 20, rows=size[0], cols=size[1])
    assert len(seen) > 150
    for board, action, words in seen:
        said = re.fullmatch(r"Rows:((?: \.| \d+)+) Columns:((?: \.| \d+)+) Free:((?: \.| \d)+) Best: (\d)\.", words)
        assert said, words
        values = [[2**cell if cell else 0 for cell in row] for row in board]
        columns = [list(column) for column in zip(*values, strict=True)]
        made = []
        for lines, text_of in ((values, said[1]), (columns, said[2])):
            largest = [largest_merge(line) for line in lines]
            assert text_of.split() == [str(tile or ".") for tile in largest]
            made.append(max(largest))
        legal = game_2048.legal_actions(values)
        assert said[3].split() == [str(way) if way in legal else "." for way in range(4)]
        if max(made) == 0:
            wanted = next(move for move in (3, 2, 1, 0) if move in legal)
        else:
            wanted = 2 if made[1] > made[0] else 3
        assert int(said[4]) == action == wanted
        assert action in legal


def largest_merge(line: list[int]) -> int:
    """The largest tile that a line makes when it slides."""
    tiles = [tile for tile in line if tile]
    return max((2 * a for a, b in itertools.pairwise(tiles) if a == b), default=0)


@pytest.mark.parametrize(
    ("game", "board"),
    [
        (envs.make("game_2048", rows=2, cols=2), "2 | 4\n4 | 2"),
        (envs.make("shisen_sho", rows=1, cols=4), "- | - | - | -"),
        (envs.make("swap", rows=1, cols=4), "Red circle | Red square | Red circle | Red square"),
    ],
)
def test_where_nothing_is_legal_the_teacher_says_nothing(game: envs.Game[Any], board: str) -> None:
    action, words = jax.jit(game.teach)(game.from_text(board), jax.random.key(0))
    assert int(action) == game.invalid_action
    assert not np.asarray(words).any()
