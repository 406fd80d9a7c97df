"""`make`: games by name, presets from files, and errors with suggestions."""

import copy
import pickle
import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import registry
from g1jax.envs.games.swap import Swap
from tests.conftest import REPOSITORY

GAMES = ["game_2048", "shisen_sho", "shisen_sho_cifar10", "swap"]

PRESETS = """
[base]
about = "the paper's board"
rows = 6

[large]
about = "more of everything"
rows = 8
cols = 10
colors = 8

[noisy]
noise = 12
palette = ["deep", "classic"]

[wrong_key]
colours = 3

[unplayable]
rows = 3
cols = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of presets, named by the variable."""
    (tmp_path / "shisen_sho.toml").write_text(PRESETS, "utf-8")
    monkeypatch.setenv(registry.PRESETS_VARIABLE, str(tmp_path))
    return tmp_path


def refused(message: str) -> Any:
    return pytest.raises(envs.LevelError, match=message)


def test_the_four_games_are_known() -> None:
    assert envs.game_ids()[:4] == GAMES
    for game_id in GAMES:
        keys = {"images": "digits"} if game_id == "shisen_sho_cifar10" else {}
        assert envs.make(game_id, **keys).id == game_id


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("game_2084", "unknown game 'game_2084'; did you mean 'game_2048'"),
        ("shisen-sho", "unknown game 'shisen-sho'; did you mean 'shisen_sho' or 'shisen_sho_cifar10'"),
        ("Swap", "unknown game 'Swap'; did you mean 'swap'"),
        ("tetris", r"unknown game 'tetris'\. Available: game_2048, shisen_sho, shisen_sho_cifar10, swap"),
        ("", "unknown game ''"),
    ],
)
def test_an_unknown_game_is_refused_with_suggestions(name: str, message: str) -> None:
    with refused(message):
        envs.make(name)


@pytest.mark.parametrize(
    ("game_id", "key", "message"),
    [
        ("swap", "colour", r"unknown level key 'colour'; did you mean 'colors'.*Available: rows, cols, .*, cell_size"),
        ("swap", "row", "unknown level key 'row'; did you mean 'rows'"),
        ("game_2048", "spawn_4", "unknown level key 'spawn_4'; did you mean 'spawn_four'"),
        ("game_2048", "colors", "unknown level key 'colors'"),
        ("shisen_sho", "x", r"unknown level key 'x'\. Available"),
    ],
)
def test_an_unknown_key_is_refused_with_suggestions(game_id: str, key: str, message: str) -> None:
    with refused(message):
        keys: dict[str, Any] = {key: 1}
        envs.make(game_id, **keys)


# ---- Presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_presets_compose_from_left_to_right_and_keys_come_last() -> None:
    def shape(preset: str | None, **keys: Any) -> tuple[int, int, int]:
        level = envs.make("shisen_sho", preset, **keys).level
        return level.rows, level.cols, level.colors

    assert shape(None) == (6, 6, 6)
    assert shape("base") == (6, 6, 6)
    assert shape("large") == (8, 10, 8)
    assert shape("base+large") == (8, 10, 8)
    assert shape("large+base") == (6, 10, 8)
    assert shape("large+base", cols=4, colors=3) == (6, 4, 3)
    level = envs.make("shisen_sho", preset="base+noisy").level
    assert (level.appearance.noise, level.appearance.palette) == (12.0, ("deep", "classic"))


@pytest.mark.usefixtures("folder")
def test_a_level_can_have_a_name_of_its_own() -> None:
    game = envs.make("shisen_sho:large", tile_types=4)
    assert (game.id, game.base_id, game.rows, game.cols) == ("shisen_sho:large", "shisen_sho", 8, 10)
    assert game.level == envs.make("shisen_sho", "large", tile_types=4).level
    assert game == envs.make("shisen_sho:large", tile_types=4) != envs.make("shisen_sho", "large", tile_types=4)
    assert repr(game).startswith("make('shisen_sho:large', ")
    assert game.with_keys(rows=6).id == game.id
    for copied in (pickle.loads(pickle.dumps(game)), copy.deepcopy(game)):
        assert (type(copied), copied) == (type(game), game)
    assert envs.make("shisen_sho:base", "noisy").level == envs.make("shisen_sho", "base+noisy").level
    for name, message in (("shisen_sho:larg", "unknown preset 'larg'; did you mean 'large'"), ("swp:x", "'swp'; did")):
        with refused(message):
            envs.make(name)


def test_a_level_under_its_own_name_has_its_game_s_settings_unless_it_has_its_own() -> None:
    table = {"swap": 1, "swap:tiny": 2}
    names = ("swap", "swap:tiny", "swap:base", "game_2048:late")
    assert [envs.setting_of(table, name, 0) for name in names] == [1, 2, 1, 0]


@pytest.mark.usefixtures("folder")
def test_presets_are_listed_without_their_about_lines() -> None:
    presets = envs.presets("shisen_sho")
    assert list(presets) == ["base", "large", "noisy", "wrong_key", "unplayable"]
    assert presets["base"] == {"rows": 6}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("larg", "shisen_sho: unknown preset 'larg'; did you mean 'large'.*Available: base, large, noisy"),
        ("base+nosy", "unknown preset 'nosy'; did you mean 'noisy'"),
        ("base+", "unknown preset ''"),
        ("base large", "unknown preset 'base large'"),
        ("wrong_key", "unknown level key 'colours'; did you mean 'colors'"),
        ("unplayable", "shisen_sho: rows=3, cols=3: 9 tiles, an odd number"),
    ],
)
def test_presets_that_cannot_be_used_are_refused(preset: str, message: str) -> None:
    with refused(message):
        envs.make("shisen_sho", preset=preset)


def test_a_missing_preset_file_is_named_with_its_folder(folder: Path) -> None:
    with refused(rf"no presets for swap: swap\.toml is not in {folder}.*variable G1JAX_ENVS"):
        envs.make("swap", preset="base")
    with refused("no presets for game_2084"):
        envs.presets("game_2084")
    assert envs.make("swap").id == "swap"


def test_nothing_is_found_by_accident_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.PRESETS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "swap.toml").write_text("[mine]\nrows = 5\n", "utf-8")
    assert set(envs.presets("swap")) == set(tomllib.loads((REPOSITORY / "envs" / "swap.toml").read_text("utf-8")))
    with refused("unknown preset 'mine'"):
        envs.make("swap", preset="mine")
    monkeypatch.setenv(registry.PRESETS_VARIABLE, "envs")  # by an explicit path
    assert envs.make("swap", preset="mine").level.rows == 5


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"[base\nrows = 6", r"swap\.toml: .*line 1"),
        (b"rows = 6", r"swap\.toml: rows is outside of a \[preset\] table"),
        (b"[base]\nrows = 6\n[base]\nrows = 7", r"swap\.toml: "),
        (b"[base]\nabout = '\xff'", r"swap\.toml"),
    ],
)
def test_a_broken_preset_file_is_named(folder: Path, contents: bytes, message: str) -> None:
    (folder / "swap.toml").write_bytes(contents)
    with refused(message):
        envs.make("swap", preset="base")


SHIPPED = [
    (file.stem, preset)
    for file in sorted((REPOSITORY / "envs").glob("*.toml"))
    for preset in tomllib.loads(file.read_text("utf-8"))
]


@pytest.mark.parametrize(("game_id", "preset"), SHIPPED)
def test_every_shipped_preset_makes_a_game(game_id: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.PRESETS_VARIABLE, str(REPOSITORY / "envs"))
    keys = {"images": "digits"} if game_id == "shisen_sho_cifar10" else {}
    game = envs.make(game_id, preset=preset, **keys)
    assert game.id == game_id
    assert tomllib.loads((REPOSITORY / "envs" / f"{game_id}.toml").read_text("utf-8"))[preset]["about"]


# ---- A user's own game -----------------------------------------------------------------------------------------------


def test_a_users_own_game_is_made_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_GAMES", dict(registry._GAMES))

    @envs.register
    class Wide(Swap):
        id = "wide_swap"

    assert envs.game_ids()[-1] == "wide_swap"
    game = envs.make("wide_swap", cols=9)
    assert type(game) is Wide
    assert np.asarray(jax.eval_shape(game.reset, jax.random.key(0)).board.shape).tolist() == [8, 9]
    with refused("unknown game 'wide_swop'; did you mean 'wide_swap'"):
        envs.make("wide_swop")
