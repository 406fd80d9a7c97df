"""scripts/sweep.py: variants of an experiment, several seeds each, as a table."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

COMMON = [
    "--experiment=g0_swap", "--model=micro", "--games", "game_2048", "--rl.iterations=2", "--rl.states=2",
    "--rl.num-samples=2", "--rl.microbatches=1", "--max-new-tokens=4", "--evaluation.episodes=0",
]  # fmt: skip


def sweep(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/sweep.py", f"--out={out}", "--seeds=2", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_it_runs_each_variant_with_each_seed_and_resumes(tmp_path: Path) -> None:
    variants = ["--variant=grpo", "--rl.algorithm=grpo", "--variant=rloo", "--rl.algorithm=rloo"]
    done = sweep(tmp_path, *COMMON, *variants)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"grpo-0", "grpo-1", "rloo-0", "rloo-1"}
    table = (tmp_path / "sweep.md").read_text("utf-8")
    assert table in done.stdout
    assert [line.split(" | ")[:2] for line in table.splitlines() if "game_2048" in line] == [
        ["| grpo", "game_2048"],
        ["| rloo", "game_2048"],
    ]
    metrics = {path: path.read_bytes() for path in tmp_path.glob("*/metrics.jsonl")}
    assert sweep(tmp_path, *COMMON, *variants).returncode == 0
    assert {path: path.read_bytes() for path in metrics} == metrics


def test_a_wrong_command_is_one_line(tmp_path: Path) -> None:
    for arguments, message in (
        ([], "name at least one variant"),
        (["--variant=a", "--variant=a"], "give each variant its own name"),
        (["--variant=a", "--rl.lr=fast"], "rl.lr"),
    ):
        done = sweep(tmp_path / "out", *COMMON, *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert message in done.stderr
    assert not (tmp_path / "out").exists()
