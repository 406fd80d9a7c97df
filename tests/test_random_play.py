"""scripts/random_play.py prints its table."""

import subprocess
import sys

import pytest

from g1jax import envs
from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_the_script_prints_a_row_a_game() -> None:
    command = [sys.executable, "scripts/random_play.py", "--games", "16", "--expert-games", "4", "--steps", "10"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert [row[1].strip().strip("`") for row in rows] == list(envs.game_ids())
