"""One run on several levels of a game: `swap` and `swap:tiny`."""

import dataclasses
import json
from pathlib import Path

import pytest

from g1jax.errors import ExperimentError, LevelError
from g1jax.rl.prompts import prompt_of
from g1jax.training import run
from g1jax.training.run_folder import read_metrics
from g1jax.training.saved_run import open_setup
from g1jax.training.setup import make_setup
from tests.training import tiny

GAMES = ("shisen_sho", "shisen_sho:tiny")


@pytest.mark.slow
def test_a_run_on_two_levels_of_a_game(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny.make_experiment(
        model, tmp_path / "run", games=GAMES, cold_start__steps=1, rl__iterations=1, evaluation__steps=1
    )
    experiment = dataclasses.replace(experiment, levels={"shisen_sho": {"rows": 2, "cols": 2}, GAMES[1]: {"rows": 2}})
    folder = run(experiment)
    first, *_, last = read_metrics(folder)
    assert {key.split("/")[0] for key in first if key.endswith("/loss")} == set(GAMES)
    assert {key.split("/")[0] for key in last if key.endswith("/success")} == set(GAMES)
    monkeypatch.setenv("G1JAX_ENVS", str(tmp_path))  # no presets: the run has its levels
    setup = open_setup(folder)
    assert [(game.id, game.rows, game.cols) for game in setup.games] == [("shisen_sho", 2, 2), (GAMES[1], 2, 4)]
    results = json.loads((folder / "evaluation" / "final" / "results.json").read_text())
    assert set(results["games"]) == set(GAMES)
    assert (folder / "samples" / "step_000002_shisen_sho-tiny_0.png").is_file()


def test_prompts_and_walks_of_a_level_are_those_of_its_game(model: str, tmp_path: Path) -> None:
    experiment = tiny.make_experiment(model, tmp_path / "run", games=GAMES)
    experiment = dataclasses.replace(experiment, rl=dataclasses.replace(experiment.rl, walk_steps={"shisen_sho": 3}))
    setup = make_setup(experiment)
    assert setup.rl.source.walk_steps == (3, 3)
    assert {prompt_of(setup.policy.templates, game) for game in setup.games} == {tiny.PROMPTS["shisen_sho"]}


@pytest.mark.parametrize(
    ("games", "message"),
    [
        (("shisen:tiny",), "unknown game 'shisen'"),
        (("shisen_sho:tiy",), "unknown preset 'tiy'; did you mean 'tiny'"),
        (("shisen_sho:tiny", "shisen_sho:tiny"), "list each game once"),
    ],
)
def test_a_level_that_does_not_exist_is_refused(
    games: tuple[str, ...], message: str, model: str, tmp_path: Path
) -> None:
    experiment = tiny.make_experiment(model, tmp_path / "run", games=games)
    with pytest.raises((ExperimentError, LevelError), match=message):
        make_setup(experiment)
    assert not (tmp_path / "run").exists()


def test_settings_may_name_a_level_that_the_command_line_leaves_out(model: str, tmp_path: Path) -> None:
    experiment = tiny.make_experiment(model, tmp_path / "run")
    make_setup(dataclasses.replace(experiment, levels={**tiny.LEVELS, "swap:6x6": {"cell_size": 56}}))
