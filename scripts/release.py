"""Makes a release: sets the version, dates the changelog, builds the wheel, and tries it in fresh environments.

python scripts/release.py 0.2.0
python scripts/release.py 0.2.0 --python python3.11 --python python3.12 --python python3.13

Nothing is committed, tagged or uploaded: the commands for that are printed at the end. If the wheel fails, or
Ctrl-C stops it, the changed files are restored.
"""

import argparse
import datetime
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = {"pyproject.toml": 'version = "{}"', "g1jax/__init__.py": '__version__ = "{}"'}
CHANGELOG = "CHANGELOG.md"
HEADING = "## Unreleased"
TRIAL = """
import jax
from g1jax import envs
for name in envs.game_ids():
    game = envs.make(name, "base", **({"images": "digits"} if "cifar" in name else {}))
    state = game.reset(jax.random.key(0))
    state, result = game.step(state, game.expert(state, jax.random.key(1)), jax.random.key(2))
    assert bool(result.is_legal) and game.render(state).shape == game.frame_shape, name
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="the new version, such as 0.2.0")
    parser.add_argument(
        "--python", action="append", help="an interpreter to try the wheel with; several; default: this one"
    )
    options = parser.parse_args()
    before = {name: (ROOT / name).read_text("utf-8") for name in (*FILES, CHANGELOG)}
    try:
        after = released(before, options.version, datetime.date.today())
        for name, text in after.items():
            (ROOT / name).write_text(text, "utf-8")
        wheel = build(options.version)
        for python in options.python or [sys.executable]:
            try_wheel(wheel, python, options.version)
    except BaseException as error:  # Ctrl-C too
        for name, text in before.items():
            (ROOT / name).write_text(text, "utf-8")
        if isinstance(error, ValueError | subprocess.CalledProcessError):
            sys.exit(f"release: {error}")
        raise
    print(f"{wheel} works. Next:\n\n    git commit -am 'Release {options.version}' && git tag v{options.version}")


def released(files: dict[str, str], version: str, date: datetime.date) -> dict[str, str]:
    """The files with the new version, and the first section of the changelog dated.

    Raises:
        ValueError: the version is no later one, or nothing has changed since the last release.
    """
    found = re.search(r'^version = "(.*)"$', files["pyproject.toml"], re.MULTILINE)
    assert found is not None
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or _numbers(version) <= _numbers(found[1]):
        raise ValueError(f"{version}: give a version such as 0.2.0, later than {found[1]}")
    section = re.search(rf"^{HEADING}\n\n(- .*?)(?=^## |\Z)", files[CHANGELOG], re.MULTILINE | re.DOTALL)
    if section is None:
        raise ValueError(f"{CHANGELOG}: '{HEADING}' lists no change")
    out = {name: files[name].replace(line.format(found[1]), line.format(version)) for name, line in FILES.items()}
    return out | {CHANGELOG: files[CHANGELOG].replace(f"{HEADING}\n", f"{HEADING}\n\n## {version} ({date})\n", 1)}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def build(version: str) -> Path:
    """The wheel, in `dist/`."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "dist", "."]
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / "dist" / f"g1jax-{version}-py3-none-any.whl"


def try_wheel(wheel: Path, python: str, version: str) -> None:
    """Installs the wheel in a fresh environment, away from the repository, and plays a step of every game."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", "env"], cwd=folder, check=True)
        programs = Path(folder) / "env" / "bin"
        subprocess.run([programs / "pip", "install", "-q", str(wheel)], cwd=folder, check=True)
        shown = subprocess.run(
            [programs / "g1jax", "--version"], cwd=folder, check=True, capture_output=True, text=True
        )
        if shown.stdout.strip() != version:
            raise ValueError(f"the wheel's version is {shown.stdout.strip()}")
        subprocess.run([programs / "g1jax", "train", "--help"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([programs / "python", "-c", TRIAL], cwd=folder, check=True)
    print(f"{python}: the wheel works", flush=True)


if __name__ == "__main__":
    main()
