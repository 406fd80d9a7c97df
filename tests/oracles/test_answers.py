"""Examples worked by hand from the rules, to test the oracle of answers."""

import pytest

from . import answers

Board = list[list[int]]
Cell = tuple[int, int]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (b"<answer>3</answer>", 3),
        (b"<answer>007</answer>", 7),
        (b"<answer> \t\r\n3\n </answer>", 3),
        (b"<think>x</think>\n<answer>2</answer> tail", 2),
        (b"<answer>1</answer><answer>2</answer>", 1),  # the first
        (b"</answer><answer>1</answer>", 1),  # a closing tag before the opening one is ignored
        (b"\xff<answer>1</answer>\x00\x00", 1),
        (b"<answer>nope</answer><answer>2</answer>", None),  # the first, even if it is bad
        (b"<answer><answer>1</answer>", None),
        (b"<answer>1", None),
        (b"1</answer>", None),
        (b"", None),
        (b"3", None),
        (b"<Answer>1</Answer>", None),
        (b"<answer >1</answer>", None),
        (b"<answer>1</ answer>", None),
        (b"<answer></answer>", None),
        (b"<answer> </answer>", None),
        (b"<answer>1 2</answer>", None),
        (b"<answer>+1</answer>", None),
        (b"<answer>-1</answer>", None),
        (b"<answer>1.0</answer>", None),
        (b"<answer>1_0</answer>", None),
        (b"<answer>0x1</answer>", None),
        (b"<answer>(1)</answer>", None),
        (b"<answer>up</answer>", None),
        (b"<answer>\x0b1</answer>", None),  # vertical tab and form feed are not whitespace
        (b"<answer>1\x0c</answer>", None),
        (b"<answer>1\x00</answer>", None),
        ("<answer>\u0661</answer>".encode(), None),  # an Arabic-Indic digit
        ("<answer>\u00a01</answer>".encode(), None),  # a no-break space
        (b"<answer>(0, 1) (2, 3)</answer>", None),
    ],
)
def test_parse_number(response: bytes, expected: int | None) -> None:
    assert answers.parse_number(response) == expected


def test_parse_huge_numbers() -> None:
    nines, value = b"9" * 5000, 10**5000 - 1  # more digits than int() takes
    assert answers.parse_number(b"<answer>" + nines + b"</answer>") == value
    assert answers.parse_pair(b"<answer>(" + nines + b", 0) (0, 1)</answer>") == ((value, 0), (0, 1))


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (b"<answer>(0, 1) (2, 3)</answer>", ((0, 1), (2, 3))),
        (b"<answer>(0,1)(2,3)</answer>", ((0, 1), (2, 3))),
        (b"<answer>\n( 00 ,\t1 )\r\n( 2\n, 10 )\n</answer>", ((0, 1), (2, 10))),
        (b"<answer>(99999999999, 0) (0, 0)</answer>", ((99999999999, 0), (0, 0))),
        (b"<answer>(0, 1) (2, 3) (4, 5)</answer>", None),
        (b"<answer>(0, 1)</answer>", None),
        (b"<answer>(0, 1), (2, 3)</answer>", None),
        (b"<answer>(0, 1) (2, 3).</answer>", None),
        (b"<answer>(0, 1 2) (2, 3)</answer>", None),
        (b"<answer>(0 1) (2 3)</answer>", None),
        (b"<answer>(0, -1) (2, 3)</answer>", None),
        (b"<answer>[0, 1] [2, 3]</answer>", None),
        (b"<answer>0, 1 2, 3</answer>", None),
        (b"<answer>(, 1) (2, 3)</answer>", None),
        (b"<answer>(0, 1) (2, 3)", None),
        (b"(0, 1) (2, 3)", None),
        (b"<answer>3</answer>", None),
    ],
)
def test_parse_pair(response: bytes, expected: tuple[Cell, Cell] | None) -> None:
    assert answers.parse_pair(response) == expected


def test_action_of_pair() -> None:
    assert answers.action_of_pair(((0, 0), (0, 0)), 6, 6) == 0
    assert answers.action_of_pair(((0, 1), (1, 2)), 2, 3) == 11  # cell 1 of 6, then cell 5: 1*6 + 5
    assert answers.action_of_pair(((5, 5), (5, 5)), 6, 6) == 36 * 36 - 1
    assert answers.action_of_pair(((2, 0), (0, 0)), 2, 3) is None
    assert answers.action_of_pair(((0, 3), (0, 0)), 2, 3) is None
    assert answers.action_of_pair(((0, 0), (10**30, 0)), 2, 3) is None
    actions = [
        answers.action_of_pair(((r1, c1), (r2, c2)), 2, 3)
        for r1 in range(2)
        for c1 in range(3)
        for r2 in range(2)
        for c2 in range(3)
    ]
    assert actions == list(range(36))


def test_find_tag() -> None:
    assert answers.find_tag(b"x<a>12</a>", "a") == (4, 6)
    assert answers.find_tag(b"<a></a>", "a") == (3, 3)
    assert answers.find_tag(b"<a>1</a>2</a>", "a") == (3, 4)
    assert answers.find_tag(b"</a><a>1", "a") is None
    assert answers.find_tag(b"<b>1</b>", "a") is None
    assert answers.find_tag(b"<a<a>1</a>", "a") == (5, 6)


TRUTH = [["Red circle", "-"], ["-", "Blue star"]]


@pytest.mark.parametrize(
    ("content", "exact", "fraction"),
    [
        (b"Red circle | -\n- | Blue star", True, 1.0),
        (b"\n Red circle | -\n- | Blue star\r\n", True, 1.0),
        (b"Red circle|-\n-|Blue star", False, 1.0),  # the cells are right, the text is not
        (b"Red circle | -\r\n- | Blue star", False, 1.0),
        (b"Red circle | - | -\n- | Blue star\n-", False, 1.0),  # more than the board
        (b"Red circle | -\n- | Blue  star", False, 0.75),  # whitespace inside a cell counts
        (b"Red circle | -\n- | \x0bBlue star", False, 0.75),  # a vertical tab is not whitespace
        (b"red circle | -\n- | Blue star", False, 0.75),
        (b"Red circle | -", False, 0.5),
        (b"Red circle | -\n\n- | Blue star", False, 0.5),  # an empty row is a row
        (b"| Red circle | -\n- | Blue star", False, 0.5),
        (b"Red circle | - - | Blue star", False, 0.25),
        (b"", False, 0.0),
    ],
)
def test_perception_cells(content: bytes, exact: bool, fraction: float) -> None:
    response = b"hm <perception>" + content + b"</perception><perception>other</perception>"
    assert answers.perception_cells(response, TRUTH) == (exact, fraction)


def test_perception_cells_without_a_tag() -> None:
    text = b"Red circle | -\n- | Blue star"
    assert answers.perception_cells(text, TRUTH) == (False, 0.0)
    assert answers.perception_cells(b"<perception>" + text, TRUTH) == (False, 0.0)
    assert answers.perception_cells(text + b"</perception>", TRUTH) == (False, 0.0)
