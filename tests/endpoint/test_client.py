"""The endpoint player against a real server on loopback that answers correctly, wrongly, late or never."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.endpoint.client import Budget, Endpoint
from g1jax.evaluation import EvaluationError, Player, play
from g1jax.evaluation.endpoint_player import play_remote
from g1jax.evaluation.protocol import Answers, Episodes
from g1jax.rl.observation import Observation
from tests.conftest import REPOSITORY
from tests.endpoint.server import RAW, RESPONSE, Server, serving

GAME = envs.make("game_2048")
KEY = "sk-a-very-secret-key"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def endpoint(server: Server, **changes: Any) -> Endpoint:
    settings = {"model": "m", "base_url": server.url, "backoff": 0.01, "timeout": 5.0, "image_side": 112}
    return Endpoint(**{**settings, **changes})


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()][1:]


def answered(log: Path) -> list[tuple[int, int]]:
    return [(line["episode"], line["step"]) for line in lines_of(log) if "response" in line]


def always_up(params: Any, game: Any, states: Any, keys: Any, /) -> Answers:
    return Answers(jnp.zeros(len(keys), jnp.int32))


def assert_same_play(remote: Episodes, num_episodes: int, num_steps: int) -> None:
    """The server always answers up: the play of a device player that does the same."""
    local = play(GAME, Player("up", always_up), num_episodes, num_steps)
    np.testing.assert_array_equal(remote.steps.reward, local.steps.reward)
    np.testing.assert_array_equal(remote.steps.is_legal, local.steps.is_legal)


def test_it_plays_the_boards_that_all_players_meet(tmp_path: Path) -> None:
    progress = []
    with serving() as server:
        played = play_remote(
            GAME,
            endpoint(server),
            tmp_path / "log.jsonl",
            3,
            5,
            num_recorded=2,
            on_progress=lambda *counts: progress.append(counts),
        )
    assert_same_play(played, 3, 5)
    steps = played.steps
    assert steps.num_tokens is not None
    assert (steps.num_tokens == 7).all()
    assert steps.num_bytes is not None
    assert (steps.num_bytes == len(RESPONSE)).all()
    assert steps.is_formatted is not None
    assert steps.is_formatted.all()
    assert steps.is_exact is not None
    assert not steps.is_exact.any()
    assert not np.asarray(steps.is_invalid).any()
    assert played.recorded is not None
    assert played.recorded.responses == [[RESPONSE] * 5] * 2
    assert progress[-1] == (15, 15)
    assert sorted(answered(tmp_path / "log.jsonl")) == [(e, s) for e in range(3) for s in range(5)]
    content = server.requests[0]["messages"][0]["content"]
    assert content[0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert content[1]["text"] == GAME.prompt
    assert set(server.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize("shown", [("caption",), ("picture", "caption", "no_goal"), ("picture", "no_rules")])
def test_it_shows_what_is_observed(shown: tuple[str, ...], tmp_path: Path) -> None:
    observation, log = Observation.of(shown), tmp_path / "log.jsonl"
    with serving() as server:
        played = play_remote(GAME, endpoint(server), log, 1, 2, observation=observation)
        asked = [request["messages"][0]["content"] for request in server.requests]
        with pytest.raises(EvaluationError, match="was started with"):
            play_remote(GAME, endpoint(server), log, 1, 2)
    assert_same_play(played, 1, 2)
    assert len(asked) == 2
    for line, content in zip(lines_of(log), asked, strict=True):
        board = f"\nThe board:\n{line['board']}" if observation.caption else ""
        assert content[-1]["text"] == GAME.fill_prompt(GAME.default_prompt, observation.without) + board
        assert [part["type"] for part in content] == ["image_url"] * observation.picture + ["text"]
    setting = json.loads(log.read_text("utf-8").splitlines()[0])
    assert setting["observation"] == list(shown)


def reasons_of(log: Path) -> str:
    return " ".join(line.get("failed", "") for line in lines_of(log))


def test_every_step_is_accounted_for_however_the_server_behaves(tmp_path: Path) -> None:
    """With a timeout too long to be reached: on a busy machine a short one would also cut good answers."""
    log, failures = tmp_path / "log.jsonl", ["429", "500", "503", "cut", *RAW]
    behaviors = [
        *(each for failure in failures for each in (failure, "ok")),
        "slow",
    ]  # so that no question fails 12 times
    with serving(*behaviors) as server:
        played = play_remote(GAME, endpoint(server, timeout=600.0, max_tries=12, backoff=0.001), log, 3, 4)
        num_asked, num_ok = len(server.requests), sum(server.answered.values())
    assert_same_play(played, 3, 4)
    assert sorted(answered(log)) == [(e, s) for e in range(3) for s in range(4)]
    assert num_ok == 12, "answered questions are not asked again"
    assert len(lines_of(log)) == num_asked, "every try has its line"
    for reason in ("429", "500", "503", "not a chat completion", "no connection"):
        assert reason in reasons_of(log)


def test_every_step_is_accounted_for_where_answers_do_not_come_in_time(tmp_path: Path) -> None:
    """Which answers are in time depends on the machine's load, so the log is compared with the client's own count."""
    log, budget = tmp_path / "log.jsonl", Budget()
    with serving("ok", "hang", "ok", "drip") as server:
        settings = endpoint(server, timeout=1.0, max_tries=30, backoff=0.001)
        played = play_remote(GAME, settings, log, 3, 2, budget=budget)
    assert_same_play(played, 3, 2)
    assert sorted(answered(log)) == [(e, s) for e in range(3) for s in range(2)]
    assert len(lines_of(log)) == budget.num_calls, "every try has its line"
    assert "no answer within 1 s" in reasons_of(log)


def test_no_more_is_asked_at_a_time_than_allowed(tmp_path: Path) -> None:
    with serving("slow") as server:
        play_remote(GAME, endpoint(server, concurrency=2), tmp_path / "log.jsonl", 4, 2)
    assert server.most_under_way == 2


def test_a_cap_stops_the_run_and_the_next_one_resumes(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with serving() as server:
        with pytest.raises(EvaluationError, match=r"max_calls=5 is spent\. 5 of 8 steps .* run it again to resume"):
            play_remote(GAME, endpoint(server, max_calls=5, concurrency=1), log, 2, 4)
        assert len(server.requests) == 5
        with pytest.raises(EvaluationError, match="max_total_tokens=20 is spent"):
            play_remote(GAME, endpoint(server, max_total_tokens=20, concurrency=1), log, 2, 4)
        played = play_remote(GAME, endpoint(server), log, 2, 4)
        assert len(server.requests) == 8
        play_remote(GAME, endpoint(server), log, 2, 4)
        assert len(server.requests) == 8, "a complete log needs no questions"
        play_remote(GAME, endpoint(server), log, 3, 4)
        assert len(server.requests) == 12, "more episodes ask only for the new ones"
    assert_same_play(played, 2, 4)


def test_what_fails_for_good_stops_the_run_in_one_line(tmp_path: Path) -> None:
    for status, message in (
        ("401", "refuses the key in OPENAI_API_KEY"),
        ("403", "refuses the key"),
        ("404", "no model 'm' at"),
        ("400", "400: "),
        ("500", r"500: .*after 3 tries"),
    ):
        with serving(status) as server:
            log = tmp_path / f"{status}.jsonl"
            with pytest.raises(EvaluationError, match=message) as caught:
                play_remote(GAME, endpoint(server, max_tries=3, concurrency=2), log, 2, 2)
            assert "\n" not in str(caught.value)
            assert KEY not in str(caught.value)
            assert KEY not in log.read_text("utf-8")
            assert len(server.requests) <= 2 * (3 if status == "500" else 1)


def test_a_question_given_up_may_count_as_an_unreadable_answer(tmp_path: Path) -> None:
    with serving("400", "ok") as server:
        settings = endpoint(server, on_failure="unreadable", concurrency=1)
        played = play_remote(GAME, settings, tmp_path / "log.jsonl", 1, 4)
    np.testing.assert_array_equal(played.steps.is_invalid, [[True, False, True, False]])
    assert played.steps.num_tokens is None
    assert [line["gave_up"][:3] for line in lines_of(tmp_path / "log.jsonl") if "gave_up" in line] == ["400", "400"]


def test_no_server_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        settings = Endpoint(model="m", base_url=url, backoff=0.01, max_tries=2)
        with pytest.raises(EvaluationError, match=r"no connection to http://127.*0 of 1 steps"):
            play_remote(GAME, settings, tmp_path / "log.jsonl", 1, 1)


def test_the_key_is_redacted_in_what_comes_back(tmp_path: Path) -> None:
    with serving("500", "ok", response="<answer>{key}</answer>") as server:
        play_remote(GAME, endpoint(server), tmp_path / "log.jsonl", 1, 1)
    log = (tmp_path / "log.jsonl").read_text("utf-8")
    assert KEY not in log
    assert log.count("[key]") == 2


@pytest.mark.parametrize("response", ["", "\0<answer>1</answer>\0", "\ud800 \u2028 </script>", "é" * 40_000])
def test_any_response_is_kept_and_read(response: str, tmp_path: Path) -> None:
    with serving(response=response) as server:
        played = play_remote(GAME, endpoint(server), tmp_path / "log.jsonl", 1, 1, num_recorded=1)
        again = play_remote(GAME, endpoint(server), tmp_path / "log.jsonl", 1, 1, num_recorded=1)
    kept = response.replace("\ud800", "\ufffd")
    assert played.recorded is not None
    assert played.recorded.responses == [[kept]]
    assert again.recorded is not None
    assert again.recorded.responses == [[kept]]
    assert bool(np.asarray(played.steps.is_invalid).all()) == ("1" not in response)


def test_a_log_of_another_setting_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with serving() as server:
        play_remote(GAME, endpoint(server), log, 1, 1)
        with pytest.raises(EvaluationError, match="started with seed=0, now it is 1"):
            play_remote(GAME, endpoint(server), log, 1, 1, seed=1)
        with pytest.raises(EvaluationError, match="temperature"):
            play_remote(GAME, endpoint(server, temperature=0.5), log, 1, 1)
        log.write_text(log.read_text("utf-8").replace('"board": "', '"board": "8'), "utf-8")
        with pytest.raises(EvaluationError, match="shows another board"):
            play_remote(GAME, endpoint(server), log, 1, 1)


def test_a_line_that_cannot_be_read_is_asked_again_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    with serving() as server:
        whole = play_remote(GAME, endpoint(server), log, 1, 3)
        raw = log.read_bytes()
        second = raw.index(b'"episode": 0, "step": 1')
        for name, damaged in {
            "torn": raw[:-9],
            "without a brace": raw[: second - 1] + raw[second:],
            "a bit": raw[:second] + b"\xa2" + raw[second + 1 :],
            "other types": raw.replace(b'"step": 1', b'"step": "1"'),
            "no object": raw[: second - 1] + b"[]\n" + raw[second - 1 :],
            "deep": raw + b"[" * 100_000 + b"\n",
        }.items():
            log.write_bytes(damaged)
            assert np.array_equal(play_remote(GAME, endpoint(server), log, 1, 3).steps.reward, whole.steps.reward), name
            assert log.read_bytes().startswith(damaged), name
            err = capsys.readouterr().err
            assert err.startswith(f"note: {log}:"), name
            assert err.count("\n") == 1, name
            again = log.read_bytes()
            play_remote(GAME, endpoint(server), log, 1, 3)
            assert log.read_bytes() == again, "the log is complete again"
            capsys.readouterr()
        assert len(server.requests) == 3 + 4


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: raw[1:], id="no brace"),
        pytest.param(lambda raw: raw[raw.index(b"\n") + 1 :], id="cut off"),
        pytest.param(lambda raw: raw.replace(b"g1jax_exchanges", b"g1jax_exchangez"), id="a bit"),
        pytest.param(lambda raw: raw.replace(b'"seed": 0', b'"seed": 1'), id="another setting"),
        pytest.param(lambda raw: raw.replace(b'"board": "', b'"board": "8'), id="other boards"),
    ],
)
def test_exchanges_are_never_deleted(damage: Any, tmp_path: Path) -> None:
    """However loading fails, every byte is still at the beginning of the file."""
    log = tmp_path / "log.jsonl"
    with serving() as server:
        play_remote(GAME, endpoint(server), log, 1, 2)
        damaged = damage(log.read_bytes())
        log.write_bytes(damaged)
        with pytest.raises(EvaluationError, match="use another --out") as caught:
            play_remote(GAME, endpoint(server), log, 1, 2)
        assert str(log) in str(caught.value)
        assert log.read_bytes().startswith(damaged)


def test_a_log_without_a_readable_line_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(bytes(100))
    with serving() as server:
        play_remote(GAME, endpoint(server), log, 1, 1)
        play_remote(GAME, endpoint(server), log, 1, 1)
        assert len(server.requests) == 1
    assert log.read_bytes().startswith(bytes(100) + b"\n{")


def test_exchanges_are_kept_when_a_run_is_stopped_or_cannot_resume(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with serving("ok", "ok", "500") as server:
        with pytest.raises(EvaluationError, match="500"):
            play_remote(GAME, endpoint(server, concurrency=1, max_tries=1), log, 1, 4)
        raw = log.read_bytes()

        def interrupt(done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            play_remote(GAME, endpoint(server, concurrency=1), log, 1, 4, on_progress=interrupt)
        assert log.read_bytes().startswith(raw)
        raw = log.read_bytes()
        for changes in ({"model": "n"}, {"max_calls": 1, "temperature": 0.1}):
            with pytest.raises(EvaluationError, match="started with"):
                play_remote(GAME, endpoint(server, **changes), log, 1, 4)
        assert log.read_bytes() == raw
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(OSError, match="folder"):
        play_remote(GAME, Endpoint(model="m", base_url="http://127.0.0.1:9/v1"), folder, 1, 1)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(EvaluationError, match=r"pipe\.jsonl: not a regular file"):
        play_remote(GAME, Endpoint(model="m", base_url="http://127.0.0.1:9/v1"), tmp_path / "pipe.jsonl", 1, 1)


def test_missing_settings_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    with pytest.raises(EvaluationError, match="name the endpoint's model"):
        play_remote(GAME, Endpoint(), log, 1, 1)
    with pytest.raises(EvaluationError, match="must start with http"):
        play_remote(GAME, Endpoint(model="m", base_url="localhost:8000"), log, 1, 1)
    for wrong in ({"concurrency": 0}, {"timeout": math.nan}, {"backoff": math.inf}, {"temperature": -1.0}):
        with pytest.raises(EvaluationError, match=f"{next(iter(wrong))}="):
            Endpoint(**wrong)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EvaluationError, match="set OPENAI_API_KEY"):
        play_remote(GAME, Endpoint(model="m"), log, 1, 1)
    assert Endpoint(base_url="https://me:word@host:1/v1?k=s").public_url == "https://host:1/v1"


def test_killed_in_the_middle_it_resumes_and_asks_nothing_twice(tmp_path: Path) -> None:
    """After kill -9, twice, logged answers are not asked again, and the play is the same."""
    log = tmp_path / "log.jsonl"
    code = (
        "import sys, pathlib\n"
        "from g1jax import envs\n"
        "from g1jax.endpoint.client import Endpoint\n"
        "from g1jax.evaluation.endpoint_player import play_remote\n"
        "url, log = sys.argv[1:]\n"
        "settings = Endpoint(model='m', base_url=url, backoff=0.01, image_side=112, concurrency=3)\n"
        "play_remote(envs.make('game_2048'), settings, pathlib.Path(log), 3, 12)\n"
    )
    before: list[tuple[int, int]] = []
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".cache" / "jax")}
    with serving("slow", "500", "slow") as server:
        for enough in (8, 18):
            process = subprocess.Popen([sys.executable, "-c", code, server.url, str(log)], env=environment)
            deadline = time.monotonic() + 120
            while not (log.exists() and log.read_bytes().count(b'"response"') >= enough):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            server.wait_until_idle()
            so_far = answered(log)
            assert len(set(so_far)) == len(so_far) < 36
            assert so_far[: len(before)] == before
            before = so_far
        num_lost = sum(server.answered.values()) - len(before)  # answered, but killed before it was logged
        assert num_lost <= 2 * 3
        played = play_remote(GAME, endpoint(server), log, 3, 12)
        assert sum(server.answered.values()) == 36 + num_lost
    assert answered(log)[: len(before)] == before
    assert sorted(answered(log)) == [(e, s) for e in range(3) for s in range(12)]
    assert_same_play(played, 3, 12)
