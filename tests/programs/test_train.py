"""The command line: overrides, and one-line errors."""

import dataclasses
from pathlib import Path

import jax
import pytest

from g1jax.errors import ExperimentError
from g1jax.files import write_atomically
from g1jax.programs import train
from g1jax.training import experiment_names, load_experiment
from g1jax.training.config import Experiment
from g1jax.training.progress import Progress
from g1jax.training.run_folder import read_config
from g1jax.training.setup import make_setup
from tests.training import tiny


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--experiment=g1_multigam", "unknown experiment 'g1_multigam'; did you mean 'g1_multigame'"),
        ("--experiment", "--experiment: a name is missing"),
        ("--experiment=none.py", "no experiment file none.py"),
        (
            "--rl.lrr=1",
            "unknown option --rl.lrr; did you mean '--rl.lr' or '--rl.algorithm'",
        ),
        ("--rl.states=many", "Error parsing --rl.states: invalid literal for int() with base 10: 'many'"),
        (
            "--rl.source=dream",
            "invalid choice 'dream' for argument '--rl.source'. Expected one of ('walk', 'legal_walk', 'play', "
            "'hard_play').",
        ),
        (
            "--model=nanoo",
            "unknown model, and no folder 'nanoo'; did you mean 'nano'",
        ),
        ("--model=nano --games chess", "unknown game 'chess'"),
        ("--model=nano --mesh.fsdp=3", "mesh: 1 devices do not divide into fsdp=3 × tensor=1"),
        ("--model=nano --mesh.data=2", "a mesh of data=2 × fsdp=1 × tensor=1 is 2 devices, and there are 1"),
        (
            "--model=nano --rl.states=6 --rl.minibatches=4 --rl.microbatches=1",
            "rl.states=6 does not divide into 4 minibatches",
        ),
        ("--model=nano --cold-start.microbatches=5", "cold_start.states=16 does not divide into 5 minibatches"),
        ("--model=nano --rl.algorithm=ppo2", "unknown algorithm 'ppo2'"),
        ("--model=nano --preset=hardd", "hardd"),
        ("--model=nano --cold-start.steps=0 --rl.iterations=0", "nothing to do: cold_start.steps and rl.iterations"),
        ("--model=nano --rl.algorithm=rloo --rl.num-samples=1", "rl.num_samples=1: rloo compares the responses"),
    ],
)
def test_bad_input(arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = train.main([*arguments.split(), f"--workdir={tmp_path / 'run'}"], "")
    out, err = capsys.readouterr()
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workdir", ["file", "file/run"])
def test_an_unwritable_folder(workdir: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    experiment = tiny.write_experiment(tmp_path / "tiny.py", model, tmp_path / workdir)
    assert train.main([f"--experiment={experiment}"], "") == 1
    err = capsys.readouterr().err
    assert f"the run folder {tmp_path / workdir}" in err
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_not_a_run(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    experiment = tiny.write_experiment(tmp_path / "tiny.py", model, tmp_path)
    assert train.main([f"--experiment={experiment}"], "") == 1
    assert "metrics without a config.json; not a run's folder" in capsys.readouterr().err
    write_atomically(tmp_path / "config.json", '{"name": "ti')
    assert train.main([f"--experiment={experiment}"], "") == 1
    assert "config.json is damaged: repair it, or give another --workdir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_of_this_name", "mine.py, line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("\ndef get_config(:", "mine.py: SyntaxError: "),
        ("def get_config():\n    return 1 / 0", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("x = 1", "mine.py: AttributeError: "),
        ("def get_config():\n    return 1", "mine.py: get_config() returns no Experiment but int"),
    ],
)
def test_a_file_that_gives_no_experiment(
    source: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(source)
    assert train.main([f"--experiment={tmp_path / 'mine.py'}"], "") == 1
    err = capsys.readouterr().err
    assert f"error: {tmp_path}/{message}" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_NTASKS": "many"}, "SLURM_NTASKS=many: expected a whole number"),
        ({"JAX_NUM_PROCESSES": "2"}, "set all of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, or none"),
        (("host:1", "2", "2"), "JAX_NUM_PROCESSES=2, JAX_PROCESS_ID=2: process ids start at 0"),
        (("host:1", "2", "-1"), "JAX_PROCESS_ID=-1: expected whole numbers"),
        (("host", "2", "0"), "JAX_COORDINATOR_ADDRESS=host: expected host:port"),
        (("host:1", "2", "0"), "the processes of this run cannot connect: no answer"),
    ],
)
def test_processes_that_cannot_meet(
    environment: dict[str, str] | tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def initialize(*_: object) -> None:
        raise RuntimeError("no answer")

    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    for name in ("SLURM_NTASKS", *names):
        monkeypatch.delenv(name, raising=False)
    given = environment if isinstance(environment, dict) else dict(zip(names, environment, strict=True))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(ExperimentError, match=message):
        train._initialize_distributed()


@pytest.mark.parametrize(
    ("tasks_per_node", "node", "visible", "is_all"),
    [
        ("1(x2)", "1", "", True),  # one process a node
        ("1", "0", "0,1,2,3", True),
        ("4(x2)", "1", "0,1,2,3", False),  # one a GPU: JAX takes the one with its number
        ("4(x2)", "1", "2", True),  # one a GPU, and each sees its own only
        ("4(x2),1", "2", "", True),
        ("4(x2),1", "0", "", False),
        ("", "0", "", False),
        ("?", "x", "", False),
    ],
)
def test_the_gpus_of_a_slurm_task(
    tasks_per_node: str, node: str, visible: str, is_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After JAX has restricted each task to one."""
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    given = {"SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": node}
    given |= {"SLURM_STEP_TASKS_PER_NODE": tasks_per_node, "CUDA_VISIBLE_DEVICES": visible}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    chosen: dict[str, str] = {}
    monkeypatch.setattr(jax.config, "update", chosen.__setitem__)
    monkeypatch.setattr("jax.distributed.initialize", lambda: chosen.update(jax_cuda_visible_devices="0"))
    train._initialize_distributed()
    assert chosen == {"jax_cuda_visible_devices": "all" if is_all else "0"}


def test_the_status_of_a_run_that_was_stopped(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [f"--model={model}", "--games", "game_2048", f"--workdir={tmp_path / 'run'}"]

    def stopped(experiment: Experiment, *, progress: Progress) -> Path:
        progress.is_stopped = True
        return Path(experiment.workdir)

    monkeypatch.setattr(train, "run", lambda experiment, *, progress: Path(experiment.workdir))
    assert train.main([*arguments, "--log.stopped-status=42"], "") == 0
    monkeypatch.setattr(train, "run", stopped)
    assert train.main([*arguments, "--log.stopped-status=42"], "") == 42
    assert train.main(arguments, "") == 0


def test_overrides() -> None:
    overrides = ["--rl.lr=1e-4", "--model=micro", "--workdir=runs/x", "--seed=1", "--cold-start.warmup", "3"]
    experiment = train.parse([*overrides, "--games", "swap", "game_2048"], "")
    default = load_experiment(train.DEFAULT)
    assert experiment.rl.optimizer.lr == 1e-4
    assert experiment.cold_start.optimizer.warmup == 3
    assert (experiment.model, experiment.workdir, experiment.seed) == ("micro", "runs/x", 1)
    assert experiment.games == ("swap", "game_2048")
    assert experiment.rl.states == default.rl.states
    assert experiment.levels == default.levels


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        train.parse(["--help"], "The main job.")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "The main job." in out
    for name in (
        "--rl.num-samples",
        "--cold-start.random-moves",
        "--mesh.fsdp",
        "--rl.optimizer.lr",
        "--evaluation.episodes",
    ):
        assert name in out


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment(name: str, tmp_path: Path) -> None:
    """It can be set up, apart from missing weights, and its config is read back from a file."""
    experiment = load_experiment(name)
    assert experiment.name == name
    write_atomically(tmp_path / "config.json", _as_text(experiment))
    assert read_config(tmp_path) == experiment
    one = dataclasses.replace(
        experiment, model="nano", dtype="float32", mesh=dataclasses.replace(experiment.mesh, fsdp=1)
    )
    assert tuple(game.id for game in make_setup(dataclasses.replace(one, max_new_tokens=64)).games) == experiment.games


def _as_text(experiment: Experiment) -> str:
    import json

    from g1jax.training.run_folder import as_json

    return json.dumps(as_json(experiment))
