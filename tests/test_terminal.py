"""Untrusted text on a terminal: no control character is printed, whichever function prints it."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g1jax.errors import EvaluationError, G1Error
from g1jax.evaluation import save
from g1jax.evaluation.tables import as_markdown
from g1jax.programs.evaluate import Options, evaluate
from g1jax.programs.shared import progress_line
from g1jax.terminal import notice, one_line, printable, printable_lines
from g1jax.training.progress import Display, Progress
from tests.evaluation.test_results import result

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\r\b\u202eeman\u2066\u200b\ud800\U000e0041"


def assert_harmless(shown: str) -> None:
    bad = [
        char for char in shown if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    ]
    assert bad == []


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters() | st.sampled_from(HOSTILE)))
def test_no_control_character_is_left(text: str) -> None:
    for shown in (printable(text), one_line(text), one_line(text, 8), printable_lines(text)):
        assert_harmless(shown)
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert len(one_line(text, 8)) <= 8
    assert printable_lines(text).count("\n") == text.count("\n")


def test_printable_text_is_unchanged() -> None:
    assert printable("Größe 4 → 8, 漢字 \\x1b 🙂") == "Größe 4 → 8, 漢字 \\x1b 🙂"
    assert printable("a\tb\n\u00a0c") == "a b  c"
    assert printable("\x1b[2J\u202e\U000e0001") == "\\x1b[2J\\u202e\\U000e0001"
    assert one_line(" a \n b ") == "a b"
    assert one_line("abcdef", 4) == "abc…"
    assert one_line("abcd", 4) == "abcd"
    assert printable_lines("a\x1b\r\nb\u2028c") == "a\\x1b \nb c"


def test_no_output_has_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = result(f"a{HOSTILE}", label=f"game_2048:{HOSTILE}")
    save(hostile, tmp_path / "a")
    evaluate(Options(compare=(tmp_path / "a", tmp_path / "a")))
    evaluate(Options(games="game_2048", episodes=1, steps=1, record=0, out=tmp_path / "b", beside=(tmp_path / "a",)))
    progress_line(HOSTILE)(1, 1)
    notice(HOSTILE)
    for progress in (Progress(), Display()):
        progress.warn(HOSTILE)
        progress.say(HOSTILE)
    Display().part(HOSTILE, 1, 1)
    printed = capsys.readouterr()
    assert_harmless(printed.out)
    assert_harmless(printed.err)
    assert "eman" in printed.out
    assert "eman" in printed.err
    assert_harmless(as_markdown([hostile]))


@pytest.mark.parametrize("error", [G1Error, EvaluationError])
def test_errors_have_no_control_characters(error: type[G1Error]) -> None:
    assert_harmless(str(error(f"no player {HOSTILE}\nhere")))
    assert "\n" not in str(error(f"no player {HOSTILE}\nhere"))
