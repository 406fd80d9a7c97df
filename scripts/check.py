"""Lints, checks types, runs the programs briefly as a user would, and runs the tests. Stops at the first failure.

python scripts/check.py
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BRIEF = (
    "--games game_2048 shisen_sho --model=nano --cold-start.steps=2 --cold-start.states=2 --cold-start.microbatches=1 "
    "--rl.iterations=2 --rl.states=2 --rl.microbatches=1 --rl.num-samples=2 --log.samples-every=2 "
    "--evaluation.episodes=2 --evaluation.steps=2 --evaluation.cold-start-episodes=0"
)
STEPS = (
    ["ruff", "format", "--check", "."],
    ["ruff", "check", "."],
    ["mypy"],
    ["scripts/random_play.py", "--games", "16", "--expert-games", "4", "--steps", "10"],
    ["train/main.py", "--experiment=g1_multigame", "--workdir={temporary}/run", *BRIEF.split()],
    ["pytest", "-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations=25"],
)


def main() -> None:
    """Runs every step with this interpreter; pytest's summary is printed last."""
    print_flags = "import os, tests; print(os.environ['XLA_FLAGS'])"  # programs compile as fast as tests do
    xla_flags = subprocess.check_output([sys.executable, "-c", print_flags], cwd=ROOT, text=True).strip()
    with tempfile.TemporaryDirectory() as temporary:
        for step in STEPS:
            is_program = step[0].endswith(".py")
            arguments = [argument.format(temporary=temporary) for argument in step]
            command = [sys.executable, *([] if is_program else ["-m"]), *arguments]
            print(f"\n== {' '.join(step)}", flush=True)
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
            if is_program:
                environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": xla_flags}
            start = time.monotonic()
            code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
            if step is not STEPS[-1]:  # pytest's summary is the last line
                print(f"== {time.monotonic() - start:.0f} s", flush=True)
            if code:
                sys.exit(code)


if __name__ == "__main__":
    main()
