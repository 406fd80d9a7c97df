"""Board texts and perception scores, on the device and from strings, against plain Python."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from g1jax.envs import text
from g1jax.typing import Array
from tests.envs import helpers
from tests.envs.answering import GAMES, LENGTH, NUMBER_GAME, batched, make, on_device, states_of
from tests.oracles import answers

# ---- Boards as text --------------------------------------------------------------------------------------------------


def names_of_cells(game: Any, cells: np.ndarray) -> list[list[str]]:
    names = list(game.cell_names())
    return [[names[kind] for kind in row] for row in cells]


def board_of(rows: list[list[str]]) -> str:
    return "\n".join(" | ".join(row) for row in rows)


def random_cells(game: Any, num: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, len(game.cell_names()), (num, game.rows, game.cols)).astype(np.int32)


BOARDS: list[tuple[str, dict[str, int]]] = [
    *((game_id, {}) for game_id in GAMES),
    ("game_2048", {"rows": 1, "cols": 7}),
    ("game_2048", {"rows": 16, "cols": 16}),
    ("shisen_sho", {"rows": 3, "cols": 8, "colors": 16}),
]


@pytest.mark.parametrize(("game_id", "keys"), BOARDS, ids=str)
def test_boards_are_written_as_the_definition_says_and_read_back(game_id: str, keys: dict[str, int]) -> None:
    game = make(game_id, **keys)
    cells = random_cells(game, 200)

    @jax.jit
    @jax.vmap
    def round_trip(cells: Array) -> Any:
        written = game.board_text.write(cells)
        return written, game.read_board(written)

    written, read = round_trip(cells)
    np.testing.assert_array_equal(read, cells)
    for board, row in zip(cells, np.asarray(written), strict=True):
        expected = board_of(names_of_cells(game, board))
        assert text.decode(row) == expected
        assert (row[len(expected.encode()) :] == 0).all()
    longest = max(game.cell_names(), key=len)
    kind = list(game.cell_names()).index(longest)
    written, _ = round_trip(np.full((200, game.rows, game.cols), kind, np.int32))
    assert text.decode(written[0]) == board_of([[longest] * game.cols] * game.rows)
    assert written[0, -1] != 0


@pytest.mark.parametrize("game_id", GAMES)
def test_a_state_is_what_its_text_says(game_id: str) -> None:
    game = make(game_id)
    level = game.traced_level()

    @jax.jit
    @jax.vmap
    def there_and_back(cells: Array, seed: Array) -> Any:
        state = game.from_cells(cells, seed, level)
        return state, game.from_text(game.describe(state), level, seed)

    states, again = there_and_back(random_cells(game, 100), np.arange(100, dtype=np.uint32))
    helpers.assert_trees_equal(again, states)


@pytest.mark.parametrize("game_id", ["game_2048", "swap"])
def test_strings_and_bytes_with_other_white_space_are_the_same_board(game_id: str) -> None:
    game = make(game_id)
    cells = random_cells(game, 1)[0]
    rows = names_of_cells(game, cells)
    loose = "\r\n \t" + " \r\n".join("\t|".join(f"  {name} " for name in row) for row in rows) + "\n\n"
    states = [game.from_text(form) for form in (board_of(rows), board_of(rows).encode(), loose, text.encode(loose))]
    helpers.assert_trees_equal(states[0], helpers.row(states_of(game)(cells[None]), 0))
    for state in states[1:]:
        helpers.assert_trees_equal(state, states[0])
    np.testing.assert_array_equal(game.read_board(loose), cells)


BROKEN_2048 = [
    ("", "row 0, column 0", "unknown cell of game_2048 ''"),
    ("2 | - | - | 3", "row 0, column 3", "unknown cell of game_2048 '3'"),
    ("2 | - | - | 4\n- | - | zwei | -", "row 1, column 2", "unknown cell of game_2048 'zwei'"),
    ("2 | - | - | 4\n- | - | - | 2O48\n", "row 1, column 3", "did you mean '2048'"),
    ("2 | - | - | 4\n- | - | -", "row 1, column 3", "3 cells in this row, the board has 4"),
    ("2 | - | - | 4 | -", "row 0, column 4", "5 cells in this row, the board has 4"),
    ("2 | - | - | 4\n\n- | - | - | -", "row 1, column 0", "unknown cell"),
    ("2 | - | - | 4\n- | - | - | -", "row 2, column 0", "2 rows, the board has 4"),
    ("\n".join(["2 | - | - | 4"] * 5), "row 4, column 0", "5 rows, the board has 4"),
    ("\n".join(["2 | - | - | 4"] * 3) + "\n2 | - | - | \x0b4", "row 3, column 3", "unknown cell"),
    ("\n".join(["2 | - | - | 4"] * 3) + "\n2 | - | - | 4\0", "row 3, column 3", "unknown cell"),
    ("2 | - | - | 262144", "row 0, column 3", "unknown cell"),
]


@pytest.mark.parametrize(("board", "place", "reason"), BROKEN_2048)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_an_invalid_board_text_is_refused_with_row_and_column(
    board: str, place: str, reason: str, as_bytes: bool
) -> None:
    with pytest.raises(ValueError, match=re.escape(place) + ".*" + re.escape(reason)):
        make(NUMBER_GAME).from_text(board.encode() if as_bytes else board)


def test_a_board_of_another_game_is_refused_with_suggestions() -> None:
    with pytest.raises(ValueError, match=r"row 0, column 0: unknown cell of swap 'Red circl'; did you mean"):
        make("swap").from_text("Red circl")
    with pytest.raises(ValueError, match=r"row 0, column 1.*unknown cell of swap '-'"):
        make("swap").from_text("Red circle | -")


@given(board=st.one_of(st.text(max_size=80), st.lists(st.sampled_from("248-| \n\tx"), max_size=80).map("".join)))
def test_any_string_is_a_board_or_an_error_with_row_and_column(board: str) -> None:
    game = make(NUMBER_GAME, rows=1, cols=2)
    try:
        state = game.from_text(board)
    except ValueError as error:
        assert re.match(r"row \d+, column \d+: ", str(error))  # noqa: PT017
    else:
        cells = [cell.strip(" \t\r\n") for cell in board.strip(" \t\r\n").split("|")]
        assert text.decode(game.describe(state)) == " | ".join(cells)


@given(board=st.binary(max_size=40))
@example(board=b"2 | \xff")
def test_any_bytes_are_a_board_or_an_error_with_row_and_column(board: bytes) -> None:
    game = make(NUMBER_GAME, rows=1, cols=2)
    try:
        game.from_text(board)
    except ValueError as error:
        assert re.match(r"row \d+, column \d+: ", str(error))  # noqa: PT017


def test_an_unreadable_cell_in_a_jit_is_the_first_kind() -> None:
    game = make(NUMBER_GAME, rows=1, cols=4)
    board = text.encode("2 | x | 8")
    assert game.read_board(board).tolist() == [[1, -1, 3, -1]]
    state = jax.jit(lambda board: game.from_text(board))(board)
    assert state.board.tolist() == [[1, 0, 3, 0]]


# ---- Perception ------------------------------------------------------------------------------------------------------

EDITS = ["", " ", "  ", "\n", "\r\n", "|", " | ", "-", "2", "4", "Red circle", "Red", "circle", "\t", "\x0b", "\0", "é"]


@st.composite
def perceptions(draw: st.DrawFn, truth: str, names: list[str]) -> bytes:
    """The true text after a few edits, in tags that may be broken."""
    content = truth
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 0, 1, 3, 12])))
        content = content[:start] + draw(st.sampled_from([*EDITS, *names[:4]])) + content[end:]
    around = st.sampled_from(["", "", "", " ", "\n", "\r\n\t", "\x0c", "<think>", "x"])
    opening = draw(st.sampled_from(["<perception>"] * 8 + ["", "<perception", "<perception><perception>"]))
    closing = draw(st.sampled_from(["</perception>"] * 8 + ["", "</perception", "</perception></perception>"]))
    response = draw(around) + opening + draw(around) + content + draw(around) + closing + draw(around)
    return response.encode()[:LENGTH]


PERCEPTION_GAMES = {
    "game_2048": make("game_2048", rows=3, cols=2),
    "shisen_sho": make("shisen_sho", rows=2, cols=3, colors=2, shapes=3),
}


def assert_scored(game: Any, batch: list[bytes], cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cells: int[n, R, C]. Returns (exact bool[n], share float32[n])."""
    states = states_of(game)(cells)
    encoded = on_device(batch)
    exact = np.asarray(batched(game, "perception_exact")(encoded, states))
    share = np.asarray(batched(game, "perception_cells")(encoded, states))
    assert share.dtype == np.float32
    for i, response in enumerate(batch):
        expected = answers.perception_cells(response, names_of_cells(game, cells[i]))
        assert exact[i] == expected[0], (response, cells[i])
        assert share[i] == pytest.approx(expected[1], abs=1e-6), (response, cells[i])
    return exact, share


@pytest.mark.parametrize("game_id", list(PERCEPTION_GAMES))
@settings(max_examples=60)
@given(data=st.data())
def test_perception_scores_are_what_the_definition_says(game_id: str, data: st.DataObject) -> None:
    game = PERCEPTION_GAMES[game_id]
    cells = random_cells(game, 8, data.draw(st.integers(0, 1000)))
    truths = [board_of(names_of_cells(game, board)) for board in cells]
    batch = [data.draw(perceptions(truth, list(game.cell_names()))) for truth in truths]
    exact, share = assert_scored(game, batch, cells)
    state = game.from_text(truths[0])
    for form in (batch[0], batch[0].decode("utf-8", "ignore")):
        if isinstance(form, bytes) or form.encode() == batch[0]:
            assert bool(game.perception_exact(form, state)) == exact[0]
            assert float(game.perception_cells(form, state)) == share[0]


@pytest.mark.parametrize("game_id", GAMES)
def test_scores_of_true_boards_and_of_one_wrong_cell(game_id: str) -> None:
    game = make(game_id)
    cells = random_cells(game, 50)
    wrong = cells.copy()
    row, col = np.random.default_rng(1).integers(0, (game.rows, game.cols), (50, 2)).T
    wrong[np.arange(50), row, col] = (wrong[np.arange(50), row, col] + 1) % len(game.cell_names())
    states = states_of(game)(cells)
    for boards, exact, share in ((cells, True, 1.0), (wrong, False, 1 - 1 / cells[0].size)):
        batch = on_device(
            [f"<perception>\n{board_of(names_of_cells(game, board))}\n</perception>".encode() for board in boards], 2048
        )
        assert (np.asarray(batched(game, "perception_exact")(batch, states)) == exact).all()
        np.testing.assert_allclose(batched(game, "perception_cells")(batch, states), share, atol=1e-6)


def test_only_the_first_perception_counts() -> None:
    game = PERCEPTION_GAMES["game_2048"]
    cells = random_cells(game, 1)
    truth = board_of(names_of_cells(game, cells[0])).encode()
    right, empty = b"<perception>" + truth + b"</perception>", b"<perception></perception>"
    exact, share = assert_scored(game, [right + empty, empty + right], np.repeat(cells, 2, axis=0))
    assert exact.tolist() == [True, False]
    assert share.tolist() == [1, 0]
