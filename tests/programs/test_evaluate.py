"""train/evaluate.py: its output files and its errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from g1jax.endpoint.client import Endpoint
from g1jax.envs import LevelError
from g1jax.errors import ExperimentError, G1Error
from g1jax.evaluation import EvaluationError, load, result_of, save
from g1jax.programs.evaluate import DESCRIPTION, Options, _with_defaults, evaluate, games_for_run, main
from g1jax.programs.shared import games_of
from g1jax.training.run_folder import RunFolder
from tests.conftest import REPOSITORY
from tests.endpoint.server import serving
from tests.evaluation.helpers import episodes_of
from tests.training import tiny


def options(out: Path, **changes: Any) -> Options:
    return Options(**{"games": "game_2048", "episodes": 4, "steps": 6, "record": 2, "out": out, **changes})


def test_it_writes_results_a_report_and_films(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "game_2048/perception": 0.5}\n')
    evaluate(options(tmp_path / "a", film="both", curves=tmp_path / "run"))
    names = {"results.json", "results.md", "replays.json", "report.html", "game_2048.gif", "game_2048.mp4"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    printed = capsys.readouterr()
    assert "| random | " in printed.out
    assert "published" not in printed.out  # there are no published results for 6 steps
    assert "game_2048: 24 of 24 steps" in printed.err
    assert load(tmp_path / "a").protocol == {"episodes": 4, "steps": 6, "seed": 0}
    assert len(json.loads((tmp_path / "a" / "replays.json").read_text("utf-8"))) == 2
    assert "game_2048/perception" not in (page := (tmp_path / "a" / "report.html").read_text("utf-8"))
    assert '"curves":{"game_2048":{"perception":[[1.0,0.5]]}}' in page

    evaluate(options(tmp_path / "b"))
    for name in ("results.json", "results.md", "replays.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    evaluate(options(tmp_path / "c", beside=(tmp_path / "a",), seed=1))
    assert (tmp_path / "c" / "results.md").read_text("utf-8").count("\n| random | 1") == 2

    capsys.readouterr()
    evaluate(Options(compare=(tmp_path / "a", tmp_path / "b")))
    assert "| score | +0.00 (+0.00 to +0.00) |" in capsys.readouterr().out
    with pytest.raises(EvaluationError, match="seed=0, random with seed=1"):
        evaluate(Options(compare=(tmp_path / "a", tmp_path / "c")))


def test_the_comparison_in_the_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of results that the examples above it make: a run's on its game, random play's on all games and more episodes."""
    monkeypatch.chdir(tmp_path)
    game, other = (result_of({"name": name}, {"swap": episodes_of([[1.0]] * n)}) for name, n in (("g1", 2), ("r", 3)))
    save(game, Path("evaluations/g1_swap"))
    save(other, Path("evaluations/random"))
    example = next(line for line in DESCRIPTION.splitlines() if "--compare" in line)
    assert main(example.split()[1:], "g1jax evaluate") == 0
    assert "over the first 2 episodes, of 2 and 3" in capsys.readouterr().out


def test_an_endpoint_is_a_player_like_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-very-secret-key")
    with serving() as server:
        endpoint = Endpoint(model="some/model", base_url=server.url.replace("//", "//me:word@"), image_side=112)
        evaluate(options(tmp_path, player="openai", episodes=2, endpoint=endpoint))
        num_asked = len(server.requests)
        evaluate(options(tmp_path, player="openai", episodes=2, endpoint=endpoint))
        assert len(server.requests) == num_asked == 12
    result = load(tmp_path)
    assert result.name == "some/model"
    assert result.games["game_2048"].metrics["format"].mean == 1.0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "exchanges" / "game_2048.jsonl" in written
    for path in written:
        assert b"secret" not in path.read_bytes()
        assert b"word@" not in path.read_bytes()


@pytest.mark.slow
def test_a_training_run_is_a_player(tmp_path: Path) -> None:
    from g1jax.training import run
    from tests.training.tiny import LEVELS, make_experiment, save_model

    changes = {"cold_start__steps": 2, "rl__iterations": 2, "games": ("game_2048",), "levels": LEVELS}
    run(make_experiment(save_model(tmp_path / "model"), tmp_path / "run", **changes))
    out = tmp_path / "out"
    evaluate(Options(player=str(tmp_path / "run"), episodes=3, steps=2, out=out, temperature=0.0))
    result = load(out)
    assert result.player == {"name": "run", "kind": "run", "temperature": 0.0, "sees": False}
    assert result.games["game_2048"].level["rows"] == 2
    assert result.games["game_2048"].metrics["tokens"].mean > 0
    page = (out / "report.html").read_text("utf-8")
    assert '"curves":{"game_2048":{"perception":[[' in page


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=f"{tmp_path} is not a run's folder") as caught:
        evaluate(options(tmp_path / "out", player=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_defaults_follow_from_the_player() -> None:
    remote = _with_defaults(Options(player="openai", endpoint=Endpoint(model="../some/model:7b")))
    assert (remote.episodes, remote.out) == (10, Path("evaluations/some-model-7b"))
    local = _with_defaults(Options(player="runs/g1_swap/"))
    assert (local.episodes, local.out) == (1000, Path("evaluations/g1_swap"))


def test_games_are_named_with_presets() -> None:
    games = games_of("game_2048, swap:base")
    assert list(games) == ["game_2048", "swap:base"]
    assert games["swap:base"].id == "swap"
    assert len(games_of("all")) == 4


def test_a_run_plays_its_own_games_at_its_own_levels(tmp_path: Path) -> None:
    experiment = tiny.make_experiment("base", tmp_path, games=tiny.BOTH)
    RunFolder(experiment).create()
    own = games_for_run("", tmp_path)
    assert [(own[game_id].rows, own[game_id].cols) for game_id in own] == [(2, 2), (2, 2)]
    named = games_for_run("shisen_sho,game_2048:more_fours,swap", tmp_path)
    assert named["shisen_sho"] == own["shisen_sho"]
    assert named["game_2048:more_fours"].rows == 2
    assert named["game_2048:more_fours"] != own["game_2048"]
    assert named["swap"] == games_of("swap")["swap"], "which it was not trained on"
    for wrong, message in (("swop", "did you mean 'swap'"), ("swop:base", "'swop'"), ("swap:nope", "preset 'nope'")):
        with pytest.raises(LevelError, match=message):
            games_for_run(wrong, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"player": "nobody"}, "no player 'nobody'"),
        ({"games": "swop"}, "did you mean 'swap'"),
        ({"games": "swap:nope"}, "unknown preset 'nope'"),
        ({"games": ","}, "name at least one game"),
        ({"steps": 0}, "steps=0: expected a whole number from 1"),
        ({"episodes": 0}, "episodes=0: expected a whole number from 1"),
        ({"record": -1}, "record=-1"),
        ({"player": "openai"}, "name the endpoint's model"),
        ({"curves": Path("nowhere")}, "no curves at nowhere"),
        ({"beside": (Path("nowhere"),)}, "no results at nowhere"),
        ({"compare": (Path("nowhere"), Path("there"))}, "no results at nowhere"),
        ({"observation": ("caption",)}, "observation: random reads none"),
        ({"player": "g1-nano", "observation": ("no_goal",)}, "show the picture, the caption, or both"),
        ({"player": "g1-nano", "observation": ("picture", "no_goal")}, "the prompt has no goal to leave out"),
    ],
)
def test_errors_are_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(G1Error, match=message) as caught:
        evaluate(options(tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "results.json").exists()


def test_the_program_itself_ends_with_one_line() -> None:
    command = [sys.executable, str(REPOSITORY / "train" / "evaluate.py"), "--player=nobody"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 1
    assert done.stderr == (
        "evaluate: no player 'nobody': expected one of random, expert, openai, base, g1-nano, g1-nano-sizes, or the "
        "folder of a training run or a model\n"
    )
