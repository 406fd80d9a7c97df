"""scripts/sweep.py: variants of an experiment, several seeds each, as a table."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from PIL import Image

from g1jax import envs
from g1jax.errors import ExperimentError
from g1jax.evaluation import play, random_player, result_of, save
from tests.conftest import REPOSITORY, load_script

COMMON = [
    "--experiment=g0_swap", "--model=micro", "--games", "game_2048", "--rl.iterations=2", "--rl.states=2",
    "--rl.num-samples=2", "--rl.microbatches=1", "--max-new-tokens=4", "--evaluation.episodes=0",
]  # fmt: skip


def sweep(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/sweep.py", f"--out={out}", "--seeds=2", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture
def script() -> ModuleType:
    return load_script("scripts/sweep.py")


def test_the_table_has_means_and_intervals_over_seeds(script: ModuleType, tmp_path: Path) -> None:
    game, scores = envs.make("game_2048"), []
    for seed, success in enumerate((0.4, 0.5, 0.6)):
        folder = tmp_path / f"grpo-{seed}"
        folder.mkdir()
        curve = [0.2] * 2 + [0.9] * 6 + [success] * 2
        lines = [{"step": i, "phase": "rl", "game_2048/success": rate} for i, rate in enumerate(curve)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        played = play(game, random_player(), 4, 5, seed)
        save(result_of({"name": "final"}, {"game_2048": played}), folder / "evaluation" / "final")
        scores.append(float(np.mean(played.score.sum(axis=1))))
    row = script.summary(tmp_path, ["grpo"], 3).splitlines()[-1]
    assert row.startswith("| grpo | game_2048 | 0.20 ± 0.00 → 0.50 ± 0.25 | – | "), row
    one = script.summary(tmp_path, ["grpo"], 1).splitlines()[-1]
    assert one == f"| grpo | game_2048 | 0.20 → 0.40 | – | {script.interval([scores[0]])} |"


def test_curves_have_a_line_and_an_interval_for_each_variant(script: ModuleType, tmp_path: Path) -> None:
    for name, rates in (("g0", (0.2, 0.4)), ("g1", (0.8, 0.8))):
        for seed, rate in enumerate(rates):
            (tmp_path / f"{name}-{seed}").mkdir()
            lines = [
                {"step": i, "phase": "rl", "swap/success": rate, "swap/perception": float(i > 2), "swap/reasoning": 0.5}
                for i in range(6)
            ]
            file = tmp_path / f"{name}-{seed}" / "metrics.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in [{"step": 0, "phase": "cold"}, *lines]))
    curves = {name: script.curves_of(tmp_path, name, 2) for name in ("g0", "g1")}
    np.testing.assert_array_equal(curves["g0"]["swap"]["success"], [[0.2] * 6, [0.4] * 6])
    reasoning = curves["g0"]["swap"]["reasoning"]
    assert np.isnan(reasoning[:, :3]).all(), "unknown where no board is read"
    assert (reasoning[:, 3:] == 0.5).all()
    for name, of_name in script.together([tmp_path], 2).items():
        jax.tree.map(np.testing.assert_array_equal, of_name, curves[name])
    with pytest.raises(ExperimentError, match="has no runs of a sweep"):
        script.together([tmp_path / "g0-0"], 2)
    script.draw(tmp_path / "sweep.png", curves)
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.width > image.height / 2 > 100


@pytest.mark.slow
def test_it_runs_each_variant_with_each_seed_and_resumes(tmp_path: Path) -> None:
    variants = ["--variant=grpo", "--rl.algorithm=grpo", "--variant=rloo", "--rl.algorithm=rloo"]
    done = sweep(tmp_path, *COMMON, *variants)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"grpo-0", "grpo-1", "rloo-0", "rloo-1"}
    table = (tmp_path / "sweep.md").read_text("utf-8")
    assert table in done.stdout
    assert (tmp_path / "sweep.png").is_file()
    assert [line.split(" | ")[:2] for line in table.splitlines() if "game_2048" in line] == [
        ["| grpo", "game_2048"],
        ["| rloo", "game_2048"],
    ]
    metrics = {path: path.read_bytes() for path in tmp_path.glob("*/metrics.jsonl")}
    assert sweep(tmp_path, *COMMON, *variants).returncode == 0
    assert {path: path.read_bytes() for path in metrics} == metrics


def test_a_wrong_command_is_one_line(script: ModuleType, tmp_path: Path) -> None:
    for arguments, message in (
        ([], "name at least one variant"),
        (["--variant=a", "--variant=a"], "give each variant its own name"),
        (["--variant="], "give each variant its own name"),
    ):
        with pytest.raises(ExperimentError, match=message):
            script.split_variants(arguments)
    done = sweep(tmp_path / "out", *COMMON, "--variant=a", "--rl.lr=fast")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "rl.optimizer.lr" in done.stderr
    assert not (tmp_path / "out").exists()
