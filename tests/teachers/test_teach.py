"""The teachers' rationales are true according to the oracles, and their moves follow from them."""

import contextlib
import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import text
from g1jax.envs.games.game_2048 import move_values
from g1jax.errors import G1Error
from g1jax.teachers import Choice, core, register_teacher, teach
from g1jax.teachers.testing import check_teacher
from g1jax.typing import Array
from tests.envs import helpers
from tests.oracles import game_2048, shisen_sho, swap

Cell = tuple[int, int]


def demonstrations(
    game_id: str, num_games: int, num_steps: int, **level: Any
) -> list[tuple[list[list[int]], int, str]]:
    """(board, action, rationale) of unfinished states met in play."""
    game = envs.make(game_id, **level)
    states = helpers.play(game, num_games, num_steps).flat().states

    def look(state: Any, key: Array) -> Any:
        return game.cells(state), *teach(game, state, key)

    boards, actions, rationales = jax.jit(jax.vmap(look))(states, helpers.keys(num_games * num_steps))
    is_unfinished = ~np.asarray(states.terminated)
    chosen = zip(
        helpers.to_lists(np.asarray(boards)[is_unfinished]),
        np.asarray(actions)[is_unfinished],
        np.asarray(rationales)[is_unfinished],
        strict=True,
    )
    return [(board, int(action), text.decode(rationale)) for board, action, rationale in chosen]


def cells_in(rationale: str) -> list[Cell]:
    return [(int(r), int(c)) for r, c in re.findall(r"\((\d+), (\d+)\)", rationale)]


def action_of(a: Cell, b: Cell, rows: int, cols: int) -> int:
    return ((a[0] * cols + a[1]) * rows + b[0]) * cols + b[1]


@pytest.mark.parametrize(
    ("game_id", "rows", "cols"),
    [
        pytest.param("shisen_sho", 6, 6, marks=pytest.mark.slow),
        pytest.param("shisen_sho_cifar10", 4, 4, marks=pytest.mark.slow),
        ("shisen_sho", 2, 8),
        pytest.param("swap", 8, 8, marks=pytest.mark.slow),
        ("swap", 3, 6),
        pytest.param("swap", 4, 1, marks=pytest.mark.slow),
    ],
)
def test_each_row_names_its_first_legal_pair_and_one_of_them_is_taken(game_id: str, rows: int, cols: int) -> None:
    chosen = set()
    seen = demonstrations(game_id, 16, 12, rows=rows, cols=cols)
    assert len(seen) > 50
    for board, action, rationale in seen:
        pairs = shisen_sho.legal_pairs(board) if game_id != "swap" else swap.valid_swaps(board)
        *lines, taken = rationale.split("\n")
        for row, line in enumerate(lines):
            ahead = sorted((a, b) for a, b in pairs if a < b and a[0] == row)
            assert line == f"{row} " + (" ".join(f"({r}, {c})" for r, c in ahead[0]) if ahead else "-")
        match = re.fullmatch(r"Take row (\d+)\.", taken)
        assert match, rationale
        first, second = cells_in(lines[int(match[1])])
        assert action == action_of(first, second, rows, cols)
        chosen.add(int(match[1]))
    assert len(lines) == rows
    assert len(chosen) > 1


@pytest.mark.parametrize("size", [(4, 4), pytest.param((2, 5), marks=pytest.mark.slow)])
def test_2048_says_what_two_moves_merge_and_takes_the_most(size: tuple[int, int]) -> None:
    game = envs.make("game_2048", rows=size[0], cols=size[1])
    seen = demonstrations("game_2048", 16, 20, rows=size[0], cols=size[1])
    assert len(seen) > 150
    states = jax.vmap(lambda cells: game.from_cells(cells, jnp.uint32(0), game.traced_level()))(
        jnp.array([board for board, _, _ in seen])
    )
    values = jax.jit(jax.vmap(lambda state: move_values(state.board, state.level.spawn_four)))(states)
    ways = ("up", "right", "down", "left")
    for (board, action, rationale), value in zip(seen, np.asarray(values), strict=True):
        legal = game_2048.legal_actions(board)
        now = largest_merges(board)
        then = [max(largest_merges(game_2048.slide(board, way)[0])) for way in range(4)]
        lines = [f"{name} {now[way]} {then[way]}" if way in legal else f"{name} -" for way, name in enumerate(ways)]
        assert rationale == "\n".join([*lines, f"Take {ways[action]}."])
        most = [way for way in legal if now[way] + then[way] == max(now[way] + then[way] for way in legal)]
        assert action == max(most, key=lambda way: value[way])


def largest_merges(board: list[list[int]]) -> list[int]:
    """The largest tile that a move in each direction makes."""
    columns = [list(column) for column in zip(*board, strict=True)]
    along, across = (
        max(
            2 ** (a + 1) if a == b else 0
            for line in lines
            for a, b in [*itertools.pairwise(filter(None, line)), (0, 1)]
        )
        for lines in (columns, board)
    )
    return [along, across, along, across]


@pytest.mark.parametrize(
    ("game_id", "choice"),
    [
        ("game_2048", "uniform"),
        ("swap", "first"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("game_2048", "first"), ("swap", "uniform"))),
    ],
)
def test_a_weak_choice_ignores_what_the_rationale_lists(game_id: str, choice: Choice) -> None:
    game = envs.make(game_id, rows=3, cols=5)
    states = helpers.play(game, 16, 4).flat().states

    def look(state: Any, key: Array) -> Any:
        return teach(game, state, key)[1], *teach(game, state, key, choice)[::-1], game.legal_actions(state)

    seen = jax.jit(jax.vmap(look))(states, helpers.keys(64))
    is_unfinished = ~np.asarray(states.terminated)
    taken, legal = [], []
    for of_teacher, rationale, action, mask in zip(
        *(np.asarray(column)[is_unfinished] for column in seen), strict=True
    ):
        *listed, last = text.decode(rationale).split("\n")
        assert listed == text.decode(of_teacher).split("\n")[:-1]
        taken.append(last)
        legal.append(bool(mask[action]))
        if game_id == "game_2048":
            assert last == f"Take {('up', 'right', 'down', 'left')[action]}."
        else:
            row = int(last.removeprefix("Take row ")[:-1])
            first, second = divmod(int(action), 15)
            named = cells_in(listed[row])
            assert [divmod(first, 5), divmod(second, 5)] == named if named else (first // 5 == row and not mask[action])
    choices = 1 if choice == "first" else 4 if game_id == "game_2048" else 3
    names, counts = np.unique(taken, return_counts=True)
    assert len(counts) == choices
    assert choice == "uniform" or names[0] in ("Take up.", "Take row 0.")
    assert (abs(counts - len(taken) / choices) < 3 * np.sqrt(len(taken) / choices)).all()
    assert {True, False} == set(legal)


def expert(game: Any, state: Any, key: Array) -> tuple[Array, Array]:
    return game.expert(state, key), jnp.zeros(1, jnp.uint8)


@pytest.mark.parametrize("choice", ["uniform", "first"])
def test_a_teacher_without_a_weak_choice_is_refused(choice: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_TEACHERS", "_WEAK_TEACHERS"):
        monkeypatch.setattr(core, table, {})
    game = envs.make("game_2048", rows=2, cols=2)
    state, key = game.from_text("2 | 2\n- | -"), jax.random.key(0)
    register_teacher("game_2048", expert)
    with pytest.raises(G1Error, match=f"no {choice} choice; set cold_start.choice=teacher"):
        teach(game, state, key, choice)
    register_teacher("game_2048", expert, uniform=expert, first=expert)
    assert int(teach(game, state, key, choice)[0]) == int(game.expert(state, key))


def test_a_game_without_a_teacher_has_its_expert_and_choices_that_ignore_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_TEACHERS", {})
    game = envs.make("game_2048", rows=2, cols=2)
    state, keys = game.from_text("2 | 2\n- | -"), jax.random.split(jax.random.key(0), 64)
    assert int(teach(game, state, keys[0])[0]) == int(game.expert(state, keys[0]))
    assert int(teach(game, state, keys[0], "first")[0]) == 0
    assert {int(teach(game, state, key, "uniform")[0]) for key in keys} == {0, 1, 2, 3}
    assert text.decode(teach(game, state, keys[0], "first")[1]) == ""


def test_a_game_under_the_name_of_a_level_has_its_game_s_teacher() -> None:
    game, tiny = envs.make("swap", "tiny"), envs.make("swap:tiny")
    state = game.reset(jax.random.key(0))
    for choice in ("teacher", "first"):
        taught = [teach(level, state, jax.random.key(1), choice) for level in (game, tiny)]
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *taught))


@pytest.mark.parametrize(
    ("game", "board"),
    [
        (envs.make("game_2048", rows=2, cols=2), "2 | 4\n4 | 2"),
        (envs.make("shisen_sho", rows=1, cols=4), "- | - | - | -"),
        (envs.make("swap", rows=1, cols=4), "Red circle | Red square | Red circle | Red square"),
    ],
)
def test_where_nothing_is_legal_the_teacher_says_nothing(game: envs.Game[Any], board: str) -> None:
    action, rationale = jax.jit(functools.partial(teach, game))(game.from_text(board), jax.random.key(0))
    assert int(action) == game.invalid_action
    assert not np.asarray(rationale).any()


@pytest.mark.parametrize(
    "game_id",
    [
        "game_2048",
        "swap",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("shisen_sho", "shisen_sho_cifar10")),
    ],
)
def test_every_teacher_passes_the_check(game_id: str) -> None:
    check_teacher(envs.make(game_id), num_games=4, num_steps=8)


@pytest.mark.parametrize(
    ("action", "rationale", "message"),
    [(0, b"up", ""), (4, b"up", "illegal action"), (0, b"a\0b", "zero byte"), (0, b"<b", "a `<`")],
)
def test_a_registered_teacher_and_what_is_wrong_with_it(
    action: int, rationale: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "_TEACHERS", {})
    monkeypatch.setattr(core, "_WEAK_TEACHERS", {})
    game = envs.make("game_2048", rows=2, cols=2)
    encoded = jnp.asarray(np.frombuffer(rationale, np.uint8))

    def mine(game: Any, state: Any, key: Any) -> Any:
        return (game.expert(state, key) if action == 0 else jnp.int32(action)), encoded

    register_teacher("game_2048", mine)
    with pytest.raises(AssertionError, match=message) if message else contextlib.nullcontext():
        check_teacher(game)


def test_a_game_without_a_teacher_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_TEACHERS", {})
    game = envs.make("game_2048", rows=2, cols=2)
    state = game.from_text("2 | 2\n- | -")
    action, rationale = teach(game, state, jax.random.key(0))
    assert int(action) == int(game.expert(state, jax.random.key(0)))
    assert text.decode(rationale) == ""
