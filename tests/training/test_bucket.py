"""Runs in a bucket, against a server with the interface of Google Cloud Storage on this machine."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import chex
import pytest
from etils import epath

from g1jax.programs import evaluate
from g1jax.training import ExperimentError, bucket, policy_of_run, run
from g1jax.training.config import Experiment
from g1jax.training.progress import Progress
from g1jax.training.run_folder import read_metrics
from g1jax.training.saved_run import open_run
from tests.training.conftest import StopAt, experiment_in


def experiment_at(place: str, model: str, **changes: Any) -> Experiment:
    return dataclasses.replace(experiment_in(Path(), model, **changes), workdir=place)


def metrics_at(place: str) -> list[dict[str, Any]]:
    return read_metrics(bucket.download(place))


def test_urls() -> None:
    assert bucket.is_url("gs://bucket/run")
    assert bucket.is_url(Path("gs://bucket/run"))
    assert not bucket.is_url("runs/gs")
    assert str(bucket.at(Path("gs://bucket/run"))) == "gs://bucket/run"
    assert bucket.at("runs/swap") == Path("runs/swap")
    assert bucket.checkpoints_of(Path("runs/swap")) == Path("runs/swap/checkpoints")


def test_without_gcsfs(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    experiment = experiment_at("gs://bucket/run", model)
    with pytest.raises(ExperimentError, match=r"gs://bucket/run: for a bucket of .* run: pip install gcsfs"):
        run(experiment)


def test_a_bucket_that_cannot_be_read(model: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(type(epath.Path(url)), "is_file", refuse)
    with pytest.raises(ExperimentError, match=r"^gs://bucket/runs/closed/config.json cannot be read: no credentials$"):
        run(experiment_at(f"{url}/runs/closed", model))


def test_what_has_changed_is_uploaded(url: str) -> None:
    place = bucket.at(f"{url}/runs/files")
    local = bucket.download(place)
    upload = bucket.Upload(local, place)
    for name in ("config.json", "setup/model/config.json", "evaluation/final.md", "run.lock"):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_text(name)
    upload()
    (local / "evaluation" / "final.md").rename(local / "evaluation" / "final_step_4.md")
    with (local / "config.json").open("a") as file:
        file.write(", changed")
    (place / "setup" / "model" / "config.json").write_text("of another machine")
    (place / "checkpoints" / "1" / "a").write_text("an array")
    upload()
    copy = bucket.download(place)
    texts = {path.relative_to(copy).as_posix(): path.read_text() for path in copy.rglob("*") if path.is_file()}
    assert texts == {
        "checkpoints_at.txt": f"{place}/checkpoints\n",
        "config.json": "config.json, changed",
        "setup/model/config.json": "of another machine",
        "evaluation/final_step_4.md": "evaluation/final.md",
    }
    assert bucket.checkpoints_of(copy) == place / "checkpoints"
    assert bucket.local_copy(place) is bucket.local_copy(place)


@pytest.mark.slow
def test_a_run_is_stopped_resumed_and_evaluated(
    url: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_metrics(run(experiment_in(tmp_path / "here", model)))
    experiment = experiment_at(f"{url}/runs/there", model)
    place = epath.Path(experiment.workdir)

    assert str(run(experiment, progress=StopAt(3))) == experiment.workdir
    assert [line["step"] for line in metrics_at(experiment.workdir)] == [1, 2, 3]
    assert sorted(path.name for path in (place / "checkpoints").iterdir()) == ["1", "2", "3"]
    assert (place / "setup" / "sources.json").exists()

    said: list[str] = []
    progress = Progress()
    monkeypatch.setattr(progress, "say", said.append)
    copies: list[Path] = []
    download = bucket.download

    def recorded(place: str | Path) -> Path:
        copies.append(download(place))
        return copies[-1]

    monkeypatch.setattr(bucket, "download", recorded)
    run(experiment, progress=progress)
    assert len(copies) == 1
    assert not copies[0].parent.exists()
    monkeypatch.undo()
    assert said == ["resumed after step 3 of 4"]
    assert metrics_at(experiment.workdir) == expected

    other = experiment_at(experiment.workdir, model, seed=5)
    with pytest.raises(ExperimentError, match=r"seed \(was 0, is 5\)"):
        run(other)

    here, there = open_run(tmp_path / "here"), open_run(experiment.workdir)
    assert there.steps == here.steps == (1, 2, 3, 4)
    chex.assert_trees_all_equal(there.params(4), here.params(4))
    chex.assert_trees_all_equal(policy_of_run(experiment.workdir)[1], here.params(4))
    arguments = [f"--player={experiment.workdir}", "--episodes=2", "--steps=2", f"--out={tmp_path / 'results'}"]
    assert evaluate.main(arguments, "evaluate") == 0
    assert "there" in (tmp_path / "results" / "results.md").read_text("utf-8")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_moved_aside(url: str, model: str) -> None:
    experiment = experiment_at(f"{url}/runs/damaged", model)
    run(experiment)
    expected = metrics_at(experiment.workdir)
    checkpoints = epath.Path(experiment.workdir) / "checkpoints"
    (checkpoints / "4" / "_CHECKPOINT_METADATA").write_text("{")
    run(experiment)
    assert metrics_at(experiment.workdir) == expected
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "2", "3", "4"]
    damaged = sorted(path.name for path in checkpoints.with_name("checkpoints_damaged").iterdir())
    assert damaged == ["4-1", "about.txt"]


def test_files_are_kept_if_the_bucket_cannot_be_written(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    local = bucket.download(f"{url}/runs/unwritable")
    upload = bucket.Upload(local, f"{url}/runs/unwritable")
    (local / "metrics.jsonl").write_text("{}\n")

    def refuse(*_: object) -> None:
        raise PermissionError("403, storage.objects.create denied")

    monkeypatch.setattr(type(epath.Path(url)), "write_bytes", refuse)
    with pytest.raises(OSError, match=r"unwritable cannot be written: 403.* The files are in (.*)") as caught:
        upload()
    kept = Path(str(caught.value).rpartition(" ")[2])
    assert (kept / "unwritable" / "metrics.jsonl").read_text() == "{}\n"
    shutil.rmtree(kept)
