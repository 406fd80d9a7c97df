"""A game by hand: moves are read, hints given, and a wrong line asked again."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from g1jax.errors import EvaluationError, LevelError
from g1jax.programs import play
from g1jax.programs.play import Options


def played(game: str, lines: list[str], **changes: int) -> str:
    """What is printed while these lines are typed; then the input ends."""
    typed: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        assert prompt == "move> "
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    out = io.StringIO()
    play.play(Options(game=game, **changes), read, Console(file=out, width=120, color_system=None))
    return out.getvalue()


def test_moves_hints_and_mistakes() -> None:
    out = played("game_2048", ["4 4", "?", "0", "2", "\x1b[2J", "q", "1"])
    assert "0 for up, 1 for right" in out
    assert "A move looks like" in out
    assert "4 4: not a move, which looks like" in out
    assert "answer" not in out
    assert "the expert plays" in out
    assert out.count(": reward") == 2
    assert "move 2: reward" in out
    assert "\\x1b[2J: not a move" in out
    assert "\x1b" not in out
    assert "stopped after 2 moves: " in out


def test_cells_may_be_typed_as_numbers() -> None:
    out = played("shisen_sho:tiny", ["0 0 0 1", "(0, 0) (0, 1)", "0 0 0"], max_steps=3)
    assert out.count(": reward") == 2
    assert "0 0 0: not a move" in out
    assert "stopped after 2 moves" in out


def test_a_game_ends() -> None:
    assert "stopped after 1 moves" in played("game_2048", ["0", "1"], max_steps=1)


@pytest.mark.parametrize(("game", "error"), [("swap,game_2048", EvaluationError), ("chess", LevelError)])
def test_wrong_games(game: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        played(game, [])


def test_the_first_argument_is_the_game(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "q")
    assert play.main(["game_2048", "--seed=1"], "g1jax play") == 0
    out = capsys.readouterr().out
    assert "A move looks like" in out
    assert "stopped after 0 moves: 0" in out
    assert play.main(["chess"], "g1jax play") == 1
    assert "unknown game" in capsys.readouterr().err
