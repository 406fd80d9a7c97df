"""The facts of games agree with the oracles, fact by fact."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from tests.envs import helpers
from tests.oracles import game_2048, shisen_sho, swap

Cell = tuple[int, int]
STEPS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}


def facts(game: envs.Game[Any], num_games: int, num_steps: int) -> list[tuple[list[list[int]], dict[str, np.ndarray]]]:
    """Boards from play, with their facts by name, bool[R, C] each."""
    return facts_of(game, helpers.play(game, num_games, num_steps).flat().states)


def facts_of(game: envs.Game[Any], states: Any) -> list[tuple[list[list[int]], dict[str, np.ndarray]]]:
    boards, found = jax.jit(jax.vmap(lambda state: (game.cells(state), game.facts(state))))(states)
    assert found.shape == (len(boards), game.rows, game.cols, len(game.fact_names))
    assert len(set(game.fact_names)) == len(game.fact_names)
    named = [dict(zip(game.fact_names, np.moveaxis(np.asarray(each), -1, 0), strict=True)) for each in found]
    return list(zip(helpers.to_lists(boards), named, strict=True))


def check(
    game: envs.Game[Any], wanted_of: Callable[[list[list[int]]], Callable[[str, Cell], bool]], states: Any = None
) -> None:
    seen = facts(game, 6, 12) if states is None else facts_of(game, states)
    held = dict.fromkeys(game.fact_names, 0)
    for board, found in seen:
        wanted = wanted_of(board)
        for name, plane in found.items():
            for cell in np.ndindex(game.rows, game.cols):
                assert bool(plane[cell]) == wanted(name, cell), (name, cell, board)
            held[name] += int(plane.any())
    assert min(held.values()) > 0, held  # a fact that never holds is not tested


def next_tile(board: list[list[int]], cell: Cell, side: str) -> Cell | None:
    """The next tile from a cell across empty ones."""
    (r, c), (down, right) = cell, STEPS[side]
    while True:
        r, c = r + down, c + right
        if not (0 <= r < len(board) and 0 <= c < len(board[0])):
            return None
        if board[r][c]:
            return r, c


def at(board: list[list[int]], cell: Cell | None) -> int:
    return board[cell[0]][cell[1]] if cell else 0


@pytest.mark.parametrize("size", [(4, 4), pytest.param((3, 5), marks=pytest.mark.slow)])
def test_2048(size: tuple[int, int]) -> None:
    def wanted_of(board: list[list[int]]) -> Callable[[str, Cell], bool]:
        after = [game_2048.slide(board, action)[0] for action in game_2048.ACTIONS]

        def line_of(cell: Cell, side: str) -> list[Cell]:
            lines = game_2048.lines_from_wall(*size, list(STEPS).index(side))
            return next(line for line in lines if cell in line)

        def landing(cell: Cell, side: str) -> int:
            """The place of the last tile after the line up to a tile slides."""
            line = line_of(cell, side)
            tiles = [at(board, each) for each in line[: line.index(cell) + 1]]
            return sum(tile > 0 for tile in game_2048.slide_line(tiles)[0]) - 1

        def wanted(name: str, cell: Cell) -> bool:
            what, side, *rest = name.split()
            if what == "beside":
                side, rest = rest[0], [side]
            slid = after[list(STEPS).index(side)]
            if what in ("now", "then"):
                seen, sides = (slid, list(STEPS)) if what == "then" else (board, [side])
                return max(largest_merge(seen, each) for each in sides) >= int(rest[0])
            if at(board, cell) == 0:
                return False
            place = landing(cell, side)
            landed = line_of(cell, side)[place]
            if what == "moves":
                return landed != cell
            if what == "lands":
                return place == int(rest[0])
            if what == "merges":
                return at(slid, landed) != at(board, cell)
            if what == "beside":
                return at(slid, next_tile(slid, landed, rest[0])) == at(slid, landed)
            return at(board, next_tile(board, cell, side)) == at(board, cell)

        return wanted

    game = envs.make("game_2048", rows=size[0], cols=size[1])
    rng = np.random.default_rng(0)
    is_empty = rng.random((60, *size)) < 0.5 * rng.random((60, 1, 1))
    boards = np.where(is_empty, 0, rng.integers(1, 10, (60, 1, 1)) - rng.integers(0, 2, (60, *size)))
    from_cells = functools.partial(game.from_cells, seed=jnp.uint32(0), level=game.traced_level())
    check(game, wanted_of, jax.vmap(from_cells)(jnp.asarray(boards, jnp.int32)))


def largest_merge(board: list[list[int]], side: str) -> int:
    """The largest tile that two equal tiles next to each other would make."""
    pairs = (
        (at(board, cell), at(board, next_tile(board, cell, side))) for cell in np.ndindex(len(board), len(board[0]))
    )
    return max((2 ** (tile + 1) for tile, near in pairs if tile == near > 0), default=0)


@pytest.mark.parametrize(
    ("game_id", "size"), [pytest.param("shisen_sho", (6, 6), marks=pytest.mark.slow), ("shisen_sho_cifar10", (4, 5))]
)
def test_shisen_sho(game_id: str, size: tuple[int, int]) -> None:
    def wanted_of(board: list[list[int]]) -> Callable[[str, Cell], bool]:
        pairs = shisen_sho.legal_pairs(board)
        ahead = {a: min(b for first, b in pairs if first == a and b > a) for a, c in pairs if c > a}

        def wanted(name: str, cell: Cell) -> bool:
            what, *rest = name.split()
            if what in ("like", "border"):
                near = next_tile(board, cell, rest[0])
                is_tile = at(board, cell) > 0
                return is_tile and (near is None if what == "border" else at(board, near) == at(board, cell))
            if name == "partner":
                return any(a == cell for a, _ in pairs)
            if name == "named":
                return cell in ahead and cell == min(a for a in ahead if a[0] == cell[0])
            line, index = rest[1], int(rest[2])
            return cell in ahead and ahead[cell][("row", "column").index(line)] == index

        return wanted

    check(envs.make(game_id, rows=size[0], cols=size[1]), wanted_of)


def test_swap() -> None:
    def wanted_of(board: list[list[int]]) -> Callable[[str, Cell], bool]:
        swaps = swap.valid_swaps(board)

        def is_legal(cell: Cell, side: str) -> bool:
            down, right = STEPS[side]
            return (cell, (cell[0] + down, cell[1] + right)) in swaps

        def wanted(name: str, cell: Cell) -> bool:
            if name in ("right", "down"):
                return is_legal(cell, name)
            if name.startswith("named"):
                first = next(
                    (c for c in range(8) if is_legal((cell[0], c), "right") or is_legal((cell[0], c), "down")), None
                )
                side = "right" if is_legal(cell, "right") else "down"
                return cell[1] == first and name == f"named {side}"
            down, right = map(int, re.findall(r"-?\d+", name))
            other = cell[0] + down, cell[1] + right
            is_inside = 0 <= other[0] < 8 and 0 <= other[1] < 8
            return is_inside and at(board, other) == at(board, cell)

        return wanted

    check(envs.make("swap"), wanted_of)
