"""What the teachers say is true, by the oracles, and their move follows from it."""

import itertools
import re
from typing import Any

import jax
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import text
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


def places_in(scan: str, cols: int) -> dict[Cell, Cell]:
    """What a scan says of each cell that it does not pass over with a dot."""
    pieces = re.findall(r" (\.|\(\d+, \d+\))", scan)
    return {divmod(i, cols): cells_in(piece)[0] for i, piece in enumerate(pieces) if piece != "."}


def first_tile(board: list[list[int]], at: Cell, step: Cell) -> Cell | None:
    """The first tile that one sees from a cell in a direction."""
    r, c = at[0] + step[0], at[1] + step[1]
    while 0 <= r < len(board) and 0 <= c < len(board[0]):
        if board[r][c]:
            return r, c
        r, c = r + step[0], c + step[1]
    return None


def likes_in_sight(board: list[list[int]], at: Cell, steps: list[Cell]) -> list[Cell]:
    """The tiles like the one of a cell that are the first in these directions."""
    kind = board[at[0]][at[1]]
    seen = [first_tile(board, at, step) for step in steps]
    return [cell for cell in seen if cell is not None and kind and board[cell[0]][cell[1]] == kind]


@pytest.mark.parametrize(("game_id", "size"), [("shisen_sho", 6), ("shisen_sho_cifar10", 6), ("shisen_sho", 4)])
def test_shisen_sho_marks_tiles_whose_left_neighbour_is_their_like_and_takes_the_first(game_id: str, size: int) -> None:
    seen = lessons(game_id, 24, 20, rows=size, cols=size)
    name_of = envs.make(game_id, rows=size, cols=size).cell_names()
    assert len(seen) > 200
    num_joined = 0
    for board, action, words in seen:
        said = re.fullmatch(r"Twins:\n(.*) (Take|A path joins) (\(.*\))\.", words, re.DOTALL)
        assert said, words
        cells = [(r, c) for r in range(size) for c in range(size)]
        likes = {cell: likes_in_sight(board, cell, [(0, -1)]) for cell in cells}
        marked = {cell: seen[0] for cell, seen in likes.items() if seen}
        names = [
            [f"({r}, {c})" if (r, c) in marked else name_of[board[r][c]] for c in range(size)] for r in range(size)
        ]
        assert said[1].replace(" (", " | (") == "\n".join(" | ".join(row) for row in names)
        a, b = cells_in(said[3])
        assert action == action_of(a, b, size, size)
        pairs = shisen_sho.legal_pairs(board)
        if marked:
            assert (said[2], a, b) == ("Take", min(marked), marked[min(marked)])
            assert (a, b) in pairs
        else:
            num_joined += 1
            steps = {pair: abs(pair[0][0] - pair[1][0]) + abs(pair[0][1] - pair[1][1]) for pair in pairs}
            assert said[2] == "A path joins"
            assert (a, b) == min(pair for pair in pairs if steps[pair] == min(steps.values()) and pair[0] < pair[1])
    assert size > 4 or num_joined


def test_swap_names_where_a_swap_brings_a_tile_to_two_others_and_takes_the_first() -> None:
    seen = lessons("swap", 16, 12)
    assert len(seen) > 150
    for board, action, words in seen:
        said = re.fullmatch(r"Moves:((?: \.| \(\d+, \d+\))+) Take (\(.*\))\.", words)
        assert said, words
        targets = {cell: wins_of(board, cell) for cell in np.ndindex(8, 8)}
        marked = {cell: min(wins) for cell, wins in targets.items() if wins}
        assert said[1].count(" .") + len(marked) == 64
        assert places_in(said[1], 8) == marked
        source, target = cells_in(said[2])
        assert (source, target) == (min(marked), marked[min(marked)])
        assert action == action_of(source, target, 8, 8)
        assert swap.is_valid_swap(board, source, target)


def wins_of(board: list[list[int]], at: Cell) -> list[Cell]:
    """The neighbours of a cell with which its tile can be exchanged so that this tile stands in a run."""
    found, kind = [], board[at[0]][at[1]]
    for down, right in ((-1, 0), (0, -1), (0, 1), (1, 0)):
        r, c = at[0] + down, at[1] + right
        if 0 <= r < 8 and 0 <= c < 8 and board[r][c] != kind:
            after = [list(row) for row in board]
            after[at[0]][at[1]], after[r][c] = after[r][c], kind
            row, col = after[r], [line[c] for line in after]
            if run_through(row, c) >= 3 or run_through(col, r) >= 3:
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
