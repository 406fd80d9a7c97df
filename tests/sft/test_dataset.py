"""Datasets: rows are read as written, other programs can read them, and a cold start trains on them."""

import dataclasses
import functools
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from g1jax import envs
from g1jax.envs import text
from g1jax.evaluation import EvaluationError
from g1jax.sft.dataset import JSONL, PARQUET, Example, read_dataset, rows_of_step
from g1jax.sft.dataset_writer import ABOUT, JOURNAL, METADATA, DatasetWriter, Form
from g1jax.sft.states import StateSource, make_examples
from g1jax.teachers import built_in
from g1jax.training import ExperimentError, loop, policy_of_run, run
from g1jax.training.config import Experiment
from g1jax.training.run_folder import read_metrics
from g1jax.training.setup import make_setup
from tests.conftest import REPOSITORY
from tests.training import tiny
from tests.training.test_run import Watch, stop_at

LEVELS: dict[str, Any] = tiny.LEVELS
GAMES = {name: envs.make(name, **level) for name, level in LEVELS.items()}


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    """Six examples of each game."""
    by_game = [make_examples(game, StateSource(6), built_in, only_rewarded=False) for game in GAMES.values()]
    rows = [row for examples in by_game for row in examples]
    assert all(isinstance(row, Example) for row in rows)
    return [row for row in rows if isinstance(row, Example)]


def write(folder: Path, rows: list[Example], form: Form = "jsonl", **setting: Any) -> Path:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    with DatasetWriter(folder, form, setting) as writer:
        for row in rows:
            writer.add(row)
        return writer.finish()


def experiment_of(model: str, workdir: Path, dataset: Path, **changes: Any) -> Experiment:
    own = {
        "games": tiny.BOTH,
        "cold_start__steps": 12,
        "rl__iterations": 0,
        "evaluation__episodes": 0,
        "log__checkpoint_every": 5,
    }
    experiment = tiny.make_experiment(model, workdir, **{**own, **changes})
    cold = dataclasses.replace(experiment.cold_start, dataset=str(dataset))
    return dataclasses.replace(experiment, cold_start=cold)


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JSONL).read_text("utf-8").splitlines()]


# The format


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_is_written_is_read(form: Form, rows: list[Example], model: str, tmp_path: Path) -> None:
    file = write(tmp_path / "data", rows, form)
    assert file.name == (JSONL if form == "jsonl" else PARQUET)
    policy = make_setup(tiny.make_experiment(model, tmp_path / "run", games=tiny.BOTH)).policy
    for game, dataset in zip(
        GAMES.values(), read_dataset(tmp_path / "data", list(GAMES.values()), policy), strict=True
    ):
        own = [row for row in rows if row.game == game.id]
        assert dataset.responses == [row.response for row in own]
        frames, tokens, mask, is_perception = dataset.batch(policy, seed=3, step=1, count=4).values()
        picked = [own[i] for i in rows_of_step(3, game.id, len(own), 1, 4)]
        np.testing.assert_array_equal(frames, [row.frame for row in picked])
        texts = [policy.tokenizer.decode(line[is_token].tolist()) for line, is_token in zip(tokens, mask, strict=True)]
        assert all(row.response in decoded for row, decoded in zip(picked, texts, strict=True))
        assert (is_perception.sum(1) > 3).all()
        assert (mask & ~is_perception).any(1).all()


def test_captions_show_its_boards(rows: list[Example], model: str, tmp_path: Path) -> None:
    write(tmp_path / "data", rows)
    policy = make_setup(tiny.make_experiment(model, tmp_path / "run", observation=("caption",))).policy
    game = GAMES["game_2048"]
    (dataset,) = read_dataset(tmp_path / "data", [game], policy)
    own = [row.board for row in rows if row.game == game.id]
    boards = dataset.batch(policy, seed=3, step=1, count=4)["boards"]
    assert [text.decode(board) for board in boards] == [own[i] for i in rows_of_step(3, game.id, len(own), 1, 4)]
    first, *others = records_of(tmp_path / "data")
    first["messages"][1]["content"] = first["messages"][1]["content"].replace(" | ", " and ")
    (tmp_path / "data" / JSONL).write_text("\n".join(map(json.dumps, (first, *others))), "utf-8")
    with pytest.raises(ExperimentError, match=r"jsonl:1: its perception is not a board of game_2048"):
        read_dataset(tmp_path / "data", [game], policy)


def test_the_chat_form(rows: list[Example], tmp_path: Path) -> None:
    """What TRL and LLaMA-Factory expect of a row: roles, one placeholder per image, a path relative to the file."""
    write(tmp_path, rows)
    names = set()
    for row, record in zip(rows, records_of(tmp_path), strict=True):
        assert list(record) == ["messages", "images", "game", "board", "action", "reward", "level"]
        user, assistant = record["messages"]
        assert user == {"role": "user", "content": f"<image>{GAMES[row.game].prompt}"}
        assert assistant == {"role": "assistant", "content": row.response}
        assert json.dumps(record["messages"]).count("<image>") == len(record["images"]) == 1
        with Image.open(tmp_path / record["images"][0]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), row.frame)
        names.add(record["images"][0])
        game = GAMES[row.game]
        assert int(game.parse(assistant["content"])) == record["action"]
        assert bool(game.perception_exact(assistant["content"], game.from_text(record["board"])))
        assert json.loads(record["level"])["rows"] == 2
        assert isinstance(record["reward"], float)
    assert len(names) == len(rows)
    described = json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))["g1jax"]
    assert described["file_name"] == JSONL
    assert described["formatting"] == "sharegpt"
    assert set(described["columns"].values()) <= set(record)
    assert {described["tags"]["role_tag"], described["tags"]["content_tag"]} == set(user)
    assert {described["tags"]["user_tag"], described["tags"]["assistant_tag"]} == {"user", "assistant"}


def test_the_layout_of_an_image_folder(rows: list[Example], tmp_path: Path) -> None:
    """A line of `metadata.jsonl` is the row, with names of image files that are there."""
    write(tmp_path, rows)
    lines = [json.loads(line) for line in (tmp_path / METADATA).read_text("utf-8").splitlines()]
    assert [{**line, "images": line["images_file_names"]} for line in lines] == [
        {**record, "images_file_names": record["images"]} for record in records_of(tmp_path)
    ]
    assert all((tmp_path / name).is_file() for line in lines for name in line["images_file_names"])
    assert not any("images" in line for line in lines)


def test_a_folder_as_hugging_face_reads_it(
    rows: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the line in the docs."""
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "runs" / "demonstrations", rows)
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "training.md").read_text("utf-8")
    call = next(part for part in page.split("`") if part.startswith('load_dataset("imagefolder"'))
    load = functools.partial(datasets.load_dataset, cache_dir=str(tmp_path / "cache"))
    loaded = eval(call, {"load_dataset": load})
    assert len(loaded) == len(rows)
    for record, row in zip(loaded, rows, strict=True):
        assert record["messages"][1] == {"role": "assistant", "content": row.response}
        np.testing.assert_array_equal(np.asarray(record["images"][0].convert("RGB")), row.frame)
        assert (record["game"], record["action"]) == (row.game, row.action)


def test_parquet_says_that_it_has_images(rows: list[Example], tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = parquet.read_table(write(tmp_path, rows, "parquet"))
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["images"] == {"feature": {"_type": "Image"}, "_type": "Sequence"}
    assert list(features) == table.column_names
    struct = arrow.struct({"bytes": arrow.binary(), "path": arrow.string()})
    assert table.schema.field("images").type == arrow.list_(struct)
    assert str(table.schema.field("action").type) == features["action"]["dtype"] == "int32"
    assert str(table.schema.field("reward").type).replace("float", "float32") == features["reward"]["dtype"]
    for row, found in zip(rows, table.to_pylist(), strict=True):
        (image,) = found["images"]
        with Image.open(io.BytesIO(image["bytes"])) as picture:
            np.testing.assert_array_equal(np.asarray(picture), row.frame)
        assert (found["game"], found["action"], found["reward"]) == (row.game, row.action, row.reward)
    assert {file.name for file in tmp_path.iterdir()} == {PARQUET, ABOUT, "dataset_info.json"}


def test_parquet_as_hugging_face_reads_it(rows: list[Example], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    file = write(tmp_path / "data", rows, "parquet")
    loaded = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    for row, found in zip(rows, loaded, strict=True):
        np.testing.assert_array_equal(np.asarray(found["images"][0]), row.frame)
        assert found["messages"][1] == {"role": "assistant", "content": row.response}


def test_without_pyarrow_it_is_one_line(rows: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExperimentError, match=r"^parquet needs a package: pip install pyarrow$"):
        DatasetWriter(tmp_path / "data", "parquet", {})
    assert not (tmp_path / "data").exists()
    (tmp_path / PARQUET).write_bytes(b"PAR1")
    with pytest.raises(ExperimentError, match=r"^parquet needs a package"):
        read_dataset(tmp_path, list(GAMES.values()), None)  # type: ignore[arg-type]


# Writing


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_interrupted_dataset_is_resumed(form: Form, rows: list[Example], tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", rows, form, seed=0)
    cut = tmp_path / "cut"
    with DatasetWriter(cut, form, {"seed": 0}) as writer:
        for row in rows[:5]:
            writer.add(row)
    assert not (cut / whole.name).exists()
    with (cut / JOURNAL).open("ab") as journal:
        journal.write(b'{"messages": [')  # a full disk
    times = {file: file.stat().st_mtime_ns for file in (cut / "images").iterdir()}
    assert len(times) == 5
    with pytest.raises(EvaluationError, match="started with seed=0, now it is 1"):
        write(cut, rows, form, seed=1)
    with DatasetWriter(cut, form, {"seed": 0}) as writer:
        for row in rows:
            writer.add(row)
        assert {file: file.stat().st_mtime_ns for file in times} == times, "existing images are not written again"
        assert writer.finish().read_bytes() == whole.read_bytes()
        assert writer.is_done
    assert not (cut / JOURNAL).exists()
    with DatasetWriter(cut, form, {"seed": 0}) as writer:
        assert writer.is_done
    with pytest.raises(EvaluationError, match="started with seed=0, now it is 1"):
        DatasetWriter(cut, form, {"seed": 1})


def test_other_rows_are_not_mixed_in(rows: list[Example], tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, "jsonl", {}) as writer:
        writer.add(rows[0])
        with pytest.raises(EvaluationError, match="another process is writing"):
            DatasetWriter(tmp_path, "jsonl", {})
    with (
        DatasetWriter(tmp_path, "jsonl", {}) as writer,
        pytest.raises(ExperimentError, match="row 1 differs from the one generated now"),
    ):
        writer.add(dataclasses.replace(rows[0], response="other"))
    (tmp_path / "untrusted").mkdir()
    (tmp_path / "untrusted" / JSONL).write_text("{}\n")
    with pytest.raises(ExperimentError, match="a dataset that this program did not make"):
        DatasetWriter(tmp_path / "untrusted", "jsonl", {})
    with DatasetWriter(tmp_path / "empty", "jsonl", {}) as writer, pytest.raises(ExperimentError, match="no rows"):
        writer.finish()


# Training on it


def test_every_row_comes_once_an_epoch() -> None:
    steps = [rows_of_step(0, "swap", 10, step, 4) for step in range(10)]
    epochs = np.concatenate(steps).reshape(4, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4
    np.testing.assert_array_equal(rows_of_step(0, "swap", 10, 7, 4), steps[7])
    assert {tuple(rows_of_step(*other, 10, 0, 10)) for other in ((0, "swap"), (1, "swap"), (-1, "swap"))} != {
        tuple(epochs[0])
    }
    assert tuple(rows_of_step(0, "game_2048", 10, 0, 10)) != tuple(epochs[0])
    assert sorted(rows_of_step(5, "swap", 3, 2, 6)) == [0, 0, 1, 1, 2, 2], "more rows a step than there are"


def test_a_cold_start_learns_from_it_and_resumes_exactly(
    rows: list[Example], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data", rows)
    monkeypatch.setattr(loop, "next_demonstrations", lambda *_, **__: pytest.fail("the teacher was called"))
    watch = Watch()
    whole = run(experiment_of(model, tmp_path / "whole", tmp_path / "data"), progress=watch)
    assert f"demonstrations of {tmp_path / 'data'}: 6 of game_2048, 6 of shisen_sho" in watch.lines
    lines = read_metrics(whole)
    assert len(lines) == 12
    for game in GAMES:
        assert lines[-1][f"{game}/loss"] < 0.7 * lines[0][f"{game}/loss"]
    experiment = experiment_of(model, tmp_path / "cut", tmp_path / "data")
    for step in (3, 8):
        run(experiment, progress=stop_at(step))
    run(experiment)
    assert tiny.metrics_of(tmp_path / "cut") == tiny.metrics_of(whole)
    (tmp_path / "data").rename(tmp_path / "gone")
    policy_of_run(whole)


def replace(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**record, **changes}


def with_messages(record: dict[str, Any], prompt: str, response: str) -> dict[str, Any]:
    return replace(record, messages=[{"role": "user", "content": prompt}, {"role": "assistant", "content": response}])


GOOD = "<perception>-</perception><think>.</think><answer>0</answer>"
WRONG: dict[str, tuple[Any, str]] = {
    "unknown game": (lambda r: replace(r, game="game_2049"), "unknown game 'game_2049'; did you mean 'game_2048'?"),
    "no game": (lambda r: replace(r, game=None), "unknown game None"),
    "no image": (lambda r: replace(r, images=["images/none.png"]), "there is no file images/none.png in "),
    "two images": (lambda r: replace(r, images=r["images"] * 2), "images must be a list of one"),
    "no path": (lambda r: replace(r, images=[3]), "its image is neither a path nor bytes"),
    "damaged image": (lambda r: replace(r, images=["cut.png"]), "its image cannot be read"),
    "not an image": (lambda r: replace(r, images=[JSONL]), "its image cannot be read"),
    "wrong size": (lambda r: replace(r, images=["large.png"]), "an image of 112×56 pixels, but the game's frames have"),
    "long text": (
        lambda r: with_messages(r, "<image>", GOOD.replace("<think>.", "<think>" + "1 " * 60)),
        "tokens, but game_2048 allows 48: give --max-new-tokens=",
    ),
    "no tags": (
        lambda r: with_messages(r, "<image>", "<answer>0</answer>"),
        "the assistant's text is not <perception>",
    ),
    "no placeholder": (lambda r: with_messages(r, "?", GOOD), "the user's text has <image> 0 times, not once"),
    "roles": (lambda r: replace(r, messages=r["messages"][::-1]), "messages must be one of the user and one of the"),
    "no messages": (lambda r: {"game": "game_2048"}, "messages must be one of the user and one of the"),
    "a list": (lambda r: [r], "not an object but list"),
    "outside": (lambda r: replace(r, images=["../outside.png"]), "../outside.png is outside the folder "),
    "absolute": (lambda r: replace(r, images=["/etc/passwd"]), "/etc/passwd is outside the folder "),
    "a link": (lambda r: replace(r, images=["link.png"]), "link.png is outside the folder "),
    "a pipe": (lambda r: replace(r, images=["pipe.png"]), "there is no file pipe.png in "),
    "no name": (lambda r: replace(r, images=["a\0b.png"]), "'a\\x00b.png' is not a valid file name"),
    "long name": (lambda r: replace(r, images=["a" * 300]), "is not a valid file name"),
    "a program": (lambda r: replace(r, images=["program.png"]), "not an image of the formats PNG, JPEG, WEBP"),
    "a bomb": (lambda r: replace(r, images=["bomb.png"]), "an image of 9000×9000 pixels; the limit is 16777216"),
    "deep": (lambda r: replace(r, level=deep(200_000)), "nested deeper than 64 levels"),
    "surrogate": (lambda r: replace(r, board="\ud800"), "a lone surrogate"),
    "not a number": (lambda r: replace(r, reward=float("nan")), "the number NaN is not allowed in JSON"),
    "end of turn": (
        lambda r: with_messages(r, "<image>", GOOD.replace("<think>.", "<think>.<|im_end|>")),
        "the special token '<|im_end|>' in a text: remove it",
    ),
    "images in a text": (
        lambda r: with_messages(r, "<image>", GOOD + "<|image_pad|>" * 4),
        "the special token '<|image_pad|>' in a text: remove it",
    ),
}


class Raw(str):
    """JSON that no encoder would write."""


def deep(levels: int) -> Raw:
    return Raw("[" * levels + "]" * levels)


def line_of(record: Any) -> str:
    """A line of JSON, with raw JSON where a value is `Raw`."""
    raw = [value for value in record.values() if isinstance(value, Raw)] if isinstance(record, dict) else []
    line = json.dumps(record)
    for value in raw:
        line = line.replace(json.dumps(value), value)
    return line + "\n"


def write_pictures(folder: Path) -> None:
    """Images that rows may not name."""
    Image.new("RGB", (112, 56)).save(folder / "large.png")
    Image.new("RGB", (56, 56)).save(folder.parent / "outside.png")
    (folder / "cut.png").write_bytes((folder / "images" / "game_2048_000000.png").read_bytes()[:-20])
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "program.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 56 56\n%%EndComments\n(%pipe%id) (w) file\n"
    )
    picture = io.BytesIO()
    Image.new("1", (9000, 9000)).save(picture, "PNG")
    (folder / "bomb.png").write_bytes(picture.getvalue())


@pytest.mark.parametrize("wrong", WRONG)
def test_an_invalid_row(wrong: str, rows: list[Example], model: str, tmp_path: Path) -> None:
    """The error is one line that names the row, before the run writes anything."""
    file = write(tmp_path / "data", rows)
    write_pictures(file.parent)
    change, message = WRONG[wrong]
    records = records_of(file.parent)
    records[2] = change(records[2])
    file.write_text("".join(line_of(record) for record in records), "utf-8")
    with pytest.raises(ExperimentError) as caught:
        run(experiment_of(model, tmp_path / "run", file.parent))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}:3: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_tags_are_found_in_linear_time(rows: list[Example], model: str, tmp_path: Path) -> None:
    """A regular expression with a `.*` between any two took 32 seconds for 4 kB of opening tags."""
    file = write(tmp_path / "data", rows[:1])
    tags = "".join(f"<{slash}{name}>" for name in ("perception", "think") for slash in ("", "/"))
    record = with_messages(records_of(file.parent)[0], "<image>", tags * 2000 + "<answer>" * 2000)
    file.write_text(json.dumps(record) + "\n")
    policy = make_setup(tiny.make_experiment(model, tmp_path / "run", games=tiny.BOTH)).policy
    start = time.process_time()
    with pytest.raises(ExperimentError, match="the assistant's text is not <perception>"):
        read_dataset(file.parent, [GAMES["game_2048"]], policy)
    assert time.process_time() - start < 2


def test_an_invalid_dataset(rows: list[Example], model: str, tmp_path: Path) -> None:
    def error_of(dataset: Path) -> str:
        with pytest.raises(ExperimentError) as caught:
            run(experiment_of(model, tmp_path / "run", dataset))
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    assert error_of(tmp_path / "none") == f"cold_start.dataset='{tmp_path / 'none'}': no such folder"
    (tmp_path / "empty").mkdir()
    assert (
        error_of(tmp_path / "empty") == f"{tmp_path / 'empty'} is not a dataset: it has neither {JSONL} nor {PARQUET}"
    )
    file = write(tmp_path / "one", [row for row in rows if row.game == "game_2048"])
    assert error_of(file.parent).startswith(f"{file.parent}: no row of shisen_sho")
    with file.open("a") as lines:
        lines.write('{"messages": [\n')
    assert error_of(file.parent) == f"{file}:7: column 15: not JSON: Expecting value"
    (file.parent / PARQUET).write_bytes(b"PAR1 and then nothing")
    assert error_of(file.parent) == f"{file.parent} has both {JSONL} and {PARQUET}: remove one"
    file.unlink()
    pytest.importorskip("pyarrow")
    assert error_of(file.parent).startswith(f"{file.parent / PARQUET} cannot be read: ")
