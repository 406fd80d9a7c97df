"""Lints, checks types, runs the tests, and plays the games once as a user would. Stops at the first failure.

python scripts/check.py
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = (
    ["ruff", "format", "--check", "."],
    ["ruff", "check", "."],
    ["mypy"],
    ["scripts/random_play.py", "--games", "16", "--expert-games", "4", "--steps", "10"],
    ["pytest", "-q", "-n", "2"],
)


def main() -> None:
    """Runs every step with this interpreter; pytest's closing line comes last."""
    for step in STEPS:
        is_program = step[0].endswith(".py")
        command = [sys.executable, *([] if is_program else ["-m"]), *step]
        print(f"\n== {' '.join(step)}", flush=True)
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()
