"""train/analyze.py on hand-made runs: points equal evaluations, and nothing is played twice."""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from g1jax.analysis import appearance
from g1jax.analysis import checkpoint_play as points_module
from g1jax.analysis.results import Analysis
from g1jax.envs import LevelError
from g1jax.evaluation import EvaluationError, intervals, play, policy_player, sums_of
from g1jax.evaluation.report import GIVEN_PERCEPTION
from g1jax.programs.analyze import Options, analyze
from g1jax.training import ExperimentError
from g1jax.training.checkpoints import Checkpoints
from g1jax.training.saved_run import open_run
from tests.conftest import REPOSITORY
from tests.evaluation.runs import make_run, write_metrics
from tests.training import tiny

SIZE: dict[str, Any] = {"episodes": 3, "steps": 2}


@pytest.fixture(scope="module", autouse=True)
def quick_programs() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs. The newest checkpoints of both have equal weights."""
    folder = tmp_path_factory.mktemp("runs")
    model = tiny.save_model(folder / "model")
    first = make_run(folder / "g0", model, {3: 1, 6: 2})
    second = make_run(folder / "g1", model, {4: 3, 8: 4, 12: 2})
    perception, reasoning = (1 / (1 + np.exp(-(np.arange(60) - middle) / 4)) for middle in (25, 30))
    write_metrics(second, perception.tolist(), reasoning.tolist())
    return first, second


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("analyses") / "out"


@pytest.fixture(scope="module")
def analysis(runs: tuple[Path, Path], out: Path) -> Analysis:
    return analyze(Options(runs=runs, out=out, **SIZE))


@pytest.mark.slow
def test_a_point_is_what_an_evaluation_finds(runs: tuple[Path, Path], analysis: Analysis) -> None:
    run = open_run(runs[1])
    assert run.steps == (4, 8, 12)
    assert [checkpoint.step for checkpoint in analysis.runs[1].checkpoints] == [4, 8, 12]
    for checkpoint in analysis.runs[1].checkpoints[:2]:
        player = policy_player(run.setup.policy, run.params(checkpoint.step))
        expected = intervals(sums_of(play(run.setup.games[0], player, 3, 2)))
        assert str(checkpoint.own["game_2048"].metrics) == str(expected)  # which compares NaN too


@pytest.mark.slow
def test_given_perception_is_read_exactly(analysis: Analysis) -> None:
    """Random weights read no board."""
    for checkpoint in analysis.runs[0].checkpoints:
        assert checkpoint.own["game_2048"].metrics["perception"].mean == 0
        assert math.isnan(checkpoint.metrics("game_2048")["reasoning"].mean)
        assert checkpoint.given_perception["game_2048"].metrics["perception"].mean == 1
        assert not math.isnan(checkpoint.metrics("game_2048")[GIVEN_PERCEPTION].mean)
    points = analysis.runs[0].points("game_2048")
    assert [point[0] for point in points["perception"]] == [3, 6]
    assert "reasoning" not in points


@pytest.mark.slow
def test_equal_weights_differ_by_nothing(analysis: Analysis) -> None:
    found = analysis.differences["g1"]["game_2048"]
    assert {metric.mean for key, metric in found.items() if key != "reasoning"} == {0.0}
    tokens = [run.checkpoints[0].own["game_2048"].metrics["bytes"].mean for run in analysis.runs]
    assert tokens[0] != tokens[1]  # other weights differ


def test_written_files(analysis: Analysis, out: Path) -> None:
    names = {"analysis.json", "analysis.md", "analysis.png", "report.html"}
    assert {path.name for path in out.iterdir() if path.is_file()} == names
    data = json.loads((out / "analysis.json").read_text("utf-8"))
    assert [[checkpoint["step"] for checkpoint in run["checkpoints"]] for run in data["runs"]] == [[3, 6], [4, 8, 12]]
    assert data["runs"][1]["lead_lag"]["game_2048"]["lag_in_points"]["mean"] == 5
    page = (out / "analysis.md").read_text("utf-8")
    assert "| g1 | 12 | 0.0% (0.0–0.0) | – | " in page
    assert "g0 has 2 checkpoints (step 3, 6 of 20): it keeps the newest 3 (log.keep)" in page
    assert "g0 has no curves of P and R of its own" in page
    assert (
        "g1: P reaches half of its rise at step 27, R at step 31. Their changes correlate best with P 5 points ahead ("
        in page
    )
    report = (out / "report.html").read_text("utf-8")
    assert '"points":{"game_2048: g0":{"perception":[[3,0.0,0.0,0.0],[6,0.0,0.0,0.0]]' in report
    assert "published" not in report[report.index('id="data"') :].split("</script>")[0]
    pixels = np.asarray(Image.open(out / "analysis.png").convert("RGB")).reshape(-1, 3)
    assert {(31, 111, 235), (122, 63, 181)} <= set(map(tuple, pixels.tolist()))  # P's and R given perception


@pytest.mark.slow
def test_points_are_cached(
    runs: tuple[Path, Path], analysis: Analysis, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise AssertionError("played again")

    before = (out / "analysis.json").read_bytes()
    monkeypatch.setattr(points_module, "play", fail)
    analyze(Options(runs=runs, out=out, **SIZE))
    assert (out / "analysis.json").read_bytes() == before
    with pytest.raises(AssertionError, match="played again"):
        analyze(Options(runs=runs, out=out, **{**SIZE, "seed": 1}))
    file = next((out / "points").glob("game_2048-000012-*/results.json"))
    whole = file.read_bytes()
    file.write_bytes(whole[:100])  # as after a kill
    with pytest.raises(AssertionError, match="played again"):
        analyze(Options(runs=runs, out=out, **SIZE))
    file.write_bytes(whole)


@pytest.mark.slow
def test_a_restarted_run_is_played_again(runs: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs[0], tmp_path / "copy"))
    assert open_run(copy).mark(6) == open_run(runs[0]).mark(6) != open_run(runs[0]).mark(3)
    shutil.rmtree(copy)
    make_run(copy, str(runs[0].parent / "model"), {6: 2})
    assert open_run(copy).mark(6) != open_run(runs[0]).mark(6)


@pytest.mark.slow
def test_a_checkpoint_being_written_is_ignored(runs: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs[0], tmp_path / "copy"))
    half = copy / "checkpoints" / "9.orbax-checkpoint-tmp"
    half.mkdir()
    assert open_run(copy).steps == (3, 6)
    assert half.is_dir()
    with Checkpoints(copy / "checkpoints", keep=3) as checkpoints:
        checkpoints.open()  # the run deletes it, in the background before it saves
        deadline = time.monotonic() + 20
        while half.is_dir():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out_with_a_note(
    runs: tuple[Path, Path], analysis: Analysis, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(runs[1], tmp_path / "copy"))
    for file in (copy / "checkpoints" / "8" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    shutil.copytree(out / "points", tmp_path / "out" / "points")
    for kept in (tmp_path / "out" / "points").glob("*-000008-*"):
        shutil.rmtree(kept)
    found = analyze(Options(runs=(copy,), out=tmp_path / "out", **SIZE))
    assert [checkpoint.step for checkpoint in found.runs[0].checkpoints] == [4, 12]
    assert "has 0 bytes, but" in capsys.readouterr().out


@pytest.mark.slow
def test_appearance_and_transfer(
    runs: tuple[Path, Path], analysis: Analysis, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appearance, "AXES", {"noise": (0.0, 64.0), "cell_size": (14, 28, 30, 600)})
    options: dict[str, Any] = {"looks": ("noise,cell_size",), "transfer": "noisy, shisen_sho:tiny", "checkpoint": 3}
    found = analyze(Options(runs=runs[:1], out=out, **options, **SIZE)).runs[0]
    assert found.tested_at == 3
    looks = {(point.variant.axis, point.variant.value): point for point in found.variants}
    assert [point.variant.is_own for point in found.variants] == [True, False, False, True, False, False]
    assert str(looks["noise", 0.0].metrics) == str(found.checkpoints[0].own["game_2048"].metrics)
    assert looks["noise", 64.0].metrics is not None
    assert looks["cell_size", 30].metrics is not None  # resized to whole visual tokens
    assert "cell_size=600" in looks["cell_size", 600].variant.why_not
    assert [(point.test.label, point.kinship) for point in found.transfer] == [
        ("game_2048:noisy", "other level"),
        ("shisen_sho:tiny", "other game"),
    ]
    page = (out / "analysis.md").read_text("utf-8")
    assert "| noise | 0 | 0.0% (0.0–0.0), own |" in page
    assert "- Not shown: game_2048, cell_size 600:" in page
    assert "| shisen_sho:tiny | g0, step 3 | other game | " in page


# Invalid options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": ()}, "name at least one run"),
        ({"runs": ("nowhere",)}, "no run at nowhere"),
        ({"runs": ("{0}", "{0}")}, "named twice"),
        ({"runs": ("{0}/checkpoints",)}, "is not a run's folder"),
        ({"looks": ("nois",)}, "unknown looks axis 'nois'; did you mean 'noise'"),
        ({"transfer": "noisi"}, "unknown preset or game 'noisi'; did you mean 'noisy'"),
        ({"transfer": "swap:nope"}, "unknown preset 'nope'"),
        ({"games": "swap"}, "games=swap: g0 was trained on game_2048; for other games"),
        ({"checkpoint": 4}, "g0 has no checkpoint 4; it keeps 3, 6"),
        ({"episodes": 0}, "episodes=0: expected a whole number from 1"),
    ],
)
def test_invalid_options_are_one_line(
    changes: dict[str, Any], message: str, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"runs": ("{0}",), "out": tmp_path / "out", **SIZE, **changes}
    options["runs"] = tuple(Path(str(run).format(*runs)) for run in options["runs"])
    with pytest.raises((EvaluationError, ExperimentError, LevelError), match=message) as caught:
        analyze(Options(**options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_runs_of_other_games_and_runs_without_checkpoints(runs: tuple[Path, Path], tmp_path: Path) -> None:
    model = str(runs[0].parent / "model")
    other = make_run(tmp_path / "other", model, {2: 1}, games=("shisen_sho",))
    with pytest.raises(
        EvaluationError, match=r"g0 was trained on game_2048; other was trained on shisen_sho\. Give --transfer=all"
    ):
        analyze(Options(runs=(runs[0], other), out=tmp_path / "out", **SIZE))
    empty = make_run(tmp_path / "empty", model, {})
    with pytest.raises(ExperimentError, match="empty has no checkpoint yet"):
        analyze(Options(runs=(empty,), out=tmp_path / "out", **SIZE))


def test_the_program_itself_ends_with_one_line() -> None:
    command = [sys.executable, str(REPOSITORY / "train" / "analyze.py"), "nowhere", "--looks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (1, "analyze: no run at nowhere: there is no such folder\n")
