"""Shisen-Sho in plain Python. Written from the rules, not from the implementation.

A cell holds a kind: 0 is empty, kinds start at 1. Two tiles of one kind match if a path with at most two turns joins
them through empty cells, including one ring around the board.
"""

from collections import deque

Board = list[list[int]]
Cell = tuple[int, int]
Direction = tuple[int, int]

DIRECTIONS: tuple[Direction, ...] = ((-1, 0), (0, 1), (1, 0), (0, -1))
MAX_TURNS = 2


def pad(board: Board) -> Board:
    """Put one ring of empty cells around the board. [[1]] -> [[0 0 0] [0 1 0] [0 0 0]]."""
    width = len(board[0]) + 2
    return [[0] * width, *([0, *row, 0] for row in board), [0] * width]


def has_path(padded: Board, start: Cell, goal: Cell) -> bool:
    """Breadth-first search over (cell, direction, turns) from `start` to `goal`, both on the padded board.

    Every cell strictly between the two must be empty; a step may continue straight or turn left or right, never back.
    """
    queue: deque[tuple[Cell, Direction, int]] = deque((start, direction, 0) for direction in DIRECTIONS)
    seen = set(queue)
    while queue:
        (r, c), direction, turns = queue.popleft()
        cell = (r + direction[0], c + direction[1])
        if not _is_inside(padded, cell):
            continue
        if cell == goal:
            return True
        if padded[cell[0]][cell[1]] != 0:
            continue
        for new_direction in DIRECTIONS:
            if new_direction == (-direction[0], -direction[1]):
                continue
            new_turns = turns if new_direction == direction else turns + 1
            node = (cell, new_direction, new_turns)
            if new_turns <= MAX_TURNS and node not in seen:
                seen.add(node)
                queue.append(node)
    return False


def can_match(board: Board, a: Cell, b: Cell) -> bool:
    """Whether the tiles at `a` and `b` match: two tiles of one kind, joined by a path with at most two turns.

    [[1 2 1]]: (0,0) (0,2) -> True, over the ring; [[1 2] [2 1]]: (0,0) (1,1) -> False, three turns.
    Cells outside the board never match.
    """
    if not _is_inside(board, a) or not _is_inside(board, b) or a == b:
        return False
    kind_a, kind_b = board[a[0]][a[1]], board[b[0]][b[1]]
    if kind_a == 0 or kind_a != kind_b:
        return False
    return has_path(pad(board), (a[0] + 1, a[1] + 1), (b[0] + 1, b[1] + 1))


def legal_pairs(board: Board) -> set[tuple[Cell, Cell]]:
    """All ordered pairs that match. [[1 1]] -> {((0,0), (0,1)), ((0,1), (0,0))}."""
    cells = [(r, c) for r in range(len(board)) for c in range(len(board[0]))]
    return {(a, b) for a in cells for b in cells if can_match(board, a, b)}


def is_cleared(board: Board) -> bool:
    """No tile is left. [[0 0]] -> True."""
    return all(kind == 0 for row in board for kind in row)


def is_over(board: Board) -> bool:
    """Cleared, or no pair can be matched. [[0 0]] -> True; [[1 2] [2 1]] -> True; [[1 1]] -> False."""
    return is_cleared(board) or legal_pairs(board) == set()


def step(board: Board, a: Cell, b: Cell) -> tuple[Board, int, bool]:
    """Plays one pair: (new board, +1 for a match else -1, whether the new board is over).

    [[1 1]], (0,0) (0,1) -> [[0 0]], +1, True. This is only the rule: it returns -1 even on a board that is already
    over, where the game contract requires reward 0 (check `is_over` first).
    """
    new_board = [list(row) for row in board]
    if not can_match(board, a, b):
        return new_board, -1, is_over(new_board)
    for r, c in (a, b):
        new_board[r][c] = 0
    return new_board, 1, is_over(new_board)


def _is_inside(board: Board, cell: Cell) -> bool:
    return 0 <= cell[0] < len(board) and 0 <= cell[1] < len(board[0])
