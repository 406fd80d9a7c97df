"""2048 in plain Python. Written from the rules, not from the implementation.

A cell holds an exponent: 0 is empty, 1 is the tile 2, 2 is the tile 4, k is the tile 2**k.
Actions: 0 up, 1 right, 2 down, 3 left. A board may have any number of rows and columns.
"""

Board = list[list[int]]
Cell = tuple[int, int]
FrozenBoard = tuple[tuple[int, ...], ...]

UP, RIGHT, DOWN, LEFT = 0, 1, 2, 3
ACTIONS = (UP, RIGHT, DOWN, LEFT)
SPAWN_EXPONENTS = (1, 2)


def slide_line(line: list[int]) -> tuple[list[int], int]:
    """Slide one line towards index 0; the reward is the sum of the merged tiles' values.

    Tiles [2 2 2 2] -> [4 4 0 0], [2 2 4 0] -> [4 4 0 0], [4 2 2 0] -> [4 4 0 0];
    in exponents [1 1 1 1] -> [2 2 0 0], reward 8.
    """
    waiting = [exponent for exponent in line if exponent != 0]  # the tile nearest the wall first
    settled: list[int] = []
    reward = 0
    while waiting:
        tile = waiting.pop(0)
        if waiting and waiting[0] == tile:
            waiting.pop(0)
            tile += 1  # goes straight to `settled`, so it cannot merge again
            reward += 2**tile
        settled.append(tile)
    return settled + [0] * (len(line) - len(settled)), reward


def lines_from_wall(rows: int, cols: int, action: int) -> list[list[Cell]]:
    """The cells of every line along `action`, each line listed from the wall outwards.

    2x3, right: [[(0,2) (0,1) (0,0)], [(1,2) (1,1) (1,0)]].
    """
    if action == UP:
        return [[(r, c) for r in range(rows)] for c in range(cols)]
    if action == RIGHT:
        return [[(r, c) for c in reversed(range(cols))] for r in range(rows)]
    if action == DOWN:
        return [[(r, c) for r in reversed(range(rows))] for c in range(cols)]
    if action == LEFT:
        return [[(r, c) for c in range(cols)] for r in range(rows)]
    raise ValueError(f"action must be one of {ACTIONS}, got {action}")


def slide(board: Board, action: int) -> tuple[Board, int, bool]:
    """Slide the whole board, without a spawn: (new board, reward, whether anything changed).

    [[1 1] [0 1]], left -> [[2 0] [1 0]], 4, True.
    """
    new_board = [list(row) for row in board]
    reward = 0
    for cells in lines_from_wall(len(board), len(board[0]), action):
        new_line, line_reward = slide_line([board[r][c] for r, c in cells])
        reward += line_reward
        for (r, c), exponent in zip(cells, new_line, strict=True):
            new_board[r][c] = exponent
    return new_board, reward, new_board != board


def is_legal(board: Board, action: int) -> bool:
    """A move is legal if it changes the board. [[1 2]]: left is not legal; [[0 2]]: left is."""
    _, _, changed = slide(board, action)
    return changed


def legal_actions(board: Board) -> list[int]:
    """The legal actions in ascending order. [[1 0] [0 0]] -> [1 2] (right, down)."""
    return [action for action in ACTIONS if is_legal(board, action)]


def is_over(board: Board) -> bool:
    """Whether no move is left. [[1 2] [2 1]] -> True; [[1 1] [2 3]] -> False."""
    return legal_actions(board) == []


def successors(board: Board, action: int) -> set[FrozenBoard]:
    """Every board that can follow `action`: the slid board plus one 2 or 4 in any empty cell.

    [[1 1]], left -> {[[2 1]], [[2 2]]}. An illegal move spawns nothing: {the board itself}.
    """
    slid, _, changed = slide(board, action)
    if not changed:
        return {_freeze(board)}
    found: set[FrozenBoard] = set()
    for r, row in enumerate(slid):
        for c, exponent in enumerate(row):
            if exponent == 0:
                for spawn in SPAWN_EXPONENTS:
                    after = [list(slid_row) for slid_row in slid]
                    after[r][c] = spawn
                    found.add(_freeze(after))
    return found


def _freeze(board: Board) -> FrozenBoard:
    return tuple(tuple(row) for row in board)
