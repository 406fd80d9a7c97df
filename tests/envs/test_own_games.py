"""A user's own games: imports of modules and files, entry points, and the metadata that `info` returns."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from g1jax import envs
from g1jax.envs import own_games, registry
from tests.conftest import REPOSITORY
from tests.envs.toy import Countdown
from tests.training import tiny

SOURCE = "from g1jax import envs\nfrom tests.envs.toy import Countdown\n\n\n@envs.register\nclass Own(Countdown):\n"
SOURCE += '    """Count down.\n\n    Slowly.\n    """\n\n    id = "own"\n'


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_GAMES", dict(registry._GAMES))
    monkeypatch.setattr(registry, "_EXTENSIONS", [])


def test_a_file_and_a_module_of_games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own_game_file.py"
    file.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    envs.import_games([str(file)])
    first = type(envs.make("own"))
    envs.import_games(["own_game_file.py", "../" + tmp_path.name + "/own_game_file.py"])
    assert type(envs.make("own")) is first, "imported once, so that games stay equal"
    assert "own_game_file" not in sys.modules
    with pytest.raises(
        envs.LevelError, match=r"--import=own_game_file: ModuleNotFoundError: .*--import=own_game_file.py"
    ):
        envs.import_games(["own_game_file"])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_game_module.py").write_text(SOURCE.replace('"own"', '"own_too"'))
    envs.import_games(["own_game_module"])
    assert envs.game_ids()[-2:] == ["own", "own_too"]
    monkeypatch.delitem(sys.modules, "own_game_module")


@pytest.mark.parametrize(
    ("source", "message"),
    [(None, "FileNotFoundError"), ("import nothing_here", "No module named 'nothing_here'$"), ("1 +", "SyntaxError"),
     ("raise ValueError('a\\nb')", "ValueError: a b$")],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_line(source: str | None, message: str, tmp_path: Path) -> None:
    file, before = tmp_path / "broken.py", set(sys.modules)
    if source is not None:
        file.write_text(source)
    with pytest.raises(envs.LevelError, match=message) as caught:
        envs.import_games([str(file)])
    assert str(caught.value).startswith(f"--import={file}: ")
    assert "\n" not in str(caught.value)
    assert not [name for name in set(sys.modules) - before if name.startswith("broken")]


def test_entry_points(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Loaded once, when ids are needed; a broken one is a notice."""
    points = [
        metadata.EntryPoint("a", "tests.envs.toy:Countdown", own_games.GROUP),
        metadata.EntryPoint("b", "tests.envs.not_there", own_games.GROUP),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "g1jax.games" else [])
    registry.extend(own_games.import_entry_points)
    assert type(envs.make("countdown")) is Countdown
    assert envs.game_ids()[-1] == "countdown"
    assert capsys.readouterr().err.count("the games of tests.envs.not_there cannot be used: ModuleNotFoundError") == 1
    with pytest.raises(envs.LevelError, match="did you mean 'countdown'"):
        envs.make("countdwn")


def test_an_installed_package(tmp_path: Path) -> None:
    """As pip installs it, in a process that imports nothing of it."""
    (tmp_path / "own_package.py").write_text(SOURCE)
    info = tmp_path / "own_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[g1jax.games]\nown = own_package\n")
    done = subprocess.run(
        [sys.executable, "-c", "from g1jax import envs; print(envs.make('own').num_actions, envs.game_ids()[-1])"],
        env=tiny.environment() | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "3 own\n", done.stderr


def test_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = envs.info("swap")
    assert (swap.id, swap.rows, swap.cols, swap.num_actions) == ("swap", 8, 8, envs.make("swap").num_actions)
    assert swap.presets["tiny"] == "5×5 with 3 colors × 2 shapes: a start for small models."
    assert set(swap.presets) == set(envs.presets("swap"))
    file = tmp_path / "own_game_info.py"
    file.write_text(SOURCE)
    envs.import_games([str(file)])
    assert envs.info("own") == envs.GameInfo("own", "Count down.", 1, 2, 3, {})
    (tmp_path / "own.toml").write_text("[easy]\nmost = 1\n")
    monkeypatch.setenv(registry.PRESETS_VARIABLE, str(tmp_path))
    assert envs.info("own").presets == {"easy": ""}
    with pytest.raises(envs.LevelError, match="unknown game 'swop'"):
        envs.info("swop")
