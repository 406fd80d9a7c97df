"""Whole runs: their output, and that neither a stop nor a damaged checkpoint changes the metrics."""

import gc
import json
import os
import resource
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from g1jax import evaluation, vlm
from g1jax.evaluation.report import read_curves
from g1jax.evaluation.results import as_json
from g1jax.training import ExperimentError, TrainingError, loop, policy_of_run, run, run_evaluation, steps
from g1jax.training import setup as training_setup
from g1jax.training.checkpoints import Checkpoints
from g1jax.training.config import Experiment, Optimizer
from g1jax.training.progress import Progress
from g1jax.training.run_folder import RunFolder, read_config, read_metrics
from g1jax.training.saved_run import open_setup
from g1jax.training.setup import load_params, make_setup
from tests.training import tiny

COLD, ALL = 60, 64
PROGRAMS: tuple[Any, ...] = (steps.cold_step, steps.rl_step)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> list[str]:
    """The names of all programs compiled in this module; earlier ones are cleared."""
    names: list[str] = []

    def hear(event: str, duration_secs: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(about["fun_name"])

    for program in PROGRAMS:
        program.clear_cache()
    jax.monitoring.register_event_duration_secs_listener(hear)
    return names


class Watch(Progress):
    """Records all lines, and calls a function after each step and in the evaluation."""

    def __init__(self, do: Callable[[int], None] = lambda step: None) -> None:
        self.do = do
        self.lines: list[str] = []

    def step(self, step: int, phase: str, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        self.do(step)

    def part(self, name: str, done: int, total: int) -> None:
        self.do(ALL + 1)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(line)


def stop_at(step: int) -> Watch:
    """Sends SIGTERM to this process after a step, as a scheduler does."""
    return Watch(lambda now: os.kill(os.getpid(), signal.SIGTERM) if now == step else None)


def test_the_output_of_a_run(model: str, whole: Path) -> None:
    lines = read_metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, ALL + 1))
    assert [line["phase"] for line in lines] == ["cold_start"] * COLD + ["rl"] * (ALL - COLD)
    assert len((whole / "timings.jsonl").read_text().splitlines()) == ALL
    assert lines[0]["game_2048/loss"] > 3 * lines[COLD - 1]["game_2048/loss"] > 0
    assert all(line["gradient_norm"] > 0.01 and line["entropy"] > 0.1 for line in lines[COLD:])
    assert {"reward", "perception", "reasoning", "format", "length"} <= {
        key.split("/")[1] for key in lines[-1] if key.startswith("game_2048/")
    }
    assert read_config(whole) == tiny.make_experiment(model, whole)
    assert {file.name for file in (whole / "checkpoints").iterdir()} == {"40", "60", "64"}
    assert (whole / "curves.png").stat().st_size > 10_000
    events = b"".join(file.read_bytes() for file in (whole / "tensorboard").iterdir())
    assert events.count(b"samples/game_2048/0") == 4  # a frame and a text, at two steps
    assert b"\x89PNG" in events
    assert b"reward " in events
    assert "| final |" in (whole / "evaluation" / "final.md").read_text()
    assert {file.name for file in (whole / "evaluation").iterdir()} == {"final", "random", "final.md", "report.html"}
    page = (whole / "samples" / "step_000064.md").read_text()
    assert page.count("![frame]") == 2
    assert page.count("reward ") >= 4
    assert (whole / "samples" / "step_000064_game_2048_1.png").is_file()
    assert not list(whole.rglob("*.part"))


@pytest.mark.slow
def test_all_evaluations_of_a_run_are_in_one_table_and_change_nothing(model: str, whole: Path, tmp_path: Path) -> None:
    changes = {"evaluation__cold_start_episodes": 2, "evaluation__greedy": True}
    changes |= {"evaluation__play_every": 2, "evaluation__play_episodes": 2, "evaluation__play_steps": 2}
    watch = Watch()
    folder = run(tiny.make_experiment(model, tmp_path / "run", **changes), progress=watch)
    assert_play_is_in_metrics(folder, whole)
    assert watch.lines[-1].endswith(f"Report: {folder}/evaluation/report.html")
    players = ["cold_start", "cold_start_greedy", "final", "final_greedy", "random"]
    assert {path.name for path in (folder / "evaluation").iterdir() if path.is_dir()} == set(players)
    page = (folder / "evaluation" / "report.html").read_text("utf-8")
    assert '"ours":5}' in page
    assert page.count('"episode":1,') == 1
    assert '"perception":[[61.0,' in page
    scores = (folder / "evaluation" / "final.md").read_text().split("\n## ")[0]
    assert [line.split(" | ")[0].strip("| ") for line in scores.split("\n") if line.startswith("| ")][2:] == players
    found = {name: evaluation.load(folder / "evaluation" / name) for name in players}
    assert [found[name].player.get("temperature") for name in players] == [1.0, 0.0, 1.0, 0.0, None]
    assert as_json(found["final"])["games"] == as_json(evaluation.load(whole / "evaluation" / "final"))["games"]


def assert_play_is_in_metrics(folder: Path, whole: Path) -> None:
    """The score of play every two iterations; the other metrics are those of a run without."""
    lines = read_metrics(folder)
    assert [line["step"] for line in lines if "game_2048/play" in line] == [COLD + 2, COLD + 4]
    assert all(line["game_2048/play"] >= 0 for line in lines if "game_2048/play" in line)
    without = [{key: value for key, value in line.items() if not key.endswith("/play")} for line in lines]
    assert without == read_metrics(whole)
    assert [step for step, _ in read_curves(folder)["game_2048"]["play"]] == [COLD + 2, COLD + 4]


def test_a_damaged_earlier_evaluation_is_left_out(whole: Path, tmp_path: Path) -> None:
    final, watch = evaluation.load(whole / "evaluation" / "final"), Watch()
    for name in ("cold_start", "cold_start_greedy"):
        evaluation.save(final, tmp_path / name)
    (tmp_path / "cold_start" / "results.json").write_text("{")
    assert len(run_evaluation._earlier(tmp_path, [final], watch)) == 1
    assert len(watch.lines) == 1
    assert "results.json" in watch.lines[0]
    assert watch.lines[0].endswith("left out of the table")


def test_sampler_and_learner_agree(whole: Path) -> None:
    """The first pass over a batch has ratio 1."""
    for line in read_metrics(whole)[COLD:]:
        assert abs(line["ratio"] - 1) < 1e-5
        assert line["kl_sampler_k3"] < 1e-8


@pytest.mark.slow
def test_the_same_seed_gives_the_same_metrics(model: str, whole: Path, tmp_path: Path) -> None:
    again = run(tiny.make_experiment(model, tmp_path / "again"))
    assert tiny.metrics_of(again) == tiny.metrics_of(whole)
    for name in ("evaluation/final.md", "samples/step_000062.md"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("step", [62, *(pytest.param(step, marks=pytest.mark.slow) for step in (30, COLD, ALL + 1))])
def test_stopped_and_resumed(
    model: str, whole: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that it makes no difference when demonstrations are made a step ahead, as on an accelerator."""
    monkeypatch.setattr(loop, "_is_ahead", lambda: True)
    experiment = tiny.make_experiment(model, tmp_path / "run")
    watch = stop_at(step)
    folder = run(experiment, progress=watch)
    assert sum("run the same command to resume" in line for line in watch.lines) == 1
    assert watch.is_stopped
    done = min(step, ALL)
    assert len(read_metrics(folder)) == done
    assert (folder / "checkpoints" / str(done)).is_dir()
    assert not (folder / "evaluation" / "final.md").exists()
    watch = Watch()
    run(experiment, progress=watch)
    assert f"resumed after step {done} of {ALL}" in watch.lines
    assert not watch.is_stopped
    assert tiny.metrics_of(folder) == tiny.metrics_of(whole)
    assert (folder / "evaluation" / "final.md").read_bytes() == (whole / "evaluation" / "final.md").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [tiny.EVERY, tiny.ADAPTED, tiny.NARROW], ids=["all weights", "LoRA", "bfloat16"])
def test_stopped_and_resumed_with_every_setting_for_large_models(
    changes: Mapping[str, Any], model: str, tmp_path: Path
) -> None:
    whole = run(tiny.make_experiment(model, tmp_path / "whole", **changes))
    experiment = tiny.make_experiment(model, tmp_path / "run", **changes)
    run(experiment, progress=stop_at(3))
    assert len(read_metrics(tmp_path / "run")) == 3
    run(experiment)
    assert tiny.metrics_of(tmp_path / "run") == tiny.metrics_of(whole)


def test_a_finished_run_is_left_alone(model: str, whole: Path) -> None:
    before = tiny.metrics_of(whole)
    watch = Watch(lambda step: pytest.fail(f"step {step} of a finished run"))
    run(tiny.make_experiment(model, whole), progress=watch)
    assert tiny.metrics_of(whole) == before


def test_another_config_is_refused(model: str, whole: Path) -> None:
    changed = tiny.make_experiment(model, whole, rl__optimizer=Optimizer(lr=2e-3), seed=7)
    with pytest.raises(ExperimentError, match=r"another config: seed \(was 0, is 7\); rl.optimizer.lr \(was 0.001, is"):
        run(changed)


@pytest.mark.filterwarnings(
    "ignore:(?s)Exception ignored in.*(_read_array_index_and_device_put|Event loop is closed)"
    ":pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.slow
@pytest.mark.parametrize("part", ["all files", "one file"])
def test_a_damaged_checkpoint(model: str, whole: Path, tmp_path: Path, part: str) -> None:
    """The newest one is of RL, the one before of the cold start."""
    experiment = tiny.make_experiment(model, tmp_path / "run")
    folder = run(experiment, progress=stop_at(62))
    assert sorted(int(file.name) for file in (folder / "checkpoints").iterdir()) == [40, 60, 62]
    files = sorted(
        (file for file in (folder / "checkpoints" / "62").rglob("*") if file.is_file()), key=lambda f: f.stat().st_size
    )
    for file in files[-1:] if part == "one file" else files:
        os.truncate(file, file.stat().st_size // 2)
    watch = Watch()
    run(experiment, progress=watch)
    assert any("checkpoint 62 is damaged, and moved to" in line for line in watch.lines)
    assert "resumed after step 60 of 64" in watch.lines
    assert tiny.metrics_of(folder) == tiny.metrics_of(whole)
    gc.collect()  # Orbax's leftovers of the failed read warn when collected; here rather than in another test


def test_nothing_is_compiled_twice(whole: Path, compiled: list[str]) -> None:
    """Over all runs of this module, including resumed ones, which share a setup."""
    assert whole.is_dir()
    assert [compiled.count(f"jit({program.__name__})") for program in PROGRAMS] == [1, 1]


def test_the_policy_of_a_run(whole: Path) -> None:
    policy, params = policy_of_run(whole)
    assert policy.config == tiny.CONFIG
    norm = np.sqrt(sum(np.sum(np.square(np.asarray(leaf))) for leaf in jax.tree.leaves(params)))
    assert norm == pytest.approx(read_metrics(whole)[-1]["params_norm"], rel=1e-5)


# Errors during a run


def small(model: str, workdir: Path, **changes: object) -> Experiment:
    """One game and one state, to compile faster."""
    changes = {
        "cold_start__steps": 4,
        "cold_start__states": 1,
        "rl__iterations": 0,
        "evaluation__episodes": 0,
    } | changes
    return tiny.make_experiment(model, workdir, games=("game_2048",), **changes)


def test_reading_weights_reads_and_traces_nothing_else(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, read = open_setup(whole), list[list[str]]()
    with Checkpoints(whole / "checkpoints", keep=1, is_reader=True) as checkpoints:
        state = checkpoints.load(checkpoints.steps[-1], steps.template(setup, setup.experiment.num_steps))
    load = ocp.load

    def recorded(path: Path, wanted: Any) -> Any:
        read.append(list(wanted))
        return load(path, wanted)

    monkeypatch.setattr("g1jax.training.saved_run.template", None)
    monkeypatch.setattr(ocp, "load", recorded)
    chex.assert_trees_all_equal(policy_of_run(whole)[1], state.trained)
    assert read == [["trained"]]


def test_levels_of_the_cold_start_alternate(model: str, tmp_path: Path) -> None:
    mixed: dict[str, Any] = {"game_2048": ({}, {"spawn_four": 0.5})}
    setup = make_setup(tiny.make_experiment(model, tmp_path, cold_start__mixed_levels=mixed))
    state, _ = steps.init_state(setup, load_params(setup))
    cold = state.cold_envs[0]  # before `start_rl` drops them
    play = steps.start_rl(setup, state).play_envs[0]
    shares = [np.asarray(envs.states.level.spawn_four) for envs in (cold, play)]
    np.testing.assert_allclose(shares[0], [0.1, 0.5, 0.1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(shares[1], [0.1] * 4, rtol=1e-6)


def test_weights_that_are_not_finite(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detected in the step that produces them, before they are saved."""
    monkeypatch.setattr(training_setup, "check_experiment", lambda experiment: None)  # it rejects this learning rate
    lr = Optimizer(lr=1e30, warmup=3)  # the first step's is 0
    experiment = small(model, tmp_path / "run", cold_start__optimizer=lr, log__checkpoint_every=1)
    wrong = r"step 2 \(cold_start\), in game_2048: not finite: params_norm. The last checkpoint is from before"
    with pytest.raises(TrainingError, match=wrong):
        run(experiment)
    assert {file.name for file in (tmp_path / "run" / "checkpoints").iterdir()} == {"1"}
    assert len(read_metrics(tmp_path / "run")) == 1
    norm = read_metrics(tmp_path / "run")[0]["params_norm"]
    _, params = policy_of_run(tmp_path / "run")
    assert np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(params))) == pytest.approx(norm, rel=1e-5)


def test_a_loss_that_is_not_finite_names_its_game(model: str, tmp_path: Path) -> None:
    setup = make_setup(tiny.make_experiment(model, tmp_path, games=tiny.BOTH))
    metrics = {"gradient_norm": float("nan"), "game_2048/loss": 1.0, "shisen_sho/loss": float("inf")}
    with pytest.raises(
        TrainingError, match=r"step 7 \(rl\), in shisen_sho: not finite: gradient_norm, shisen_sho/loss"
    ):
        loop._check_finite(setup, metrics, 7, "rl")
    loop._check_finite(setup, {"game_2048/loss": 0.0}, 7, "rl")


def test_a_full_disk(model: str, tmp_path: Path) -> None:
    """Simulated by a limit on file sizes: the checkpoint does not fit, the metrics do."""
    experiment = tiny.make_experiment(model, tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, hard))
    try:
        with pytest.raises(OSError, match=r"run/checkpoints: checkpoint .* could not be written: .*") as caught:
            run(experiment)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert lines.endswith(b"\n")
    assert all(json.loads(line) for line in lines.splitlines())


def test_a_line_that_does_not_fit(model: str, tmp_path: Path) -> None:
    """No part of it is kept."""
    folder = RunFolder(tiny.make_experiment(model, tmp_path / "run"))
    folder.create()
    folder.write(1, "rl", {"loss": 1.0}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
    try:
        with pytest.raises(OSError, match=r"metrics.jsonl cannot be written: File too large"):
            folder.write(2, "rl", {"loss": 2.0}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_metrics(tmp_path / "run") == [{"step": 1, "phase": "rl", "loss": 1.0}]


def test_damaged_weights_leave_no_folder(tmp_path: Path) -> None:
    folder = Path(tiny.save_model(tmp_path / "model"))
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(vlm.WeightsError, match=r"model\.safetensors"):
        run(small(str(folder), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
