"""Swap (match-3) in plain Python. Written from the rules, not from the implementation.

A cell holds a kind >= 0; HOLE (-1) marks a removed cell while a board is being resolved. Row 0 is the top.
"""

from collections.abc import Callable

Board = list[list[int]]
Cell = tuple[int, int]

HOLE = -1
RUN_LENGTH = 3


def run_cells(board: Board) -> set[Cell]:
    """All cells in any horizontal or vertical run of at least 3 equal tiles; holes make no run.

    [[5 5 5 1]] -> {(0,0) (0,1) (0,2)}; [[5 5 1 5]] -> {}.
    """
    rows, cols = len(board), len(board[0])
    found: set[Cell] = set()
    for r in range(rows):
        for c in range(cols):
            for dr, dc in ((0, 1), (1, 0)):
                if r + (RUN_LENGTH - 1) * dr >= rows or c + (RUN_LENGTH - 1) * dc >= cols:
                    continue
                kind = board[r][c]
                if kind != HOLE and all(board[r + i * dr][c + i * dc] == kind for i in range(1, RUN_LENGTH)):
                    # a longer run is the union of its windows of 3
                    found.update((r + i * dr, c + i * dc) for i in range(RUN_LENGTH))
    return found


def removal_score(num_removed: int) -> int:
    """m cells removed at once score m*(m-1). 3 -> 6, 4 -> 12, 5 -> 20, 6 -> 30."""
    return num_removed * (num_removed - 1)


def remove_and_fall(board: Board, cells: set[Cell]) -> Board:
    """Remove `cells`; the tiles above fall, in order, and the holes end at the top of each column.

    Column, top first: [1 2 3 4] without 2 and 4 -> [-1 -1 1 3].
    """
    rows, cols = len(board), len(board[0])
    new_board = [[HOLE] * cols for _ in range(rows)]
    for c in range(cols):
        free_row = rows - 1
        for r in reversed(range(rows)):  # the lowest tile lands first
            if (r, c) not in cells and board[r][c] != HOLE:
                new_board[free_row][c] = board[r][c]
                free_row -= 1
    return new_board


def swap_cells(board: Board, a: Cell, b: Cell) -> Board:
    """Exchange two cells of a copy. [[1 2]], (0,0) (0,1) -> [[2 1]]."""
    new_board = [list(row) for row in board]
    new_board[a[0]][a[1]] = board[b[0]][b[1]]
    new_board[b[0]][b[1]] = board[a[0]][a[1]]
    return new_board


def is_adjacent(a: Cell, b: Cell) -> bool:
    """Whether the cells share an edge. (0,0) (0,1) -> True; (0,0) (1,1) -> False; (0,0) (0,0) -> False."""
    return abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1


def is_valid_swap(board: Board, a: Cell, b: Cell) -> bool:
    """Both cells on the board, adjacent, and the swapped board has a run.

    [[1 1 2 1]]: (0,2) (0,3) -> True; (0,0) (0,1) -> False: equal tiles on a run-free board make no run.
    """
    if not _is_inside(board, a) or not _is_inside(board, b) or not is_adjacent(a, b):
        return False
    return run_cells(swap_cells(board, a, b)) != set()


def valid_swaps(board: Board) -> set[tuple[Cell, Cell]]:
    """All ordered pairs that are valid swaps. [[1 1 2 1]] -> {((0,2), (0,3)), ((0,3), (0,2))}."""
    cells = [(r, c) for r in range(len(board)) for c in range(len(board[0]))]
    neighbors = ((0, 1), (1, 0), (0, -1), (-1, 0))
    pairs = [((r, c), (r + dr, c + dc)) for r, c in cells for dr, dc in neighbors]
    return {(a, b) for a, b in pairs if is_valid_swap(board, a, b)}


def resolve(board: Board, refill: Callable[[Board], Board]) -> tuple[Board, int, list[int]]:
    """Remove runs, let tiles fall, refill, until no run is left: (board, total score, cells removed in each pass).

    Passes that remove 3 and then 4 cells score 6 + 12 = 18, counts [3 4]; a board without a run: 0 and [].
    `refill` gets a copy and must replace every hole and move nothing else.
    """
    current = [list(row) for row in board]
    total = 0
    counts: list[int] = []
    while cells := run_cells(current):
        total += removal_score(len(cells))
        counts.append(len(cells))
        fallen = remove_and_fall(current, cells)
        current = refill([list(row) for row in fallen])
        _check_refill(fallen, current)
    return current, total, counts


def _check_refill(before: Board, after: Board) -> None:
    for row_before, row_after in zip(before, after, strict=True):
        for kind_before, kind_after in zip(row_before, row_after, strict=True):
            if kind_after == HOLE or kind_before not in (HOLE, kind_after):
                raise ValueError(f"refill must replace the holes and nothing else: {before} -> {after}")


def _is_inside(board: Board, cell: Cell) -> bool:
    return 0 <= cell[0] < len(board) and 0 <= cell[1] < len(board[0])
