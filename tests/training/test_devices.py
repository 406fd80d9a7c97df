"""The metrics do not depend on devices: 8 fake ones in several meshes, and 2 processes with 2 each, against one."""

import json
import socket
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g1jax import vlm
from g1jax.rl.minibatching import Minibatching
from g1jax.training import bucket, policy_of_run, run
from g1jax.training.run_folder import read_metrics
from tests.training import tiny

FEW = tiny.FEW | {"seed": 1}
"""With seed 0 one sampled token is so near to another that its choice depends on rounding, and so on the mesh."""


@pytest.fixture(scope="module")
def trained(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a policy whose rewards differ."""
    folder = tmp_path_factory.mktemp("trained")
    policy, params = policy_of_run(whole)
    vlm.save(policy.config, params, folder)
    policy.tokenizer.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def single(trained: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run(tiny.make_experiment(trained, tmp_path_factory.mktemp("runs") / "single", **FEW))
    lines = read_metrics(folder)
    assert len(lines) == 4
    assert all(line["gradient_norm"] > 0.01 for line in lines)
    return folder


def check_same(folder: Path, single: Path) -> None:
    ours, theirs = read_metrics(folder), read_metrics(single)
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for key in a:
            if key != "phase":
                np.testing.assert_allclose(a[key], b[key], rtol=1e-5, atol=1e-5, err_msg=f"step {a['step']}: {key}")
    for player in ("cold_start", "final", "random"):
        found, expected = (dict(numbers_of(path / "evaluation" / player / "results.json")) for path in (folder, single))
        assert list(found) == list(expected)
        assert len(found) > 50
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5, atol=1e-5, err_msg=player)


def numbers_of(file: Path) -> Iterator[tuple[str, float]]:
    """All numbers in a JSON file, by their path."""

    def walk(place: str, value: Any) -> Iterator[tuple[str, float]]:
        if isinstance(value, dict | list):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(f"{place}/{key}", part)
        elif isinstance(value, int | float):
            yield place, value

    return walk("", json.loads(file.read_text("utf-8")))


def check_mesh(
    trained: str, single: Path, tmp_path: Path, data: int, fsdp: int, tensor: int, changes: Mapping[str, Any] = FEW
) -> None:
    experiment = tiny.write_experiment(tmp_path / "tiny.py", trained, tmp_path / "run", **changes)
    mesh = (f"--mesh.data={data}", f"--mesh.fsdp={fsdp}", f"--mesh.tensor={tensor}")
    process = tiny.start(f"--experiment={experiment}", *mesh, num_devices=8, extra={"JAX_LOG_COMPILES": "1"})
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert f"mesh data {data} × fsdp {fsdp} × tensor {tensor}" in out
    for step in ("cold_step", "rl_step"):
        assert err.count(f"Finished XLA compilation of jit({step})") == 1, (
            "the step compiled ahead of time is the one called"
        )
    assert [line for line in err.splitlines() if "warning:" in line] == []
    check_same(tmp_path / "run", single)


@pytest.mark.slow
def test_eight_devices(trained: str, single: Path, tmp_path: Path) -> None:
    check_mesh(trained, single, tmp_path, 2, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (4, 1, 2)])
def test_eight_devices_in_other_meshes(mesh: tuple[int, int, int], trained: str, single: Path, tmp_path: Path) -> None:
    check_mesh(trained, single, tmp_path, *mesh)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [tiny.EVERY, tiny.ADAPTED], ids=["all weights", "LoRA and captions"])
def test_eight_devices_with_every_setting_for_large_models(
    changes: Mapping[str, Any], trained: str, tmp_path: Path
) -> None:
    single = run(tiny.make_experiment(trained, tmp_path / "single", **changes))
    assert all(line["game_2048/success"] > 0 for line in read_metrics(single)[2:])
    check_mesh(trained, single, tmp_path, 2, 2, 2, changes)
    assert all(line["kl_sampler_k3"] < 1e-8 for line in read_metrics(single)[2:]), "the sampler is the scorer"


@pytest.mark.slow
def test_eight_devices_with_as_many_states(trained: str, tmp_path: Path) -> None:
    """Each device has one state of eight, so that four microbatches become one."""
    changes = FEW | {"cold_start__microbatches": 4, "rl__minibatching": Minibatching(microbatches=4)}
    single = run(tiny.make_experiment(trained, tmp_path / "single", **changes))
    check_mesh(trained, single, tmp_path, 8, 1, 1, changes)


@pytest.mark.slow
def test_two_processes(trained: str, single: Path, tmp_path: Path) -> None:
    """Two devices each, over loopback; they also resume from a checkpoint."""
    changes = FEW | {"log__checkpoint_every": 1}
    experiment = tiny.write_experiment(tmp_path / "tiny.py", trained, tmp_path / "run", **changes)
    start_two(experiment)
    check_same(tmp_path / "run", single)
    assert (tmp_path / "run" / "samples" / "step_000004.md").is_file()
    for step in (3, 4):  # as if stopped after step 2
        for file in sorted((tmp_path / "run" / "checkpoints" / str(step)).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (tmp_path / "run" / "checkpoints" / str(step)).rmdir()
    out = start_two(experiment)
    assert "resumed after step 2 of 4" in out
    check_same(tmp_path / "run", single)


@pytest.mark.slow
def test_two_processes_with_a_bucket(trained: str, single: Path, tmp_path: Path, url: str) -> None:
    place = bucket.at(f"{url}/runs/two")
    experiment = tiny.write_experiment(tmp_path / "tiny.py", trained, str(place), **FEW, log__checkpoint_every=1)
    start_two(experiment)
    check_same(bucket.download(place), single)
    for step in (3, 4):
        (place / "checkpoints" / str(step)).rmtree()  # type: ignore[attr-defined]
    assert "resumed after step 2 of 4" in start_two(experiment)
    check_same(bucket.download(place), single)


def start_two(experiment: str) -> str:
    """Runs an experiment on two processes; returns the output of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes: list[subprocess.Popen[str]] = []
    for index in range(2):
        extra = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
        processes.append(tiny.start(f"--experiment={experiment}", "--mesh.fsdp=2", num_devices=2, extra=extra))
    with ThreadPoolExecutor(2) as pool:  # at once: a process waits when what it prints is not read
        printed = list(pool.map(lambda process: process.communicate(timeout=900), processes))
    assert [process.returncode for process in processes] == [0, 0], printed
    lines = [line for line in printed[1][0].splitlines() if not line.startswith("[Gloo]")]
    assert lines == [], "the second process prints nothing"
    assert "mesh data 2 × fsdp 2 × tensor 1" in printed[0][0]
    return printed[0][0]
