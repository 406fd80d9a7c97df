"""A run's folder holds its setup: changes outside of it have no effect."""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from g1jax import envs, vlm
from g1jax.envs import images
from g1jax.envs.games import shisen_sho_cifar10
from g1jax.errors import ConfigError
from g1jax.programs.evaluate import games_for_run
from g1jax.rl.prompts import prompt_of
from g1jax.sft.dataset import Example
from g1jax.sft.dataset_writer import DatasetWriter
from g1jax.sft.states import StateSource, make_examples
from g1jax.teachers import built_in
from g1jax.training import ExperimentError, loop, policy_of_run, run
from g1jax.training.checkpoints import Checkpoints
from g1jax.training.config import Experiment
from g1jax.training.run_folder import RunFolder, read_config
from g1jax.training.saved_run import open_run, open_setup
from g1jax.training.saved_setup import BUDGETS, has_setup, resolved
from g1jax.training.setup import load_params, make_setup, weights_folder
from g1jax.training.steps import init_state
from g1jax.vlm.lora import LoRA
from tests.training import tiny
from tests.training.conftest import StopAt, experiment_in
from tests.training.test_nothing_lost import assert_nothing_lost, files_in
from tests.training.test_run import Watch

PRESET = '[preset]\nabout = "x"\nrows = 2\ncols = 2\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model, a preset and the file of a prompt."""
    folder = tmp_path / "place"
    (folder / "levels").mkdir(parents=True)
    (folder / "levels" / "game_2048.toml").write_text(PRESET)
    (folder / "levels" / "prompt.txt").write_text("2048")
    tiny.save_model(folder / "model")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("G1JAX_ENVS", "levels")
    monkeypatch.setattr(loop, "make_setup", make_setup)
    return folder


def experiment_of(**changes: Any) -> Experiment:
    """An experiment with paths relative to the working directory, and a level preset."""
    prompts = {"game_2048": "@levels/prompt.txt"}
    return experiment_in(Path("runs/one"), "model", levels={}, preset="preset", prompts=prompts, **changes)


def spoil(place: Path) -> None:
    """Edits the preset, removes the model, and changes the working directory."""
    (place / "levels" / "game_2048.toml").write_text("[preset]\nrows = 3\n")
    (place / "levels" / "prompt.txt").write_text("Another prompt")
    shutil.rmtree(place / "model")
    (place.parent / "elsewhere").mkdir()
    os.chdir(place.parent / "elsewhere")


def test_changes_outside_of_the_folder(place: Path, undisturbed: bytes) -> None:
    run(experiment_of(), progress=StopAt(2))
    folder = place / "runs" / "one"
    before = files_in(folder)
    spoil(place)
    policy, _ = policy_of_run(folder)
    game = open_run(folder).setup.games[0]
    assert (game.rows, game.cols, policy.templates) == (2, 2, (("game_2048", "2048"),))
    assert games_for_run("", folder)["game_2048"] == game
    assert policy.config == tiny.CONFIG
    assert policy.tokenizer.encode("Red circle | 2048") == tiny.TOKENIZER.encode("Red circle | 2048")
    watch = Watch()
    run(dataclasses.replace(experiment_of(), workdir=str(folder)), progress=watch)
    assert "resumed after step 2 of 4" in watch.lines
    assert tiny.metrics_of(folder) == undisturbed
    assert_nothing_lost(before, folder)


def test_a_run_of_an_earlier_version(place: Path) -> None:
    """It has only a config, reads the files that this names, and gets a setup when it resumes."""
    RunFolder(experiment_of()).create()
    folder = place / "runs" / "one"
    assert not has_setup(folder)
    assert open_setup(folder).policy.templates == (("game_2048", "2048"),)
    started(experiment_of())
    assert has_setup(folder)
    spoil(place)
    assert open_setup(folder).policy.templates == (("game_2048", "2048"),)


@pytest.mark.parametrize("name", [*vlm.preset_names(), "base"])
def test_configs_and_tokenizers_are_saved_whole(name: str, tmp_path: Path) -> None:
    experiment = tiny.make_experiment(name, tmp_path / "run")
    setup = make_setup(experiment)
    RunFolder(experiment).create(lambda: tiny.save_setup(tmp_path / "run", setup, weights_folder(setup)))
    saved = open_setup(tmp_path / "run")
    assert saved.policy.config == setup.policy.config
    assert saved.games == setup.games
    assert saved.experiment == experiment
    for game in setup.games:
        np.testing.assert_array_equal(saved.policy.prompt_tokens(game), setup.policy.prompt_tokens(game))
        assert saved.policy.max_new_tokens(game) == setup.policy.max_new_tokens(game)


def started(experiment: Experiment) -> Path:
    """The folder of a run that has started, without a checkpoint yet."""
    setup, folder = make_setup(experiment), Path(experiment.workdir)
    RunFolder(experiment).create(lambda: tiny.save_setup(folder, setup, weights_folder(setup)))
    return folder.resolve()


def test_token_budgets_are_measured_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing run reads them, whatever the teacher says now; one of an earlier version measures them."""
    experiment = dataclasses.replace(experiment_of(), max_new_tokens=0)
    folder = started(experiment)
    (game,) = make_setup(experiment).games
    (tokens,) = json.loads((folder / BUDGETS).read_text()).values()
    measured: list[Any] = []

    def measure(_: Any, game: Any) -> int:
        measured.append(game)
        return 8

    monkeypatch.setattr("g1jax.teachers.budget._budget", measure)
    assert open_setup(folder).policy.max_new_tokens(game) == tokens > 8
    assert not measured
    (folder / BUDGETS).unlink()
    assert open_setup(folder).policy.max_new_tokens(game) == 8
    assert measured == [game]
    (folder / BUDGETS).write_text('{"game_2048": "many"}')
    with pytest.raises(ExperimentError, match=r"budgets.json: game_2048: expected a number of tokens"):
        open_setup(folder)


def test_frozen_weights_are_linked(place: Path) -> None:
    experiment = dataclasses.replace(experiment_of(), lora=LoRA(rank=2))
    folder = started(experiment)
    file = folder / "setup" / "model" / "model.safetensors"
    assert file.samefile(place / "model" / "model.safetensors")
    expected = load_params(make_setup(experiment))
    spoil(place)
    jax.tree.map(np.testing.assert_array_equal, load_params(open_setup(folder)), expected)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        ExperimentError, match=r"the base weights that this run started from are needed, and are not in"
    ):
        load_params(open_setup(folder))


def test_changed_base_weights(place: Path) -> None:
    """Without LoRA they are needed only until the first checkpoint."""
    folder = started(experiment_of())
    assert not (folder / "setup" / "model" / "model.safetensors").exists()
    load_params(open_setup(folder))
    shutil.rmtree(place / "model")
    vlm.save(tiny.CONFIG, vlm.init(tiny.CONFIG, jax.random.key(1)), place / "model")
    setup = open_setup(folder)
    with pytest.raises(
        ExperimentError, match=r"are not in .*/place/model: .*model.safetensors differs from what was written"
    ):
        load_params(setup)


def test_base_weights_that_moved(place: Path) -> None:
    experiment = dataclasses.replace(experiment_of(), lora=LoRA(rank=2))
    folder = started(experiment)
    (folder / "setup" / "model" / "model.safetensors").unlink()
    (place / "model").rename(place / "moved")
    moved = dataclasses.replace(experiment, model="moved")
    RunFolder(moved)
    load_params(make_setup(moved, folder))
    with pytest.raises(ExperimentError, match=r"another config: model \(was 'model', is 'nano'\)"):
        RunFolder(dataclasses.replace(experiment, model="nano"))


def test_a_template_is_filled_in_when_the_run_is_opened(place: Path) -> None:
    Path("levels/prompt.txt").write_text("Move {rows} by {cols}.")
    folder = started(experiment_of())
    spoil(place)
    setup = open_setup(folder)
    assert prompt_of(setup.policy.templates, setup.games[0]) == "Move 2 by 2."
    assert read_config(folder).prompts == {"game_2048": "@levels/prompt.txt"}  # unchanged


def test_prompts_that_cannot_be_saved(place: Path) -> None:
    (place / "levels" / "prompt.txt").write_text("")
    with pytest.raises(ConfigError, match="a prompt must not be empty or start with @"):
        make_setup(experiment_of())


def test_pictures(tmp_path: Path) -> None:
    """Those that a level names are used while they are unchanged."""
    digits, file, folder = images.load_images("digits", 8), tmp_path / "mine.npz", tmp_path / "run"
    images.save_images(dataclasses.replace(digits, name="mine", images=255 - digits.images), file)
    level = {"rows": 2, "cols": 2, "images_per_class": 8, "images": str(file)}
    games = ("shisen_sho_cifar10",)
    before: Any = make_setup(tiny.make_experiment("nano", folder, games=games, levels={games[0]: level}))
    RunFolder(before.experiment).create(lambda: tiny.save_setup(folder, before, None))
    assert open_setup(folder).games == before.games
    images.save_images(digits, file)
    shisen_sho_cifar10._load.cache_clear()
    assert make_setup(before.experiment).games != before.games
    for _ in range(2):
        game: Any = open_setup(folder).games[0]
        assert game.pictures.name == "mine"
        np.testing.assert_array_equal(game.pictures.images, before.games[0].pictures.images)
        file.unlink(missing_ok=True)
    assert resolved(envs.make("shisen_sho_cifar10", images="digits")).level.images == "digits"


def test_a_dataset_that_changed(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is written if the run needs it; not to load the policy."""
    data, moved, folder = tmp_path / "data", tmp_path / "moved", tmp_path / "run"
    level: dict[str, Any] = tiny.LEVELS["game_2048"]
    examples = make_examples(
        envs.make("game_2048", **level), StateSource(6), built_in, only_rewarded=False, prompt="2048"
    )
    with DatasetWriter(data, "jsonl", {}) as writer:
        for row in examples:
            assert isinstance(row, Example)
            writer.add(row)
        writer.finish()
    experiment = experiment_in(folder, model, cold_start__dataset=str(data))
    started(experiment)
    setup = open_setup(folder)
    with jax.set_mesh(setup.mesh), Checkpoints(folder / "checkpoints", keep=3) as checkpoints:
        checkpoints.save(2, init_state(setup, load_params(setup))[0])
    assert setup.datasets is not None
    data.rename(moved)
    experiment = experiment_in(folder, model, cold_start__dataset=str(moved))
    RunFolder(experiment)
    assert make_setup(experiment, folder).datasets is not None
    monkeypatch.setattr(loop, "make_setup", make_setup)
    monkeypatch.setattr(loop, "compiling", lambda *arguments: contextlib.nullcontext())
    for changed in (moved / "data.jsonl", moved / "images" / "game_2048_000003.png"):
        content, before = changed.read_bytes(), files_in(folder)
        if changed.suffix == ".png":
            shutil.copyfile(moved / "images" / "game_2048_000000.png", changed)
        else:
            changed.write_bytes(content.replace(b"</think>", b"!</think>", 1))
        with pytest.raises(
            ExperimentError, match=r"moved has changed since this run started \(demonstrations of game_2048\)"
        ):
            run(experiment)
        assert files_in(folder) == before
        changed.write_bytes(content)
    shutil.rmtree(moved)
    policy_of_run(folder)


@pytest.mark.parametrize("damage", ["{", "[]", '{"game_2048": {"rows": 0}}', '{"game_2048": {"lines": 2}}'])
def test_a_damaged_level(damage: str, place: Path) -> None:
    folder = started(experiment_of())
    (folder / "setup" / "levels.json").write_text(damage)
    with pytest.raises(ExperimentError, match=r"levels.json: ") as caught:
        open_setup(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_of_that_name_is_left_alone(place: Path) -> None:
    Path("runs/one/setup").mkdir(parents=True)
    Path("runs/one/setup/mine.txt").write_text("mine")
    with pytest.raises(ExperimentError, match=r"runs/one/setup exists and is not a run's setup: move it away"):
        started(experiment_of())
    assert Path("runs/one/setup/mine.txt").read_text() == "mine"


# Weights & Biases

FAKE = """
calls = []
def init(**options):
    calls.append(options)
    return Run()
class Run:
    def log(self, metrics, step):
        calls.append(step)
    def finish(self):
        calls.append("finished")
"""


def test_weights_and_biases_resumes_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    experiment = tiny.make_experiment("nano", tmp_path / "run", log__wandb=True)
    for step in (0, 1):
        folder = RunFolder(experiment)
        folder.create()
        folder.begin_at(step, Watch())
        folder.write(step + 1, "rl", {"loss": 1.0}, {})
        folder.close()
    first, one, finished, second, two, _ = sys.modules.pop("wandb").calls
    assert (one, finished, two) == (1, "finished", 2)
    assert first["id"] == second["id"] == json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    assert first["resume"] == second["resume"] == "allow"
    other = tiny.make_experiment("nano", tmp_path / "other", log__wandb=True)
    RunFolder(other).create()
    folder = RunFolder(other)
    folder.create()
    folder.begin_at(0, Watch())
    folder.close()
    assert sys.modules.pop("wandb").calls[0]["id"] != first["id"]
    (tmp_path / "run" / "wandb.json").write_text('{"id": "../x"}')
    folder = RunFolder(experiment)
    folder.create()
    with pytest.raises(ExperimentError, match=r"wandb.json is damaged"):
        folder.begin_at(0, Watch())
    folder.close()
