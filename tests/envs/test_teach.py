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


@pytest.mark.parametrize("game_id", ["shisen_sho", "shisen_sho_cifar10"])
def test_shisen_sho_lists_the_tiles_of_a_type_and_takes_the_nearest_pair_that_matches(game_id: str) -> None:
    names = envs.make(game_id).cell_names()
    seen = lessons(game_id, 24, 20)
    assert len(seen) > 200
    assert len({words.split(". ")[1].split(" (")[0] for *_, words in seen}) == 2, "side by side, and joined by a path"
    for board, action, words in seen:
        said = re.fullmatch(r"([\w ]+):((?: \(\d+, \d+\))+)\. (Side by side:|A path joins)(.*)\.", words)
        assert said, words
        kind, (a, b) = names.index(said[1]), cells_in(said[4])
        of_kind = [(r, c) for r, row in enumerate(board) for c, cell in enumerate(row) if cell == kind]
        assert cells_in(said[2]) == of_kind[:8]
        assert action == action_of(a, b, 6, 6)
        pairs = shisen_sho.legal_pairs(board)
        steps = {pair: abs(pair[0][0] - pair[1][0]) + abs(pair[0][1] - pair[1][1]) for pair in pairs}
        nearest = min(steps.values())
        assert (a, b) == min(pair for pair in pairs if steps[pair] == nearest and pair[0] < pair[1])
        assert (said[3] == "Side by side:") == (nearest == 1)


def test_swap_names_two_equal_tiles_and_the_third_that_comes_to_their_line() -> None:
    names = envs.make("swap").cell_names()
    seen = lessons("swap", 16, 12)
    assert len(seen) > 150
    for board, action, words in seen:
        said = re.fullmatch(r"([\w ]+): (\(.*\)) need (\(.*\))\. It comes from (\(.*\))\.", words)
        assert said, words
        pair, (target,), (source,) = cells_in(said[2]), cells_in(said[3]), cells_in(said[4])
        kind = names.index(said[1])
        assert [board[r][c] for r, c in (*pair, source)] == [kind] * 3
        assert action == action_of(source, target, 8, 8)
        line = sorted([*pair, target])
        assert {(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(line)} in ({(0, 1)}, {(1, 0)})
        assert swap.is_valid_swap(board, source, target)


@pytest.mark.parametrize("size", [(4, 4), (2, 5)])
def test_2048_counts_what_merges_says_what_moves_and_takes_the_experts_move(size: tuple[int, int]) -> None:
    game = envs.make("game_2048", rows=size[0], cols=size[1])
    expert = jax.jit(lambda board: game.expert(game.from_text(board), jax.random.key(0)))
    seen = lessons("game_2048", 16, 20, rows=size[0], cols=size[1])
    assert len(seen) > 150
    for board, action, words in seen:
        said = re.fullmatch(r"Pairs: (\d+) in rows, (\d+) in columns\. Free:((?: \d)*)\. Best: (\d)\.", words)
        assert said, words
        values = [[2**cell if cell else 0 for cell in row] for row in board]
        for count, direction in ((said[1], 3), (said[2], 0)):
            slid = game_2048.slide(values, direction)[0]
            assert int(count) == np.count_nonzero(values) - np.count_nonzero(slid)
        assert [int(i) for i in said[3].split()] == sorted(game_2048.legal_actions(values))
        assert int(said[4]) == action
    board, action, _ = seen[-1]
    names = game.cell_names()
    as_text = text.encode("\n".join(" | ".join(names[cell] for cell in row) for row in board), game.board_text.length)
    assert int(expert(as_text)) == action


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
