"""Text as bytes: answers, boards and perception scores, on the device and from strings, against plain Python."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from g1jax.envs import text
from tests.envs.answering import GAMES, LENGTH, NUMBER_GAME, PAIR_GAME, batched, expected_action, make, on_device
from tests.oracles import answers

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
    if draw(st.integers(0, 3)) == 0:  # drop, double or replace a piece
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


def assert_parsed(game: Any, batch: list[bytes]) -> None:
    """Device arrays, `bytes` and `str` of a response give the action of the definition."""
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
    assert_parsed(make(game_id), batch)


def token_soup(num: int, seed: int) -> np.ndarray:
    """Random pieces, truncated to a length, most with an answer tag of some kind: uint8[num, LENGTH]."""
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


@pytest.mark.parametrize("chunk", [0, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in range(1, 5))])
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


def test_an_empty_response_is_an_invalid_answer() -> None:
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


def test_join_truncates() -> None:
    table = text.NameTable.of(["ab", "cde", "", "f"])
    pieces = jnp.array([1, 2, 0, 3, 1])
    for length in range(1, 12):
        joined = jax.jit(functools.partial(text.join, table=table, length=length))(pieces)
        assert text.decode(joined) == "cdeabfcde"[:length]
