"""The wheel contains everything needed to use the installed package in any folder."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import g1jax
from tests.conftest import REPOSITORY
from tests.training import tiny

SOURCE = ("pyproject.toml", "README.md", "LICENSE", "g1jax", "g1jax_verifiers.py", "envs", "experiments")
SCRIPT = """
import os, sys
from pathlib import Path
import g1jax
from g1jax import envs, vlm
from g1jax.training import experiment_names, load_experiment
from g1jax.training.saved_model import SHIPPED
from g1jax.evaluation import report

assert Path(g1jax.__file__).parent == Path(sys.argv[1]) / "g1jax"
print(envs.make("shisen_sho", preset="base+more_tiles+noisy").level.appearance.noise > 0)
print([load_experiment(name).name for name in experiment_names()] == sys.argv[2].split(","))
print(load_experiment("mine/g1_swap.py").name, "swap" in envs.presets("swap"))
vlm.Tokenizer.load("games"), envs.make("shisen_sho_cifar10", images="digits")
[vlm.load_config(folder) for folder in SHIPPED.values()]
try:
    load_experiment("mine")
except ValueError as error:
    print(error)
import gymnasium
print(gymnasium.make("g1jax.adapters.gymnasium:g1jax/Game2048-v0").action_space)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder with the package installed."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCE:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(source, folder / "source" / name)
    command = [
        sys.executable,
        "-c",
        "import setuptools; setuptools.setup()",
        "-q",
        "build_py",
        "--build-lib",
        "../site",
    ]
    done = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "source")
    return folder / "site"


def test_it_has_all_files_of_the_package_and_nothing_else(site: Path) -> None:
    expected = {file.relative_to(REPOSITORY) for file in (REPOSITORY / "g1jax").rglob("*") if _is_source(file)}
    expected |= {Path("g1jax/presets") / file.name for file in (REPOSITORY / "envs").iterdir() if _is_source(file)}
    expected |= {Path("g1jax/experiments") / file.name for file in (REPOSITORY / "experiments").glob("*.py")}
    expected.add(Path("g1jax_verifiers.py"))
    found = {file.relative_to(site) for file in site.rglob("*") if file.is_file()}
    assert found == expected


def _is_source(file: Path) -> bool:
    return file.is_file() and file.suffix not in (".pyc",) and file.parent != REPOSITORY / "g1jax" / "data"


def test_installed_it_works_in_any_folder(site: Path, tmp_path: Path) -> None:
    """Presets and experiments are found by name; those in the working folder only by path."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "swap.toml").write_text("[swap]\nrows = 5\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "experiments").mkdir()
    for file in (tmp_path / "mine" / "g1_swap.py", tmp_path / "experiments" / "mine.py"):
        file.write_text(
            "from g1jax.training.config import Experiment\ndef get_config(): return Experiment(name='own')\n"
        )
    names = ",".join(sorted(file.stem for file in (REPOSITORY / "experiments").glob("*.py")))
    known = {key: value for key, value in os.environ.items() if key != "G1JAX_ENVS"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, site, names],
        cwd=tmp_path, env={**known, "PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["True", "True", "own False"]
    assert done.stdout.splitlines()[3].startswith("unknown experiment 'mine'")
    assert done.stdout.splitlines()[4] == "Discrete(4)"


def run(site: Path, folder: Path, *arguments: str) -> str:
    """What the installed command prints, in a folder."""
    command = [sys.executable, "-c", "from g1jax.programs import cli; raise SystemExit(cli.main())", *arguments]
    environment = {**tiny.environment(), "PYTHONPATH": str(site)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_the_command_evaluates_in_any_folder(site: Path, tmp_path: Path) -> None:
    assert "--rl.iterations" in run(site, tmp_path, "train", "--help")
    run(site, tmp_path, "evaluate", "--games=game_2048:tiny", "--episodes=2", "--steps=2", "--out=out")
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_installed_the_command_trains_in_any_folder(site: Path, tmp_path: Path, model: str) -> None:
    settings = (
        "--cold-start.steps=1 --cold-start.states=2 --cold-start.microbatches=1 --rl.iterations=1 --rl.states=2 "
        "--rl.num-samples=2 --rl.microbatches=1 --evaluation.episodes=0 --evaluation.cold-start-episodes=0"
    )
    run(site, tmp_path, "train", "--experiment=g1_game_2048", f"--model={model}", "--workdir=run", *settings.split())
    steps = [json.loads(line)["phase"] for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert steps == ["cold_start", "rl"]
    run(site, tmp_path, "evaluate", "--player=run", "--games=game_2048:tiny", "--episodes=2", "--steps=2", "--out=out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_wheel_has_the_command() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    module, function = project["scripts"]["g1jax"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_package_is_listed() -> None:
    setuptools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    package = Path(g1jax.__file__).parent
    own = {file.parent.relative_to(package.parent) for file in package.rglob("__init__.py")}
    assert set(setuptools["packages"]) == {".".join(path.parts) for path in own} | set(setuptools["package-dir"])
