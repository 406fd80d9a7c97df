"""Teachers on the host: the built-in one, and models behind an endpoint that is sound, faulty or down."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from g1jax import envs
from g1jax.endpoint.client import Endpoint
from g1jax.envs import LevelError
from g1jax.evaluation import EvaluationError
from g1jax.programs.dataset import EXCHANGES, Options, make_dataset
from g1jax.sft.dataset import JSONL, Example
from g1jax.sft.states import StateSource, draw_states, make_examples
from g1jax.teachers import Reply, StateBatch, built_in
from g1jax.teachers.endpoint import prompt_of, reply_of
from g1jax.training import ExperimentError
from tests.conftest import REPOSITORY
from tests.endpoint.server import RAW, Server, serving
from tests.training import tiny

LEVELS: dict[str, Any] = tiny.LEVELS
GAME = envs.make("game_2048", **LEVELS["game_2048"])
KEY = "sk-a-very-secret-key"
RESPONSE = "<think>The tiles can go up.</think><answer>0</answer>"
STATES = 20


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An experiment of tiny 2048 and Shisen-Sho."""
    return tiny.write_experiment(tmp_path_factory.mktemp("experiment") / "tiny.py", "nano", "")


@pytest.fixture
def options(levels: str, tmp_path: Path) -> Any:
    """`options(server, …)`: options for an endpoint and 2048."""

    def make(server: Server | None = None, out: str = "out", **changes: Any) -> Options:
        settings: dict[str, Any] = {"backoff": 0.01, "timeout": 30.0, "image_side": 56, "model": "m"}
        settings["base_url"] = server.url if server is not None else "http://127.0.0.1:9/v1"
        settings |= {key: changes.pop(key) for key in list(changes) if key in Endpoint.__dataclass_fields__}
        own: dict[str, Any] = {"out": tmp_path / out, "experiment": levels, "games": "game_2048", "states": STATES}
        return Options(**{**own, "teacher": "endpoint", "endpoint": Endpoint(**settings), **changes})

    return make


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JSONL).read_text("utf-8").splitlines()]


def exchanges_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / EXCHANGES / "game_2048.jsonl").read_text("utf-8").splitlines()[1:]
    return [json.loads(line) for line in lines]


def reward_of(board: str, action: int) -> float:
    """The reward in 2048, which is deterministic."""
    return float(GAME.step(GAME.from_text(board), action, jax.random.key(0))[1].reward)


# The states, and the built-in teacher


@pytest.mark.parametrize("name", ["game_2048", pytest.param("shisen_sho", marks=pytest.mark.slow)])
def test_the_expert_s_demonstrations(name: str) -> None:
    game = envs.make(name, **LEVELS[name])
    rows = list(make_examples(game, StateSource(18), built_in, only_rewarded=False))
    assert len(rows) == 18
    boards = set()
    for row in rows:
        assert isinstance(row, Example)
        boards.add(row.board)
        state = game.from_text(row.board)
        np.testing.assert_array_equal(game.render(state) if name == "game_2048" else row.frame, row.frame)
        assert row.response.startswith(f"<perception>{row.board}</perception><think>")
        assert int(game.parse(row.response)) == row.action
        assert float(game.step(state, row.action, jax.random.key(0))[1].reward) == row.reward
    assert len(boards) > 2


def test_the_states_follow_from_the_seed() -> None:
    def boards(source: StateSource) -> list[str]:
        return [board for batch in draw_states(GAME, source) for board in batch.boards]

    first = boards(StateSource(18))
    assert len(first) == 18
    assert boards(StateSource(18)) == first
    assert boards(StateSource(18, seed=1)) != first
    assert boards(StateSource(18, random_moves=1.0)) != first
    assert boards(StateSource(18, random_moves=1.0))[:5] == first[:5], "the first boards are initial states"


# An endpoint


def test_only_rewarded_moves_are_kept(options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server always answers up, which is right on some boards. Each is asked once, with frame and board."""
    with serving(response=RESPONSE) as server:
        file = make_dataset(options(server))
        assert make_dataset(options(server)) == file
        assert len(server.requests) == STATES
        contents = [request["messages"][0]["content"] for request in server.requests]
    boards = [board for batch in draw_states(GAME, StateSource(STATES)) for board in batch.boards]
    assert Counter(content[1]["text"] for content in contents) == Counter(prompt_of(GAME, board) for board in boards)
    assert all(content[0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR") for content in contents)
    records = records_of(tmp_path / "out")
    assert [record["board"] for record in records] == [board for board in boards if reward_of(board, 0) > 0]
    assert 0 < len(records) < STATES
    for record in records:
        assert record["action"] == 0
        assert record["reward"] == reward_of(record["board"], 0)
        response = record["messages"][1]["content"]
        assert response == f"<perception>{record['board']}</perception>{RESPONSE}"
    err = capsys.readouterr().err
    assert f"{len(records)} of {STATES} demonstrations kept; left out: {STATES - len(records)} without a reward" in err
    assert "is already complete" in err


def test_a_server_that_misbehaves_changes_nothing(options: Any, tmp_path: Path) -> None:
    with serving(response=RESPONSE) as server:
        make_dataset(options(server))
    with serving("429", "ok", "500", "cut", "503", "ok", "slow", *RAW, response=RESPONSE) as server:
        make_dataset(options(server, "bad", max_tries=25, backoff=0.001))
        assert sum(server.answered.values()) == STATES, "answered questions are not asked again"
        assert len(exchanges_of(tmp_path / "bad")) == len(server.requests) > STATES
    assert (tmp_path / "bad" / JSONL).read_bytes() == (tmp_path / "out" / JSONL).read_bytes()


def test_a_cap_stops_it_and_the_next_run_resumes(options: Any, tmp_path: Path) -> None:
    with serving(response=RESPONSE) as server:
        with pytest.raises(
            EvaluationError, match=rf"max_calls=5 is spent\. 5 of {STATES} states of game_2048 are done"
        ):
            make_dataset(options(server, max_calls=5, concurrency=1))
        assert not (tmp_path / "out" / JSONL).exists()
        with pytest.raises(EvaluationError, match="started with seed=0, now it is 1"):
            make_dataset(options(server, seed=1))
        make_dataset(options(server))
        assert len(server.requests) == STATES


def test_questions_given_up_are_left_out(options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving("400", "ok", response=RESPONSE) as server:
        make_dataset(options(server, on_failure="unreadable", concurrency=1))
    assert f"{STATES // 2} not answered" in capsys.readouterr().err
    boards = [line["board"] for line in exchanges_of(tmp_path / "out") if line.get("response")]
    assert Counter(record["board"] for record in records_of(tmp_path / "out")) == Counter(
        board for board in boards if reward_of(board, 0) > 0
    )


def test_no_usable_reply_is_one_line(options: Any, tmp_path: Path) -> None:
    no_rows = pytest.raises(ExperimentError, match="there are no rows to write")
    with serving(response="I would rather not.") as server, no_rows:
        make_dataset(options(server))
    with serving("401") as server, pytest.raises(EvaluationError, match="refuses the key in OPENAI_API_KEY") as caught:
        make_dataset(options(server, "refused"))
    assert "\n" not in str(caught.value)


def test_the_key_is_never_written(options: Any, tmp_path: Path) -> None:
    with serving("500", "ok", response="<think>My key is {key}.</think><answer>0</answer>") as server:
        make_dataset(options(server, concurrency=1))  # one at a time, so that no question always gets the 500
        assert set(server.keys) == {f"Bearer {KEY}"}
    assert "My key is Bearer [key]." in (tmp_path / "out" / JSONL).read_text("utf-8")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes()


ANSWER = "<answer>1</answer>"


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ({"response": f"<think> Why. </think>\n{ANSWER}"}, Reply("Why.", ANSWER)),
        ({"response": f"Why.</think>{ANSWER}"}, Reply("Why.", ANSWER)),
        ({"response": ANSWER, "reasoning": "Why."}, Reply("Why.", ANSWER)),
        ({"response": f"<perception>-</perception><think>Why.</think>{ANSWER}<answer>2"}, Reply("Why.", ANSWER)),
        ({"response": "<think>Why \ud800</think>" + ANSWER}, Reply("Why ?", ANSWER)),
        ({"response": ANSWER}, Reply(problem="without reasoning")),
        ({"response": f"<think></think>{ANSWER}"}, Reply(problem="without reasoning")),
        ({"response": f"<think>An <image>.</think>{ANSWER}"}, Reply(problem="without reasoning")),
        ({"response": f"<think>So {ANSWER}</think>{ANSWER}"}, Reply(problem="without reasoning")),
        ({"response": f"<think>So.<|im_end|></think>{ANSWER}"}, Reply(problem="without reasoning")),
        ({"response": "<think>Why.</think>1"}, Reply(problem="without a move")),
        ({"response": "<think>Why.</think></answer><answer>1"}, Reply(problem="without a move")),
        ({"response": "", "gave_up": "400: no"}, Reply(problem="not answered")),
    ],
)  # fmt: skip
def test_parsing_a_reply(line: dict[str, Any], reply: Reply) -> None:
    assert reply_of(line) == reply


def test_unreadable_moves_are_left_out() -> None:
    def teach(batch: StateBatch) -> list[Reply]:
        answers = ["<answer>9</answer>", "<answer>" + " " * 200 + "0</answer>", "<answer>up</answer>"]
        return [Reply("Why.", answers[i % 3]) for i in range(len(batch.boards))]

    assert list(make_examples(GAME, StateSource(18), teach, only_rewarded=True)) == ["without a move"] * 18


@pytest.mark.parametrize("name", envs.game_ids())
def test_what_an_endpoint_is_asked(name: str) -> None:
    """The game's default rules; no perception, since the board is given."""
    prompt = prompt_of(envs.make(name), "A | B")
    assert prompt.endswith("\nA | B")
    assert "<perception>" not in prompt
    assert "{" not in prompt
    assert prompt.count("<think>") == 1


# The program


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "train/make_dataset.py", *arguments],
        cwd=REPOSITORY,
        env={**tiny.environment(), "OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_in_the_middle_it_resumes_and_asks_nothing_twice(levels: str, options: Any, tmp_path: Path) -> None:
    """After kill -9, logged answers are not asked again, and the dataset is the same."""
    out = tmp_path / "killed"
    with serving("slow", "500", "slow", response=RESPONSE) as server:
        arguments = [f"--out={out}", f"--experiment={levels}", "--games=game_2048", f"--states={STATES}", "--seed=0"]
        arguments += ["--teacher=endpoint", "--model=m", f"--base-url={server.url}", "--concurrency=2"]
        arguments += ["--backoff=0.01", "--image-side=56"]
        process, log, deadline = start(*arguments), out / EXCHANGES / "game_2048.jsonl", time.monotonic() + 120
        while not (log.exists() and log.read_bytes().count(b'"response"') >= 6):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        server.wait_until_idle()
        before = [line["board"] for line in exchanges_of(out) if "response" in line]
        assert 6 <= len(before) < STATES
        assert not (out / JSONL).exists()
        num_lost = sum(server.answered.values()) - len(before)  # answered, but killed before it was logged
        assert 0 <= num_lost <= 2
        process = start(*arguments)
        printed, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert printed == f"{out / JSONL}\n"
        assert "demonstrations kept" in err
        assert sum(server.answered.values()) == STATES + num_lost
    with serving(response=RESPONSE) as server:
        whole = make_dataset(options(server, "whole"))
    assert whole.read_bytes() == (out / JSONL).read_bytes()


def test_wrong_arguments(options: Any, tmp_path: Path) -> None:
    for changes, kind, message in (
        ({"states": 0}, ExperimentError, "states=0: expected a whole number from 1 to 10000000"),
        ({"random_moves": 1.5}, ExperimentError, "random_moves=1.5: expected a number from 0 to 1"),
        ({"seed": -1}, ExperimentError, "seed=-1: expected a whole number from 0"),
        ({"model": ""}, ExperimentError, "name the endpoint's model: --model=…"),
        ({"games": "swap"}, ExperimentError, "tiny has no game 'swap': it has game_2048"),
        ({"experiment": "tinny"}, ExperimentError, "unknown experiment 'tinny'"),
        ({"games": "chess", "experiment": ""}, LevelError, "unknown game 'chess'"),
        ({"base_url": "localhost:80"}, EvaluationError, "the endpoint's URL must start with http"),
    ):
        with pytest.raises(kind, match="^" + message.replace(".", r"\.")) as caught:
            make_dataset(options(**changes))
        assert "\n" not in str(caught.value)


def test_errors_of_the_program_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for arguments, message in (
        (
            [f"--out={tmp_path / 'new'}", "--states=0"],
            "dataset: states=0: expected a whole number from 1 to 10000000\n",
        ),
        (
            [f"--out={tmp_path / 'file'}", "--games=game_2048"],
            f"dataset: {tmp_path / 'file'} cannot be written: File exists\n",
        ),
    ):
        process = start(*arguments)
        printed, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert printed == ""
        assert err.startswith("dataset: ")
        assert err.endswith(message)
        assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
