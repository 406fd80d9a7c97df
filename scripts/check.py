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
    "--games shisen_sho --model=nano --cold-start.steps=2 --cold-start.states=2 --cold-start.microbatches=1 "
    "--rl.iterations=2 --rl.states=2 --rl.microbatches=1 --rl.num-samples=2 --log.samples-every=2 "
    "--evaluation.episodes=2 --evaluation.steps=2 --evaluation.cold-start-episodes=0"
)
TYPES = ["mypy"]
STEPS = (
    ["ruff", "format", "--check", "."],
    ["ruff", "check", "."],
    ["train/main.py", "--experiment=g1_multigame", "--workdir={temporary}/run", *BRIEF.split()],
    TYPES,
    ["pytest", "-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations=25"],
)


def main() -> None:
    """Runs every step with this interpreter; pytest's summary is printed last."""
    print_flags = "import os, tests; print(os.environ['XLA_FLAGS'])"  # programs compile as fast as tests do
    xla_flags = subprocess.check_output([sys.executable, "-c", print_flags], cwd=ROOT, text=True).strip()
    # CI: half of Hypothesis's examples, always the same ones. Bytecode is written, which some environments turn off:
    # tests start some hundred processes, which would each compile all modules.
    environment = {"CI": "1", **os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
    environment |= {"PYTHONDONTWRITEBYTECODE": ""}
    fast = environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": xla_flags}
    with tempfile.TemporaryDirectory() as temporary:
        # Types take half a minute of one core, which compiling the main job leaves free.
        types = subprocess.Popen(_command(TYPES), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for step in STEPS:
            arguments = [argument.format(temporary=temporary) for argument in step]
            print(f"\n== {' '.join(step)}", flush=True)
            start = time.monotonic()
            if step is TYPES:
                print(types.communicate()[0], end="")
                code = types.returncode
            else:
                code = subprocess.run(
                    _command(arguments), cwd=ROOT, env=fast if _is_program(step) else environment, check=False
                ).returncode
            if step is not STEPS[-1]:  # pytest's summary is the last line
                print(f"== {time.monotonic() - start:.0f} s", flush=True)
            if code:
                types.kill()
                sys.exit(code)


def _is_program(step: list[str]) -> bool:
    return step[0].endswith(".py")


def _command(step: list[str]) -> list[str]:
    return [sys.executable, *([] if _is_program(step) else ["-m"]), *step]


if __name__ == "__main__":
    main()
