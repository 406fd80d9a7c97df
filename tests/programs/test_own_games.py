"""`--import=my_games.py` in the programs; a run's folder remembers it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from g1jax import envs
from g1jax.envs import registry
from g1jax.errors import ExperimentError, G1Error
from g1jax.evaluation import load
from g1jax.programs import command_line, train
from g1jax.programs.evaluate import Options, evaluate
from g1jax.training.config import Experiment, check_experiment
from g1jax.training.run_folder import RunFolder, read_config
from g1jax.training.saved_run import open_setup
from g1jax.training.setup import make_setup, weights_folder
from tests.conftest import REPOSITORY
from tests.envs.test_own_games import SOURCE
from tests.training import tiny

CHANGES = {"games": ("own",), "levels": {}, "prompts": {"own": "Down"}, "cold_start__steps": 2, "rl__iterations": 1}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a game; the registry is restored afterwards."""
    monkeypatch.setattr(registry, "_GAMES", dict(registry._GAMES))
    file = tmp_path / "my_games.py"
    file.write_text(SOURCE)
    return file


def forget(file: Path) -> None:
    """As in another process."""
    registry._GAMES.pop("own", None)
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(file)]:
        del sys.modules[name]


def test_a_run_remembers_its_imports(file: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = tiny.write_experiment(tmp_path / "tiny.py", model, tmp_path / "run", **CHANGES)
    with pytest.raises(G1Error, match="unknown game 'own'"):
        train.parse([f"--experiment={named}"], "")
    experiment = train.parse([f"--experiment={named}", "--import=my_games.py"], "")
    assert experiment.imports == (str(file),)
    setup = make_setup(experiment)
    RunFolder(experiment).create(lambda: tiny.save_setup(tmp_path / "run", setup, weights_folder(setup)))
    for use in (lambda: open_setup(tmp_path / "run"), lambda: train.parse([f"--experiment={named}"], "")):
        forget(file)
        use()
        assert "own" in envs.game_ids()
    RunFolder(tiny.make_experiment(model, tmp_path / "run", **CHANGES))._write_config()
    assert read_config(tmp_path / "run").imports == (str(file),), "kept where the resumed run names none"
    forget(file)
    moved = file.rename(tmp_path / "moved.py")
    with pytest.raises(G1Error, match=r"--import=.*my_games.py: FileNotFoundError"):
        open_setup(tmp_path / "run")
    assert train.parse([f"--experiment={named}", "--import=moved.py"], "").imports == (str(moved),)
    open_setup(tmp_path / "run")
    forget(moved)


def test_every_program_imports(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = [f"--import={file}", "--player=expert", "--games=own", "--episodes=2", "--steps=2", f"--out={out}"]
    assert command_line.main("evaluate", Options, evaluate, arguments, "") == 0
    assert load(out).games["own"].level["most"] == 3
    assert command_line.main("evaluate", Options, evaluate, ["--import"], "") == 1
    assert capsys.readouterr().err.endswith("evaluate: --import: a name is missing\n")


@pytest.mark.slow
def test_whole_programs(file: Path, model: str, tmp_path: Path) -> None:
    named = tiny.write_experiment(tmp_path / "tiny.py", model, tmp_path / "run", **CHANGES)

    def program(name: str, *arguments: str) -> None:
        command = [sys.executable, f"train/{name}.py", *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, env=tiny.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    program("main", f"--experiment={named}", f"--import={file}", "--rl.iterations=0")
    program("main", f"--experiment={named}", "--rl.iterations=0")
    program("evaluate", f"--player={tmp_path / 'run'}", "--episodes=2", "--steps=2", f"--out={tmp_path / 'out'}")
    assert list(load(tmp_path / "out").games) == ["own"]
    program("make_dataset", f"--import={file}", "--games=own", "--states=3", f"--out={tmp_path / 'data'}")
    assert json.loads((tmp_path / "data" / "data.jsonl").read_text().splitlines()[0])["game"] == "own"


def test_a_run_of_others_leads_to_no_file_nearby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path could be a file that came with the run."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExperimentError, match=r"imports: 'evil.py': give the absolute path"):
        check_experiment(Experiment(name="x", games=("unknown_game",), imports=("evil.py",)))
