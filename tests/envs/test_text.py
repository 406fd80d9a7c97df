"""Text as bytes: answers, boards and perception scores, on the device and from strings, against plain Python."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from g1jax import envs
from g1jax.envs import text
from g1jax.typing import Array
from tests.envs import helpers
from tests.oracles import answers

LENGTH = 256
NUMBER_GAME, PAIR_GAME = "game_2048", "shisen_sho"
GAMES = ("game_2048", "shisen_sho", "shisen_sho_cifar10", "swap")


@functools.cache
def make(game_id: str, **keys: Any) -> Any:
    if game_id == "shisen_sho_cifar10":
        keys["images"] = "digits"
    return envs.make(game_id, **keys)


@functools.cache
def batched(game: Any, method: str) -> Any:
    return jax.jit(jax.vmap(getattr(game, method)))


@functools.cache
def states_of(game: Any) -> Any:
    """The function from boards, int32[n, R, C], to states."""
    level = game.traced_level()
    return jax.jit(jax.vmap(lambda cells: game.from_cells(cells, jnp.uint32(0), level)))


def expected_action(game: Any, response: bytes) -> int:
    """What the definition says a response asks for."""
    if len(game.action_shape) == 1:
        number = answers.parse_number(response)
        return number if number is not None and number < game.num_actions else int(game.invalid_action)
    pair = answers.parse_pair(response)
    action = None if pair is None else answers.action_of_pair(pair, game.rows, game.cols)
    return int(game.invalid_action) if action is None else action


def on_device(responses: list[bytes], length: int = LENGTH) -> np.ndarray:
    return np.stack([text.encode(response, length) for response in responses])


# ---- Answers ---------------------------------------------------------------------------------------------------------

TOKENS = [
    *("<answer>", "</answer>", "<answer", "/answer>", "<answer>", "</answer>", "<Answer>", "</answer >", "<answers>"),
    *("<perception>", "</perception>", "<think>", "</think>", "<", ">", "</", "<<answer>>", "&lt;answer&gt;"),
    *("0", "1", "2", "3", "4", "5", "6", "7", "12", "35", "007", "0000000000000000000003", "4294967298", "+1", "-2"),
    *("1.5", "1e1", "2" * 30, "９", "٣", "²", "0x1", "1_0", "(", ")", ",", "(0, 1) (2, 3)", "(5,5)(0,0)"),
    *("(1, 2)", "( 3 ,4 )", "[1, 2]", "(00, 01) (02, 003)", "(6, 0) (0, 0)", "(0, 0) (0, 6)", ";", "."),
    *(" ", "  ", "\n", "\t", "\r\n", "\x0b", "\x0c", "\x00", "\x1f", "\u00a0", "\u2028", "\ufeff", "é", "棋", "🙂"),
    *("the answer is", "up", "-", "|", "None", "nan"),
]
BYTE_TOKENS = [token.encode() for token in TOKENS] + [b"\xff", b"\xc3", b"\x80\xbf", b"\xed\xa0\x80"]

spaces = st.text(" \t\r\n", max_size=4)
small = st.integers(0, 9).map(str)
numbers = st.one_of(
    small,
    st.integers(0, 10**12).map(str),
    st.integers(0, 40).map(lambda number: f"{number:030d}"),
    st.sampled_from(["", "+3", "-0", "-1", "3.0", "1 1", "٣", "３", "1\x00", "4294967296", "2147483648", "9" * 60]),
)
soup = st.lists(st.sampled_from(BYTE_TOKENS), max_size=14).map(b"".join)


@st.composite
def pairs(draw: st.DrawFn, number: st.SearchStrategy[str]) -> str:
    pieces = ["(", draw(number), ",", draw(number), ")", "(", draw(number), ",", draw(number), ")"]
    if draw(st.integers(0, 3)) == 0:  # lose, double or replace a piece
        place = draw(st.integers(0, len(pieces) - 1))
        pieces[place] = draw(st.sampled_from(["", pieces[place] * 2, "[", ";", "x", "(", ")", ","]))
    return "".join(piece + draw(spaces) for piece in ["", *pieces])


contents = st.one_of(
    st.builds("{}{}{}".format, spaces, numbers, spaces), pairs(small), pairs(numbers), st.text(max_size=12)
)
tagged = st.builds(
    lambda before, content, after: (
        before + b"<answer>" + content.encode("utf-8", "surrogatepass") + b"</answer>" + after
    ),
    st.one_of(st.just(b""), soup),
    contents,
    st.one_of(st.just(b""), soup),
)
responses = st.one_of(tagged, soup, st.binary(max_size=60), st.lists(tagged, min_size=2, max_size=3).map(b"".join))


def assert_parsed_alike(game: Any, batch: list[bytes]) -> None:
    """Device arrays, `bytes` and `str` of the same response give the action the definition says."""
    actions = np.asarray(batched(game, "parse")(on_device(batch, 1024)))
    for response, action in zip(batch, actions.tolist(), strict=True):
        assert action == expected_action(game, response), response
        assert int(game.parse(response)) == action, response
        as_text = response.decode("utf-8", "replace")
        assert int(game.parse(as_text)) == expected_action(game, as_text.encode()), as_text


@pytest.mark.parametrize("game_id", [NUMBER_GAME, PAIR_GAME])
@settings(max_examples=60)
@given(batch=st.lists(responses.map(lambda response: response[:1000]), min_size=8, max_size=8))
@example(batch=[b"", b"\0", b" ", b"<answer>", b"</answer>", b"<answer></answer>", b"<answer>3", b"3</answer>"])
@example(
    batch=[
        b"<answer>(0, 1) (2, 3)</answer>",
        b"<answer>3</answer>",
        b"<answer><answer>3</answer></answer>",
        b"<answer>x</answer><answer>3</answer>",
        b"</answer><answer>(5,5)(5,5)</answer>",
        b"<answer>" + b"0" * 900 + b"3</answer>",
        b"<answer>" + b"9" * 900 + b"</answer>",
        b"<answer>(" + b"0" * 400 + b"1, 0) (0, " + b"8" * 400 + b")</answer>",
    ]
)
def test_any_response_is_read_as_the_definition_says(game_id: str, batch: list[bytes]) -> None:
    assert_parsed_alike(make(game_id), batch)


def token_soup(num: int, seed: int) -> np.ndarray:
    """Random pieces one after another, cut to a length, most with an answer tag of some kind: uint8[num, LENGTH]."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([8, 24, 64, LENGTH], num)
    out = np.zeros((num, LENGTH), np.uint8)
    digits = [b"0", b"1", b"2", b"3", b"4", b"5"] * 4 + [b"6", b"11", b"00", b"03", b"0000000005"]
    gaps = [b"", b"", b"", b" ", b"\n", b" \t", b"\r\n  "]
    for i in range(num):
        form = rng.integers(5)
        if form == 0:
            pieces = [BYTE_TOKENS[k] for k in rng.integers(0, len(BYTE_TOKENS), rng.integers(1, 16))]
        else:
            inside = [b"#"] if form == 1 else [b"(", b"#", b",", b"#", b")", b"(", b"#", b",", b"#", b")"]
            choice, gap = rng.integers(0, len(digits), len(inside)), rng.integers(0, len(gaps), len(inside) + 1)
            pieces = [b"<answer>", gaps[gap[-1]]]
            for k, piece in enumerate(inside):
                pieces += [digits[choice[k]] if piece == b"#" else piece, gaps[gap[k]]]
            pieces.append(b"</answer>")
            for _ in range(form - 2):  # breakages: none in form 1 and 2
                pieces.insert(rng.integers(len(pieces) + 1), BYTE_TOKENS[rng.integers(len(BYTE_TOKENS))])
        response = b"".join(pieces)[: lengths[i] if form == 0 else LENGTH]
        out[i, : len(response)] = np.frombuffer(response, np.uint8)
    return out


@pytest.mark.parametrize("chunk", range(5))
def test_100000_random_responses_are_read_as_the_definition_says(chunk: int) -> None:
    batch = token_soup(20_000, chunk)
    raw = [row.tobytes() for row in batch]
    for game_id in (NUMBER_GAME, PAIR_GAME):
        game = make(game_id)
        actions = np.asarray(batched(game, "parse")(batch))
        expected = np.array([expected_action(game, response) for response in raw])
        wrong = np.flatnonzero(actions != expected)
        assert len(wrong) == 0, (raw[wrong[0]], actions[wrong[0]], expected[wrong[0]])
        is_valid = actions != game.invalid_action
        assert 0.01 < is_valid.mean() < 0.6
        assert len(np.unique(actions)) > game.num_actions / 2


def test_responses_of_any_length_are_read() -> None:
    for game_id in (NUMBER_GAME, PAIR_GAME):
        game = make(game_id)
        right = game.format_action(3).encode()
        for response in (right, b" " * 5000 + right, right + b"\xff" * 5000, right[:-1], right[1:]):
            expected = 3 if right in response else game.invalid_action
            assert int(game.parse(response)) == expected
            assert int(game.parse(np.frombuffer(response, np.uint8))) == expected
        for short in (b"", b"<", b"<answer>"):
            assert int(game.parse(short)) == game.invalid_action
        assert int(game.parse(np.zeros(1, np.uint8))) == game.invalid_action


def test_no_bytes_at_all_are_an_invalid_answer() -> None:
    game = make(NUMBER_GAME)
    state = game.reset(jax.random.key(0))
    nothing = np.zeros(0, np.uint8)
    assert int(game.parse(nothing)) == game.invalid_action
    assert not bool(game.perception_exact(nothing, state))
    assert float(game.perception_cells(nothing, state)) == 0


# ---- Actions as text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game_id", GAMES)
def test_every_action_is_read_back_as_it_was_written(game_id: str) -> None:
    game = make(game_id)
    actions = jnp.arange(game.num_actions + 1)
    written = batched(game, "write_action")(actions)
    np.testing.assert_array_equal(batched(game, "parse")(written), actions)
    texts = [text.decode(row) for row in np.asarray(written)]
    assert len(set(texts)) == len(texts)
    assert texts[-1] == "<answer></answer>"
    for action in (*range(0, game.num_actions, 97), game.num_actions - 1, game.invalid_action):
        assert game.format_action(action) == texts[action]
        assert expected_action(game, texts[action].encode()) == action
    if len(game.action_shape) == 1:
        assert texts[:-1] == [f"<answer>{action}</answer>" for action in range(4)]
    else:
        rows, cols = game.rows, game.cols
        cells = list(itertools.product(range(rows), range(cols), range(rows), range(cols)))
        assert texts[:-1] == ["<answer>({}, {}) ({}, {})</answer>".format(*cell) for cell in cells]


def test_numbers_of_more_digits_are_written_and_read_on_large_boards() -> None:
    game = make(PAIR_GAME, rows=12, cols=30)
    actions = np.random.default_rng(0).integers(0, game.num_actions, 5000).astype(np.int32)
    written = np.asarray(batched(game, "write_action")(actions))
    np.testing.assert_array_equal(batched(game, "parse")(written), actions)
    for action, row in zip(actions[:300].tolist(), written, strict=False):
        assert expected_action(game, row.tobytes().rstrip(b"\0")) == action
    for outside in (b"<answer>(12, 0) (0, 0)</answer>", b"<answer>(0, 30) (0, 0)</answer>"):
        assert int(game.parse(outside)) == game.invalid_action
    assert int(game.parse(b"<answer>(11, 29) (11, 29)</answer>")) == game.num_actions - 1


@pytest.mark.parametrize("action", [-1, 5, 2**31 - 1, -(2**31)])
def test_numbers_that_are_no_action_are_written_as_an_empty_answer(action: int) -> None:
    assert make(NUMBER_GAME).format_action(action) == "<answer></answer>"


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
def test_a_text_that_is_no_board_is_refused_with_row_and_column(
    board: str, place: str, reason: str, as_bytes: bool
) -> None:
    with pytest.raises(ValueError, match=re.escape(place) + ".*" + re.escape(reason)):
        make(NUMBER_GAME).from_text(board.encode() if as_bytes else board)


def test_a_board_of_another_game_is_refused_with_the_near_names() -> None:
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
    """The true text after a few edits, in tags that may be broken too."""
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


def assert_scored_alike(game: Any, batch: list[bytes], cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    exact, share = assert_scored_alike(game, batch, cells)
    state = game.from_text(truths[0])
    for form in (batch[0], batch[0].decode("utf-8", "ignore")):
        if isinstance(form, bytes) or form.encode() == batch[0]:
            assert bool(game.perception_exact(form, state)) == exact[0]
            assert float(game.perception_cells(form, state)) == share[0]


@pytest.mark.parametrize("game_id", GAMES)
def test_true_boards_score_fully_and_boards_with_one_wrong_cell_nearly(game_id: str) -> None:
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
    exact, share = assert_scored_alike(game, [right + empty, empty + right], np.repeat(cells, 2, axis=0))
    assert exact.tolist() == [True, False]
    assert share.tolist() == [1, 0]


# ---- The parts -------------------------------------------------------------------------------------------------------


@given(content=st.text(max_size=100))
def test_strings_survive_bytes(content: str) -> None:
    encoded = text.encode(content)
    assert encoded.dtype == np.uint8
    assert len(encoded) & (len(encoded) - 1) == 0
    assert text.decode(encoded) == content.encode("utf-8", "surrogatepass").rstrip(b"\0").decode("utf-8", "replace")


def test_a_text_too_long_for_its_length_is_refused() -> None:
    assert text.encode("ab", 2).tolist() == [97, 98]
    with pytest.raises(ValueError, match="a text of 3 bytes does not fit in 2"):
        text.encode("é1", 2)


@pytest.mark.parametrize("name", ["answer", "perception", "a"])
def test_tags_are_found_where_the_definition_says(name: str) -> None:
    rng = np.random.default_rng(0)
    tokens = [f"<{name}>", f"</{name}>", "<", ">", "/", name, " ", "x", f"<{name}"]
    batch = ["".join(rng.choice(tokens, rng.integers(0, 9))).encode() for _ in range(3000)]
    spans = jax.jit(jax.vmap(lambda row: text.find_tag(row, name)))(on_device(batch, 128))
    starts, ends, found = (np.asarray(part) for part in (spans.start, spans.end, spans.is_found))
    for i, response in enumerate(batch):
        expected = answers.find_tag(response, name)
        assert ((int(starts[i]), int(ends[i])) if found[i] else None) == expected, response
    assert 0.05 < found.mean() < 0.9


def test_join_cuts_what_is_too_long() -> None:
    table = text.NameTable.of(["ab", "cde", "", "f"])
    pieces = jnp.array([1, 2, 0, 3, 1])
    for length in range(1, 12):
        joined = jax.jit(functools.partial(text.join, table=table, length=length))(pieces)
        assert text.decode(joined) == "cdeabfcde"[:length]
