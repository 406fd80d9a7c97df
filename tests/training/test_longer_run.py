"""A run becomes longer: it continues, and its earlier results stay."""

import dataclasses
from pathlib import Path

import pytest

from g1jax import evaluation
from g1jax.training import ExperimentError, run
from g1jax.training.config import Optimizer
from g1jax.training.longer_run import Lengths, check_lengths, keep_results, learning_rate_lines
from g1jax.training.run_folder import read_config, read_metrics
from tests.training import tiny
from tests.training.conftest import StopAt, experiment_in
from tests.training.test_run import Watch


def test_lengths_that_a_run_can_have(tmp_path: Path) -> None:
    """By its newest checkpoint: 0 none, 3 in the cold start of 4 steps, 6 in RL."""
    before = Lengths(4, 5)
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    refused = {0: [], 3: [(2, 5)], 6: [(5, 5), (3, 5), (4, 1)]}
    for done, lengths in refused.items():
        (tmp_path / "checkpoints" / str(done)).mkdir()
        for cold, rl in lengths:
            with pytest.raises(ExperimentError, match=r"RL has begun|are done; give") as caught:
                check_lengths(tmp_path, before, Lengths(cold, rl))
            assert "\n" not in str(caught.value)
        for allowed in {0: [(0, 1), (9, 0)], 3: [(3, 0), (9, 2)], 6: [(4, 2), (4, 5), (4, 50)]}[done]:
            check_lengths(tmp_path, before, Lengths(*allowed))


def test_the_learning_rate_is_said(model: str, tmp_path: Path) -> None:
    half = Optimizer(lr=1e-3, final_lr=0.5)
    e = tiny.make_experiment(model, tmp_path, rl__optimizer=half, rl__iterations=8)
    assert learning_rate_lines(e, Lengths(60, 4), 64) == [
        "rl.iterations 4 -> 8: the learning rate follows the schedule of 8, 0.00075 from here to 0.0005 (that of 4 was "
        "at 0.0005)"
    ]
    assert learning_rate_lines(e, Lengths(60, 8), 64) == []
    assert [line.split(" ")[0] for line in learning_rate_lines(e, Lengths(1, 1), 1)] == [
        "cold_start.steps",
        "rl.iterations",
    ]


def test_earlier_results_keep_their_content(tmp_path: Path) -> None:
    for name in ("final", "final_greedy", "cold_start", "random"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(name)
    for name in ("final.md", "report.html", "final_step_9.md"):
        (tmp_path / name).write_text(name)
    keep_results(tmp_path, Lengths(4, 5), Lengths(4, 8))
    after = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == {
        "final_step_9/results.json": "final",
        "final_greedy_step_9/results.json": "final_greedy",
        "cold_start/results.json": "cold_start",
        "random/results.json": "random",
        "final_step_9.md": "final_step_9.md",
        "final_step_9-2.md": "final.md",
        "report_step_9.html": "report.html",
    }


@pytest.mark.slow
def test_a_cold_start_becomes_longer_and_gets_rl(model: str, tmp_path: Path) -> None:
    """The cold start had no reference policy, which RL needs; its metrics stay."""
    folder = run(experiment_in(tmp_path / "run", model, evaluation__episodes=2))
    before, final = tiny.metrics_of(folder), (folder / "evaluation" / "final.md").read_bytes()
    longer = experiment_in(folder, model, evaluation__episodes=2, cold_start__steps=5, rl__iterations=1)
    assert longer.rl.algorithm.needs_reference
    watch = Watch()
    run(longer, progress=watch)
    assert "resumed after step 4 of 6" in watch.lines
    assert [line.split(":")[0] for line in watch.lines if "->" in line] == [
        "cold_start.steps 4 -> 5",
        "rl.iterations 0 -> 1",
    ]
    assert tiny.metrics_of(folder).startswith(before)
    assert [line["phase"] for line in read_metrics(folder)] == ["cold_start"] * 5 + ["rl"]
    assert (folder / "evaluation" / "final_step_4.md").read_bytes() == final
    assert evaluation.load(folder / "evaluation" / "final_step_4").name == "final"
    assert "\n| final_step_4 | " in (folder / "evaluation" / "final.md").read_text()
    assert read_config(folder).rl.iterations == 1
    with pytest.raises(ExperimentError, match=r"cold_start.steps \(was 5, is 6\) cannot change, as RL has begun"):
        run(dataclasses.replace(longer, cold_start=dataclasses.replace(longer.cold_start, steps=6)))


@pytest.mark.slow
def test_a_longer_run_is_the_run_of_that_length(model: str, tmp_path: Path) -> None:
    """With a constant learning rate, bit for bit: stopped, made longer in RL, and finished."""
    short, long = (tiny.make_experiment(model, tmp_path / "run", rl__iterations=n) for n in (2, 4))
    run(short, progress=StopAt(61))
    run(short)
    run(long)
    whole = run(tiny.make_experiment(model, tmp_path / "whole"))
    assert tiny.metrics_of(tmp_path / "run") == tiny.metrics_of(whole)
