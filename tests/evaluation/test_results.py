"""Results: files, tables and comparisons."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from g1jax import envs
from g1jax.evaluation import EvaluationError, Result, compare, load, result_of, save
from g1jax.evaluation.results import as_json
from g1jax.evaluation.statistics import Interval
from g1jax.evaluation.tables import Bold, as_markdown, as_text, differences_as_markdown, escape, score_columns, table
from g1jax.terminal import one_line
from tests.evaluation.helpers import episodes_of

REWARDS: list[list[float]] = [[4, -1, 0], [8, 4, 16], [0, 0, 4]]


def result(name: str = "ours", rewards: list[list[float]] = REWARDS, **options: Any) -> Result:
    label = options.pop("label", "game_2048")
    return result_of({"name": name}, {label: episodes_of(rewards, **options)})


def test_a_result_can_be_read_back(tmp_path: Path) -> None:
    ours = result(is_exact=[[0, 0, 0]] * 3)
    save(ours, tmp_path)
    assert as_json(load(tmp_path)) == as_json(ours) == as_json(load(tmp_path / "results.json"))
    first = (tmp_path / "results.json").read_bytes()
    save(result(is_exact=[[0, 0, 0]] * 3), tmp_path)
    assert (tmp_path / "results.json").read_bytes() == first
    assert json.loads(first)["games"]["game_2048"]["figures"]["reasoning"] == {"mean": None, "low": None, "high": None}


def test_the_image_set_is_part_of_the_level() -> None:
    game = envs.make("shisen_sho_cifar10", images="digits")
    assert result(game=game).games["game_2048"].level["images"] == "digits"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results at"),
        ("{", "not JSON"),
        ("[]", "not a result"),
        ('{"g1jax_evaluation": 9}', "not a result"),
        ('{"g1jax_evaluation": true}', "not a result"),
        ('{"g1jax_evaluation": 1}', "damaged result: 'player' is None, not an object"),
        ("[" * 200_000, "nested deeper than 64 levels"),
    ],
)
def test_invalid_results_are_rejected(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(EvaluationError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def paths_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of some JSON."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths_of(item, (*at, key))


def test_any_value_in_a_result_is_accepted_or_rejected_by_name(tmp_path: Path) -> None:
    """Including numbers too large for NumPy, and too many episodes for memory."""
    save(result(), tmp_path)
    text = (tmp_path / "results.json").read_text()
    values: list[Any] = [None, "\x1b[2J", -1, 2.5, 10**15, 10**200, [], {}, [[]], True]
    num_rejected = 0
    for at in paths_of(json.loads(text)):
        for wrong in values:
            whole: list[Any] = [json.loads(text)]
            inner: Any = whole
            for key in (0, *at)[:-1]:
                inner = inner[key]
            inner[(0, *at)[-1]] = wrong
            (tmp_path / "results.json").write_text(json.dumps(whole[0]))
            try:
                load(tmp_path)
            except EvaluationError as error:
                message = str(error)
            else:
                continue
            num_rejected += 1
            assert message.startswith(f"{tmp_path}/results.json: ")
            assert message.isprintable()
            assert len(message) < 400
    assert num_rejected > 100


def test_differences_by_hand() -> None:
    theirs = result("theirs", [[0, 0, 0], [4, 4, 16], [0, 0, 0]])
    found = compare(result(), theirs)["game_2048"]
    assert found["score"].mean == pytest.approx((4 + 4 + 4) / 3 - 1 / 3)
    assert found["success"].mean == pytest.approx((1 + 3 + 1 - 3) / 9)
    markdown = differences_as_markdown(result(), theirs, {"game_2048": found})
    assert "# ours minus theirs" in markdown
    assert "Paired by episode, with 95%" in markdown
    assert "| reward \\> 0 | +22.2% (" in markdown


def test_what_players_were_shown_is_said() -> None:
    """In tables and comparisons; where it is the default nothing is. Captions are not the paper's protocol."""
    ours, theirs = result(), result()
    for shown, name in ((["picture", "no_goal"], "ours (picture, no_goal)"), (["caption"], "ours (caption)")):
        theirs = dataclasses.replace(theirs, player={"name": "ours", "observation": shown})
        assert (ours.title, theirs.title) == ("ours", name)
        page = as_markdown([ours, theirs])
        assert "\n| ours | " in page
        assert f"\n| {escape(name)} | " in page
        assert f"| metric | ours | {escape(name)} |" in page
        assert differences_as_markdown(ours, theirs, {}).startswith(f"# ours minus {escape(name)}\n")
    whole = [result(rewards=[[0.0] * 100] * 3)]
    assert score_columns(whole)[0].is_published
    assert not score_columns([dataclasses.replace(whole[0], player=theirs.player)])[0].is_published


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "ours was played with seed=0, theirs with seed=1"),
        ({"rewards": [[1.0]] * 3}, "steps=3, theirs with steps=1"),
        ({"label": "swap"}, "ours played game_2048, theirs swap"),
        ({"game": envs.make("game_2048", rows=5)}, "game_2048 was played with rows=4 and with rows=5"),
    ],
)
def test_other_protocols_are_not_comparable(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message) as caught:
        compare(result(), result("theirs", **changes))
    assert "\n" not in str(caught.value)


def test_the_common_episodes_are_paired() -> None:
    theirs = result("theirs", [[0, 0, 0], [4, 4, 16]])
    for a, b, sign, counts in ((result(), theirs, 1, "3 and 2"), (theirs, result(), -1, "2 and 3")):
        found = compare(a, b)
        assert found["game_2048"]["score"].mean == sign * (3 + 4) / 2
        page = differences_as_markdown(a, b, found)
        assert f"Paired by episode over the first 2 episodes, of {counts}, with 95%" in page
    assert compare(result(), theirs) == compare(result(rewards=REWARDS[:2]), theirs)


def test_a_prompt_is_not_part_of_the_level() -> None:
    """An earlier version had it there; random play reads none."""
    ours = result()
    game = dataclasses.replace(ours.games["game_2048"], level={**ours.games["game_2048"].level, "prompt": "2048"})
    earlier = dataclasses.replace(ours, games={"game_2048": game})
    assert compare(earlier, result("random"))["game_2048"]["score"].mean == 0


def test_games_of_different_protocols_are_rejected() -> None:
    with pytest.raises(EvaluationError, match="one protocol"):
        result_of({"name": "x"}, {"a": episodes_of([[1.0]]), "b": episodes_of([[1.0, 2.0]])})


def long_result(*game_ids: str, steps: int = 100, **level: Any) -> Result:
    games = {game_id: envs.make(game_id, **level) for game_id in game_ids}
    played = {game_id: episodes_of([[1.0] * steps] * 2, game=game) for game_id, game in games.items()}
    return result_of({"name": "ours"}, played)


def test_the_table_has_ours_and_the_published() -> None:
    other = dataclasses.replace(long_result("swap"), player={"name": "other"})
    lines = as_markdown([long_result("game_2048"), other]).splitlines()
    assert "| player | game_2048 | swap |" in lines
    assert "| ours | 100 (100–100) | – |" in lines
    assert "| other | – | 100 (100–100) |" in lines
    assert "| G1-7B (published, not run) | 1070 | 78 |" in lines
    assert sum("(published, not run)" in line for line in lines) == 8
    assert "| legal moves | 100.0% (100.0–100.0) |" in lines


def test_published_scores_need_the_same_protocol() -> None:
    table = as_markdown([long_result("shisen_sho", "shisen_sho_cifar10", "swap")])
    pairs = "shisen_sho | shisen_sho, one board | shisen_sho_cifar10 | shisen_sho_cifar10, one board"
    assert f"| player | {pairs} | swap |" in table
    assert "| G1-7B (published, not run) | – | 17.5 | – | – | 78 |" in table  # the images are digits
    for others in (long_result("swap", steps=20), long_result("swap", rows=6), result()):
        assert "published" not in as_markdown([others]).lower()


def test_names_cannot_break_the_table() -> None:
    table = as_markdown([result("a|b\n<script>`x`")])
    assert "| a\\|b \\<script\\>\\`x\\` |" in table


MARKUP = "\\|<>&*_[]`~#$!()-+.:/ \n\ta1é\x1b\u202e"
PAYLOADS = (
    "\\<b>x</b>",
    "\\\\<img src=x onerror=alert(1)>",
    "a\\",
    "a\\|b",
    "a\\\\|b",
    "&lt;b&gt; &#60;",
    "[x](javascript:alert(1))",
    "![x](http://host/pixel)",
    "<http://host>",
    "**a** __b__ _c_ ~~d~~ `e` game_2048",
    "# a",
    "- a",
    "1. a",
    "12) a",
    "+",
    "---",
    "```",
    "<!-- a",
    "$a$",
)


def plain(tokens: Any) -> str:
    """The text of inline tokens; fails for any other token."""
    assert {token.type for token in tokens} <= {"text", "text_special"}, [token.type for token in tokens]
    return "".join(token.content for token in tokens)


def assert_shown_verbatim(cells: list[str]) -> None:
    """Checks with an independent Markdown parser: in a table, a heading, a list and a paragraph."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    expected = [one_line(cell) for cell in cells]
    page = "\n".join(table(cells, [cells, cells]))
    tokens = parser.parse(page)
    inline = [plain(token.children) for token in tokens if token.type == "inline"]
    assert inline == expected * 3, page
    assert {token.type for token in tokens} <= {
        "inline",
        *(f"{part}_{end}" for part in ("table", "thead", "tbody", "tr", "th", "td") for end in ("open", "close")),
    }
    for cell, seen in zip(cells, expected, strict=True):
        for before, kind in (("## ", "heading"), ("- ", "list_item"), ("", "paragraph")):
            tokens = parser.parse(f"{before}{escape(cell)}\n\nend\n")
            found = [plain(token.children) for token in tokens if token.type == "inline"]
            assert [text for text in found if text] == [text for text in (seen, "end") if text]
            block = [token.type for token in tokens if token.type.endswith("_open") and token.type != "paragraph_open"]
            within = {"heading": ["heading_open"], "list_item": ["bullet_list_open", "list_item_open"], "paragraph": []}
            assert block == within[kind]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_markup_in_names_is_shown_verbatim(payload: str) -> None:
    assert_shown_verbatim([payload, "b"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from(MARKUP) | st.characters(), max_size=12), min_size=2, max_size=3))
def test_any_text_in_markdown_is_shown_verbatim(cells: list[str]) -> None:
    assert_shown_verbatim(cells)


def test_ordinary_text_is_not_escaped() -> None:
    assert escape("game_2048, -0.50 (-0.75 to -0.25), 12.3% (11.9–12.8)") == (
        "game_2048, -0.50 (-0.75 to -0.25), 12.3% (11.9–12.8)"
    )
    assert table(["a"], [[Bold("1_")]])[2] == "| **1\\_** |"


@pytest.mark.parametrize(
    ("metric", "key", "signed", "expected"),
    [
        (Interval(706.2, 700.4, 711.0), "score", False, "706 (700–711)"),
        (Interval(-0.5, -0.75, -0.25), "reward", False, "-0.50 (-0.75 to -0.25)"),
        (Interval(0.1234, 0.1, 0.15), "legal", False, "12.3% (10.0–15.0)"),
        (Interval(0.1, -0.1, 0.3), "legal", True, "+10.0% (-10.0 to +30.0)"),
        (Interval(float("nan"), 0, 0), "reasoning", False, "–"),
    ],
)
def test_metrics_as_text(metric: Interval, key: str, signed: bool, expected: str) -> None:
    assert as_text(metric, key, signed=signed) == expected
