"""Examples worked by hand from the rules, to test the oracles themselves."""

import random
from collections.abc import Callable

import pytest

from . import game_2048, shisen_sho, swap

Board = list[list[int]]
Cell = tuple[int, int]


# --- 2048 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected", "reward"),
    [
        ([1, 1, 1, 1], [2, 2, 0, 0], 8),  # 2 2 2 2 -> 4 4 0 0
        ([1, 1, 2, 0], [2, 2, 0, 0], 4),  # 2 2 4 0 -> 4 4 0 0: the new 4 does not merge again
        ([2, 1, 1, 0], [2, 2, 0, 0], 4),  # 4 2 2 0 -> 4 4 0 0: nor does the old 4 with the new one
        ([1, 1, 1, 0], [2, 1, 0, 0], 4),  # the pair nearest the wall first
        ([0, 1, 1, 1], [2, 1, 0, 0], 4),
        ([1, 0, 0, 1], [2, 0, 0, 0], 4),  # across a gap
        ([1, 2, 1, 2], [1, 2, 1, 2], 0),
        ([0, 0, 0, 3], [3, 0, 0, 0], 0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0),
        ([7, 7, 0, 0], [8, 0, 0, 0], 256),  # 128 + 128: the 8-bit overflow of the release
        ([3, 3, 1, 1], [4, 2, 0, 0], 20),  # 8 8 2 2 -> 16 4: 16 + 4
        ([1, 1, 1, 1, 1], [2, 2, 1, 0, 0], 8),
        ([1], [1], 0),
    ],
)
def test_slide_line(line: list[int], expected: list[int], reward: int) -> None:
    before = list(line)
    assert game_2048.slide_line(line) == (expected, reward)
    assert line == before


@pytest.mark.parametrize(
    ("action", "expected", "reward"),
    [
        (game_2048.UP, [[2, 3, 3], [0, 1, 0]], 12),  # columns [1 1] -> 4, [3 1] stays, [2 2] -> 8
        (game_2048.RIGHT, [[1, 3, 2], [0, 2, 2]], 4),
        (game_2048.DOWN, [[0, 3, 0], [2, 1, 3]], 12),
        (game_2048.LEFT, [[1, 3, 2], [2, 2, 0]], 4),
    ],
)
def test_slide_each_direction(action: int, expected: Board, reward: int) -> None:
    board = [[1, 3, 2], [1, 1, 2]]
    assert game_2048.slide(board, action) == (expected, reward, True)
    assert board == [[1, 3, 2], [1, 1, 2]]


def test_slide_column_merges_at_its_wall() -> None:
    board = [[1], [1], [1], [0]]
    assert game_2048.slide(board, game_2048.UP) == ([[2], [1], [0], [0]], 4, True)
    assert game_2048.slide(board, game_2048.DOWN) == ([[0], [0], [1], [2]], 4, True)
    assert game_2048.slide(board, game_2048.LEFT) == (board, 0, False)


def test_slide_refuses_an_unknown_action() -> None:
    with pytest.raises(ValueError, match="action"):
        game_2048.slide([[1]], 4)


def test_legal_actions_and_over() -> None:
    assert game_2048.legal_actions([[1, 0], [0, 0]]) == [game_2048.RIGHT, game_2048.DOWN]
    assert game_2048.legal_actions([[1, 1], [2, 3]]) == [game_2048.RIGHT, game_2048.LEFT]
    assert game_2048.is_legal([[0, 2]], game_2048.LEFT)
    assert not game_2048.is_legal([[1, 2]], game_2048.LEFT)
    full = [[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert game_2048.is_over(full)
    full[3][3] = 7
    assert not game_2048.is_over(full)


def test_successors() -> None:
    assert game_2048.successors([[1, 1]], game_2048.LEFT) == {((2, 1),), ((2, 2),)}
    assert game_2048.successors([[1, 0]], game_2048.LEFT) == {((1, 0),)}  # illegal: nothing spawns
    assert game_2048.successors([[0, 1], [0, 0]], game_2048.DOWN) == {
        ((1, 0), (0, 1)),
        ((2, 0), (0, 1)),
        ((0, 1), (0, 1)),
        ((0, 2), (0, 1)),
        ((0, 0), (1, 1)),
        ((0, 0), (2, 1)),
    }


# --- Shisen-Sho ------------------------------------------------------------------------------------------------------

STRAIGHT = [[2, 3, 2], [1, 0, 1], [3, 2, 3]]
STRAIGHT_BLOCKED = [[2, 3, 4], [1, 5, 1], [6, 7, 8]]
ONE_TURN = [[2, 3, 2, 3], [3, 1, 0, 2], [2, 3, 1, 3], [3, 2, 3, 2]]
ONE_TURN_BLOCKED = [[2, 3, 2, 3], [3, 1, 4, 2], [2, 3, 1, 3], [3, 2, 3, 2]]
TWO_TURNS = [[2, 3, 2, 3, 2], [3, 1, 0, 2, 3], [2, 3, 0, 3, 2], [3, 2, 0, 1, 3], [2, 3, 2, 3, 2]]
TWO_TURNS_BLOCKED = [[2, 3, 2, 3, 2], [3, 1, 0, 2, 3], [2, 3, 4, 3, 2], [3, 2, 0, 1, 3], [2, 3, 2, 3, 2]]
STAIRCASE = [[2, 3, 2, 3, 2], [3, 1, 0, 2, 3], [2, 3, 0, 0, 2], [3, 2, 3, 1, 3], [2, 3, 2, 3, 2]]
STAIRCASE_OPENED = [[2, 3, 2, 3, 2], [3, 1, 0, 0, 3], [2, 3, 0, 0, 2], [3, 2, 3, 1, 3], [2, 3, 2, 3, 2]]


@pytest.mark.parametrize(
    ("board", "a", "b", "expected"),
    [
        ([[1, 1], [2, 2]], (0, 0), (0, 1), True),  # neighbors
        ([[1, 2], [1, 2]], (0, 0), (1, 0), True),
        (STRAIGHT, (1, 0), (1, 2), True),
        (STRAIGHT_BLOCKED, (1, 0), (1, 2), False),  # around through the ring: four turns
        ([[2, 3, 4, 5, 6], [7, 1, 1, 1, 8], [9, 9, 9, 9, 9]], (1, 1), (1, 3), False),  # its own kind blocks too
        (ONE_TURN, (1, 1), (2, 2), True),
        (ONE_TURN_BLOCKED, (1, 1), (2, 2), False),
        (TWO_TURNS, (1, 1), (3, 3), True),
        (TWO_TURNS_BLOCKED, (1, 1), (3, 3), False),
        (STAIRCASE, (1, 1), (3, 3), False),  # right, down, right, down: three turns
        (STAIRCASE_OPENED, (1, 1), (3, 3), True),  # right, right, down, down: one
        ([[1, 2, 1], [3, 4, 5]], (0, 0), (0, 2), True),  # over the ring: up, right, down
        ([[3, 4, 5], [1, 2, 1]], (1, 0), (1, 2), True),  # under it
        ([[1, 2], [3, 4], [1, 5]], (0, 0), (2, 0), True),  # left of it
        ([[2, 1], [3, 4], [5, 1]], (0, 1), (2, 1), True),  # right of it
        ([[1, 2, 3], [4, 5, 6], [7, 8, 1]], (0, 0), (2, 2), False),  # corner to corner: three turns
        ([[1, 2], [2, 1]], (0, 0), (1, 1), False),
        ([[2, 1, 3], [1, 4, 5], [6, 7, 8]], (0, 1), (1, 0), False),  # around the corner tile: three turns
        ([[0, 1, 3], [1, 4, 5], [6, 7, 8]], (0, 1), (1, 0), True),  # through the emptied corner: one
        ([[2, 1, 3], [4, 0, 5], [1, 6, 7]], (0, 1), (2, 0), False),  # ring: up, left, down, right: three
        ([[1, 0, 3], [4, 5, 1]], (0, 0), (1, 2), False),  # ring: up, right, down, left: three
        ([[1, 0, 0], [4, 5, 1]], (0, 0), (1, 2), True),  # right, right, down: one
        ([[1, 1]], (0, 0), (0, 0), False),  # one cell
        ([[1, 2]], (0, 0), (0, 1), False),  # two kinds
        ([[0, 0]], (0, 0), (0, 1), False),  # two empty cells
        ([[1, 0]], (0, 0), (0, 1), False),
        ([[1, 1]], (0, 0), (0, 2), False),  # off the board
        ([[1, 1]], (0, 0), (0, -1), False),
    ],
)
def test_can_match(board: Board, a: Cell, b: Cell, expected: bool) -> None:
    assert shisen_sho.can_match(board, a, b) is expected
    assert shisen_sho.can_match(board, b, a) is expected


def test_legal_pairs() -> None:
    assert shisen_sho.legal_pairs([[1, 2, 1], [2, 3, 3]]) == {
        ((0, 0), (0, 2)),
        ((0, 2), (0, 0)),
        ((1, 1), (1, 2)),
        ((1, 2), (1, 1)),
    }
    assert shisen_sho.legal_pairs([[1, 2], [2, 1]]) == set()


def test_shisen_sho_step() -> None:
    assert shisen_sho.step([[1, 1]], (0, 0), (0, 1)) == ([[0, 0]], 1, True)  # cleared
    assert shisen_sho.step([[1, 1], [2, 2]], (0, 0), (0, 1)) == ([[0, 0], [2, 2]], 1, False)
    board = [[1, 1], [2, 2]]
    assert shisen_sho.step(board, (0, 0), (1, 1)) == ([[1, 1], [2, 2]], -1, False)
    assert board == [[1, 1], [2, 2]]
    # The last match leaves a dead position: tiles stay, no pair matches.
    assert shisen_sho.step([[1, 2, 4, 4], [2, 1, 0, 0]], (0, 2), (0, 3)) == ([[1, 2, 0, 0], [2, 1, 0, 0]], 1, True)


def _is_clear(padded: Board, a: Cell, b: Cell) -> bool:
    """Whether a and b share a row or a column with only empty cells strictly between them."""
    if a[0] != b[0] and a[1] != b[1]:
        return False
    rows = range(min(a[0], b[0]), max(a[0], b[0]) + 1)
    cols = range(min(a[1], b[1]), max(a[1], b[1]) + 1)
    return all(padded[r][c] == 0 for r in rows for c in cols if (r, c) not in (a, b))


def test_path_search_agrees_with_three_straight_segments() -> None:
    """At most two turns = at most two corner cells, all three segments clear (a corner is empty or an end)."""
    generator = random.Random(0)
    num_true = num_false = 0
    for _ in range(60):
        rows, cols = generator.randint(1, 4), generator.randint(2, 4)
        board = [[generator.choice([0, 0, 1, 2, 3]) for _ in range(cols)] for _ in range(rows)]
        padded = shisen_sho.pad(board)
        cells = [(r, c) for r in range(rows + 2) for c in range(cols + 2)]
        tiles = [cell for cell in cells if padded[cell[0]][cell[1]] != 0]
        for a in tiles:
            for b in tiles:
                if a == b or padded[a[0]][a[1]] != padded[b[0]][b[1]]:
                    continue
                corners = [cell for cell in cells if padded[cell[0]][cell[1]] == 0 or cell in (a, b)]
                expected = any(
                    _is_clear(padded, a, p) and _is_clear(padded, p, q) and _is_clear(padded, q, b)
                    for p in corners
                    for q in corners
                )
                found = shisen_sho.can_match(board, (a[0] - 1, a[1] - 1), (b[0] - 1, b[1] - 1))
                assert found is expected, (board, a, b)
                num_true, num_false = num_true + expected, num_false + (not expected)
    assert num_true > 50
    assert num_false > 50


# --- Swap ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "expected"),
    [
        ([[5, 5, 5, 1]], {(0, 0), (0, 1), (0, 2)}),
        ([[5, 5, 1, 5]], set()),
        ([[1, 5, 5, 5, 5]], {(0, 1), (0, 2), (0, 3), (0, 4)}),
        ([[0, 0, 0]], {(0, 0), (0, 1), (0, 2)}),  # kind 0 is a tile
        ([[-1, -1, -1]], set()),  # holes are not
        ([[1], [1], [1]], {(0, 0), (1, 0), (2, 0)}),
        ([[1, 1], [1, 1]], set()),  # a square of 2x2 is no run
        ([[1, 2, 3], [2, 1, 2], [3, 2, 1]], set()),  # nor is a diagonal
        ([[1, 1, 1], [1, 2, 3], [1, 3, 2]], {(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)}),  # L
        ([[1, 1, 1], [2, 1, 3], [3, 1, 2]], {(0, 0), (0, 1), (0, 2), (1, 1), (2, 1)}),  # T
        ([[2, 1, 3], [1, 1, 1], [3, 1, 2]], {(0, 1), (1, 0), (1, 1), (1, 2), (2, 1)}),  # plus
        ([[1, 1, 1], [1, 2, 3], [2, 3, 2]], {(0, 0), (0, 1), (0, 2)}),  # an arm of two stays
        ([[1, 1, 1, 2, 2, 2]], {(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5)}),  # two runs at once
    ],
)
def test_run_cells(board: Board, expected: set[Cell]) -> None:
    assert swap.run_cells(board) == expected


def test_removal_score() -> None:
    assert [swap.removal_score(m) for m in (0, 3, 4, 5, 6)] == [0, 6, 12, 20, 30]


def test_remove_and_fall() -> None:
    assert swap.remove_and_fall([[1], [2], [3], [4]], {(1, 0), (3, 0)}) == [[-1], [-1], [1], [3]]
    board = [[4, 5, 6], [1, 1, 1], [7, 8, 9]]
    assert swap.remove_and_fall(board, {(1, 0), (1, 1), (1, 2)}) == [[-1, -1, -1], [4, 5, 6], [7, 8, 9]]
    assert swap.remove_and_fall([[-1, 2], [1, 2]], {(1, 1)}) == [[-1, -1], [1, 2]]
    assert swap.remove_and_fall(board, set()) == board


def test_valid_swaps() -> None:
    board = [[1, 0, 2], [0, 1, 0], [3, 2, 3]]
    assert swap.valid_swaps(board) == {((0, 1), (1, 1)), ((1, 1), (0, 1))}  # row 1 becomes 0 0 0
    assert swap.valid_swaps([[1, 1, 2, 1]]) == {((0, 2), (0, 3)), ((0, 3), (0, 2))}
    assert not swap.is_valid_swap([[1, 1, 2, 1]], (0, 0), (0, 1))  # equal tiles
    assert not swap.is_valid_swap([[1, 2, 1, 1]], (0, 0), (0, 2))  # not adjacent
    assert not swap.is_valid_swap([[1, 1, 1]], (0, 2), (0, 2))  # one cell, even where there is a run
    assert not swap.is_valid_swap([[1, 1, 2], [3, 1, 4], [4, 3, 1]], (0, 2), (1, 1))  # diagonal
    assert swap.is_valid_swap([[1, 1, 2], [3, 4, 1]], (0, 2), (1, 2))
    assert not swap.is_valid_swap([[1, 1, 2], [3, 4, 1]], (0, 2), (-1, 2))  # off the board, no wrap-around


def _refill_from(kinds: list[int]) -> Callable[[Board], Board]:
    """A refill that takes the given kinds in row-major order of the holes."""
    supply = iter(kinds)
    return lambda board: [[next(supply) if kind == swap.HOLE else kind for kind in row] for row in board]


def test_resolve_without_a_run() -> None:
    assert swap.resolve([[1, 2], [2, 1]], _refill_from([])) == ([[1, 2], [2, 1]], 0, [])


def test_resolve_scores_all_runs_of_a_pass_together() -> None:
    board, score, counts = swap.resolve([[1, 1, 1, 2, 2, 2]], _refill_from([1, 2, 3, 4, 5, 6]))
    assert (board, score, counts) == ([[1, 2, 3, 4, 5, 6]], 30, [6])  # 6*5, not 3*2 + 3*2
    _, score, counts = swap.resolve([[1, 1, 1], [1, 2, 3], [1, 3, 2]], _refill_from([4, 5, 6, 7, 8]))
    assert (score, counts) == (20, [5])  # the corner of the L counts once


def test_resolve_cascade_by_falling() -> None:
    board = [[0, 2, 3], [1, 3, 2], [1, 2, 3], [1, 0, 0]]  # column 0 clears, its 0 falls: bottom row 0 0 0
    expected = [[4, 5, 6], [7, 2, 3], [8, 3, 2], [9, 2, 3]]
    assert swap.resolve(board, _refill_from([7, 8, 9, 4, 5, 6])) == (expected, 12, [3, 3])
    assert board == [[0, 2, 3], [1, 3, 2], [1, 2, 3], [1, 0, 0]]


def test_resolve_cascade_by_refill() -> None:
    board, score, counts = swap.resolve([[1, 1, 1, 2]], _refill_from([2, 2, 2, 3, 4, 5, 6]))
    assert (board, score, counts) == ([[3, 4, 5, 6]], 18, [3, 4])  # 6 + 12


def test_resolve_refuses_a_bad_refill() -> None:
    with pytest.raises(ValueError, match="refill"):
        swap.resolve([[1, 1, 1]], lambda board: board)
    with pytest.raises(ValueError, match="refill"):
        swap.resolve([[1, 1, 1, 2]], lambda board: [[3, 4, 5, 6] for _ in board])
