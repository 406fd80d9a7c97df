"""What one accelerator does, in 12 minutes, most important first: for an H100 or H200 that is at hand for a short time.

    python benchmarks/device.py --out=runs/device            # on the accelerator
    python benchmarks/device.py --out=runs/device --tiny     # the same programs at tiny sizes, on any machine

Each part is a process of its own, so that it starts with all of the memory. Its output is printed and kept as it comes
in `OUT/<part>.txt`; a part that does not end in its time is stopped, and no part starts that has too little time left.
The same command runs only the parts that have not ended.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_END = "part ended with status 0"


@dataclass(frozen=True)
class Part:
    """A benchmark with its arguments."""

    name: str
    script: str
    arguments: tuple[str, ...]
    tiny: tuple[str, ...]
    """Its arguments with --tiny."""
    seconds: int
    """How long it may take, with compilation."""


_LARGE = ("--models=3B", "--turns=3")
_NANO = ("--models=nano", "--turns=1", "--batch=2", "--no-torch")
_WRITE = ("--tables=speed", "--rows=generate,score")
_TRAIN = ("--tables=memory,speed", "--rows=train")
PARTS = (
    Part("iteration", "train.py", ("--no-first-steps", "--turns=5"),
         ("--no-first-steps", "--turns=1", "--games=game_2048", "--states=2", "--samples=2", "--microbatches=1"), 240),
    Part("large", "vlm.py", (*_LARGE, *_WRITE), (*_NANO, *_WRITE), 240),
    Part("large-update", "vlm.py", (*_LARGE, *_TRAIN, "--no-torch"), (*_NANO, *_TRAIN), 150),
    Part("large-update-cudnn", "vlm.py", (*_LARGE, *_TRAIN, "--no-torch", "--attention=cudnn"),
         (*_NANO, *_TRAIN, "--attention=blockwise"), 150),
    Part("frames", "envs.py", ("--tables=games", "--batches=16384"),
         ("--tables=games", "--batches=64", "--games=game_2048", "--quick", "--small-pages"), 120),
)  # fmt: skip
"""In order of worth."""


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the output")
    parser.add_argument("--minutes", type=float, default=12.0, help="for all parts (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS), help="which (default: %(default)s)")
    options = parser.parse_args()
    named = options.parts.split(",")
    known = [part.name for part in PARTS]
    if not set(named) <= set(known):
        parser.error(f"--parts={options.parts}: expected some of {','.join(known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    statuses = [run_part(part, options.out, end, options.tiny) for part in PARTS if part.name in named]
    sys.exit(max(statuses, default=0))


def run_part(part: Part, out: Path, end: float, is_tiny: bool) -> int:
    """Runs a part unless it has ended before; 0 if it ended well."""
    file = out / f"{part.name}.txt"
    if file.is_file() and _END in file.read_text("utf-8"):
        print(f"## {part.name}: done before, in {file}\n", flush=True)
        return 0
    left = end - time.monotonic()
    if left < min(part.seconds / 2, 60):
        print(f"## {part.name}: not started, {left:.0f} s are left\n", flush=True)
        return 1
    command = [sys.executable, str(_FOLDER / part.script), *(part.tiny if is_tiny else part.arguments)]
    return stream(command, file, min(part.seconds, left))


def stream(command: Sequence[str], file: Path, seconds: float) -> int:
    """Runs a command, and prints and keeps its output as it comes; stops it after so many seconds."""
    start = time.monotonic()
    with file.open("w", encoding="utf-8") as kept:

        def tell(text: str) -> None:
            for stream in (kept, sys.stdout):
                stream.write(text)
                stream.flush()

        tell(f"## {file.stem}: {' '.join(Path(part).name if part == command[1] else part for part in command[1:])}\n\n")
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # torch runs in the same process
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            timer = threading.Timer(seconds, process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                tell(line)
            status = process.wait()
            timer.cancel()
        tell(f"part ended with status {status} after {time.monotonic() - start:.0f} s\n\n")
    return 0 if status == 0 else 1


if __name__ == "__main__":
    main()
