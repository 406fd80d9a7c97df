"""Malicious servers, which try to leak the key, fill memory, spend money or corrupt the log."""

import asyncio
import base64
import gzip
import json
import signal
import threading
import tracemalloc
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g1jax import envs
from g1jax.endpoint import event_loop
from g1jax.endpoint.client import Budget, Endpoint, num_tokens
from g1jax.endpoint.transport import MAX_BODY
from g1jax.evaluation import EvaluationError
from g1jax.evaluation.endpoint_player import play_remote
from g1jax.programs.evaluate import Options, evaluate
from g1jax.sft.states import StateSource, draw_states
from g1jax.teachers.endpoint import ask_endpoint
from tests.endpoint.server import Sent, Server, serving
from tests.training import tiny

LEVELS: dict[str, Any] = tiny.LEVELS
GAME = envs.make("game_2048", **LEVELS["game_2048"])
KEY = "sk-a-very-secret-key/with+more"
OK = "<think>Up.</think><answer>0</answer>"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def endpoint(server: Server, **changes: Any) -> Endpoint:
    settings = {
        "model": "m",
        "base_url": server.url,
        "backoff": 0.001,
        "timeout": 60.0,
        "image_side": 56,
        "max_tries": 2,
    }
    return Endpoint(**{**settings, **changes})


def completion(content: Any = OK, usage: Any = None, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def body(of: Any = None) -> bytes:
    return json.dumps(completion() if of is None else of).encode()


# Secrets

ECHOES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "repr": lambda text: repr(text.encode()),
    "json": lambda text: json.dumps(json.dumps(text)),
    "url": lambda text: urllib.parse.quote(text, safe=""),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "at the cut": lambda text: "x" * 270 + text,
    "after controls": lambda text: "\x1b" * 60 + text,
}


@pytest.mark.parametrize("user", ["", "me:word@"], ids=["key", "password"])
def test_a_secret_does_not_come_back(user: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in the log, nor on the terminal, nor in exceptions, whole or in part."""

    def echo(encode: Callable[[str], str], status: int) -> Callable[[str], bytes]:
        def make(authorization: str) -> bytes:
            secret = authorization.partition(" ")[2]
            text = encode(base64.b64decode(secret).decode() if authorization.startswith("Basic") else secret)
            return body(completion(text, reasoning=text) if status == 200 else {"error": {"message": text}})

        return make

    sent: dict[str, Sent] = {
        f"{name} {status}": (status, {"X-Key": KEY}, echo(encode, status))
        for name, encode in ECHOES.items()
        for status in (500, 200)
    }
    shown = []
    with serving(*sent, sent=sent) as server:
        url = server.url.replace("//", f"//{user}")
        for i in range(len(ECHOES)):
            log = tmp_path / f"{i}.jsonl"
            settings = endpoint(server, base_url=url, max_tries=1, on_failure="unreadable", concurrency=1)
            played = play_remote(GAME, settings, log, 1, 2, num_recorded=1)
            shown += [log.read_text("utf-8"), str(played.recorded), str(settings)]
        with pytest.raises(EvaluationError) as caught:
            play_remote(GAME, endpoint(server, base_url=url, max_tries=1), tmp_path / "stopped.jsonl", 1, 1)
        shown += [str(caught.value), *capsys.readouterr()]
    secret = "me:word" if user else KEY
    encoded = [encode(secret) for encode in ECHOES.values()]
    for text in shown:
        for form in [secret[:10], base64.b64encode(secret.encode()).decode()[:9], *encoded]:
            assert form not in text
    assert sum(text.count("[key]") for text in shown) >= 3 * len(ECHOES)


@pytest.mark.parametrize(
    "key", [f"{KEY}\n", f" {KEY}", f"{KEY[:9]} {KEY[9:]}", f"{KEY}\x1b", f"{KEY}é", f"{KEY}\u200b"]
)
def test_a_key_that_cannot_be_sent_is_refused_and_not_printed(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with serving() as server:
        with pytest.raises(EvaluationError, match="the key in OPENAI_API_KEY has white space") as caught:
            play_remote(GAME, endpoint(server), tmp_path / "log.jsonl", 1, 1)
        assert server.requests == []
    assert KEY[:9] not in "".join([str(caught.value), *capsys.readouterr()])
    assert str(caught.value).isprintable()
    assert not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize(
    "url",
    [
        "me:pass-word@host/v1",
        "http://me:pass-word@host:nine/v1",
        "http://me:pass-word/x@host/v1",
        "http://me:pass-word@[::/v1",
        "http://me:pass-word@host/v1\n",
        "http://me:pass-word@/v1",
    ],
)
def test_an_invalid_url_is_refused_and_its_password_not_printed(url: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="the endpoint's URL") as caught:
        play_remote(GAME, Endpoint(model="m", base_url=url), tmp_path / "log.jsonl", 1, 1)
    assert "pass-word" not in str(caught.value)
    assert "pass-word" not in str(Endpoint(model="m", base_url=url))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status: int, tmp_path: Path) -> None:
    with serving() as other:
        sent: dict[str, Sent] = {"away": (status, {"Location": f"{other.url}/chat/completions"}, b"")}
        with serving("away", sent=sent) as server, pytest.raises(EvaluationError, match=f"{status}: .* redirects to"):
            play_remote(GAME, endpoint(server), tmp_path / "log.jsonl", 1, 1)
        assert other.requests == []
        assert len(server.requests) == 1


# Bodies

DEEP = 200_000
BODIES: dict[str, Sent] = {
    "large": (200, {}, body(completion("x" * (MAX_BODY + 1)))),
    "large error": (500, {}, b"x" * (MAX_BODY + 1)),
    "gzip bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(200 * 2**20), 1)),
    "deflate bomb": (500, {"Content-Encoding": "deflate"}, zlib.compress(bytes(200 * 2**20), 1)),
    "charset bomb": (500, {"Content-Type": "text/plain; charset=zlib"}, zlib.compress(bytes(200 * 2**20), 1)),
    "no gzip": (200, {"Content-Encoding": "gzip"}, body()),
    "brotli": (200, {"Content-Encoding": "br"}, body()),
    "deep": (200, {}, b"[" * DEEP),
    "deep error": (400, {}, b'{"error":' + b"[" * DEEP),
    "deep within": (200, {}, body().replace(b'"usage": null', b'"usage": ' + b"[" * DEEP + b"]" * DEEP)),
    "headers": (200, {f"X-{i}": "x" * 60_000 for i in range(4)}, body()),
    "utf-16": (200, {}, body().decode().encode("utf-16")),
    "list": (200, {}, b"[]"),
    "number": (200, {}, b"1e999"),
    "choices": (200, {}, body({"choices": {"0": 1}})),
    "choice": (200, {}, body({"choices": [7]})),
    "message": (200, {}, body({"choices": [{"message": "hello"}]})),
    "content": (200, {}, body(completion([{"type": "text", "text": OK}]))),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_one_failed_try_in_bounded_memory(name: str, tmp_path: Path) -> None:
    """And later answers are played, in this run and the next one."""
    log = tmp_path / "log.jsonl"
    with serving(name, "ok", sent=BODIES, response=OK) as server:
        settings = endpoint(server, on_failure="unreadable", concurrency=1)
        tracemalloc.start()
        try:
            play_remote(GAME, settings, log, 1, 2)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        num_asked = len(server.requests)
        played = play_remote(GAME, settings, log, 1, 2)
        assert len(server.requests) == num_asked
    assert played.steps.reward.shape == (1, 2)
    assert peak < 60 * 2**20
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    reasons = [line.get("failed") or line.get("gave_up") or "" for line in lines[1:]]
    assert any(reasons)
    assert all(len(reason) <= 320 and reason.isprintable() for reason in reasons)


USAGES: dict[str, Any] = {
    "negative": {"prompt_tokens": -5, "completion_tokens": -(10**40)},
    "huge": {"prompt_tokens": 10**400, "completion_tokens": 2**31},
    "floats": {"prompt_tokens": 1.5, "completion_tokens": float("nan")},
    "bools": {"prompt_tokens": True, "completion_tokens": False},
    "texts": {"prompt_tokens": "1", "completion_tokens": [1]},
    "text": "many",
    "list": [1, 2],
    "infinite": {"prompt_tokens": float("inf"), "completion_tokens": float("-inf")},
}


@pytest.mark.parametrize("name", USAGES)
def test_implausible_token_counts_are_ignored(name: str, tmp_path: Path) -> None:
    sent: dict[str, Sent] = {name: (200, {}, body(completion(usage=USAGES[name])))}
    with serving(name, sent=sent) as server:
        for _ in range(2):
            played = play_remote(GAME, endpoint(server), tmp_path / "log.jsonl", 1, 1)
            assert played.steps.num_tokens is None
        assert len(server.requests) == 1


def test_a_log_with_implausible_token_counts_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with serving(response=OK) as server:
        play_remote(GAME, endpoint(server), log, 1, 1)
        raw = log.read_text("utf-8")
        for wrong in (2**31, 10**400, -7, "true", "NaN", "1e999", '"7"', "null"):
            log.write_text(raw.replace('"completion_tokens": 7', f'"completion_tokens": {wrong}'), "utf-8")
            assert play_remote(GAME, endpoint(server), log, 1, 1).steps.num_tokens is None
        assert len(server.requests) == 1


def test_numbers_of_tokens() -> None:
    given = [0, 7, 10**7, 10**7 + 1, -1, True, 1.0, None, "1"]
    assert [num_tokens(value) for value in given] == [0, 7, 10**7, -1, -1, -1, -1, -1, -1]


@pytest.mark.parametrize(
    "changes",
    [{"finish_reason": reason} for reason in (None, 7, ["stop"], {"a": 1}, "\x1b[2J" * 10**5)]
    + [{"reasoning": reasoning} for reasoning in (7, [OK], {"a": OK})],
    ids=lambda changes: str(changes)[:30],
)
def test_what_else_is_odd_in_an_answer_does_not_spoil_it(changes: dict[str, Any], tmp_path: Path) -> None:
    odd = completion(OK, **{key: value for key, value in changes.items() if key == "reasoning"})
    odd["choices"][0] |= {key: value for key, value in changes.items() if key == "finish_reason"}
    log = tmp_path / "log.jsonl"
    with serving("odd", sent={"odd": (200, {}, body(odd))}) as server:
        played = play_remote(GAME, endpoint(server), log, 1, 1)
    assert not np.asarray(played.steps.is_invalid).any()
    line = json.loads(log.read_text("utf-8").splitlines()[-1])
    assert line["reasoning"] == ""
    assert line["finish_reason"].isprintable()
    assert len(line["finish_reason"]) <= 60


@pytest.mark.parametrize("header", ["inf", "nan", "-5", "1e400", "9" * 5000, "soon", "-inf"])
def test_a_server_cannot_make_us_wait_for_long(header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float, *rest: Any) -> None:
        waits.append(seconds)
        await real(0)

    monkeypatch.setattr("g1jax.endpoint.client.asyncio.sleep", sleep)
    with serving("busy", "ok", sent={"busy": (429, {"Retry-After": header}, b"")}, response=OK) as server:
        play_remote(GAME, endpoint(server, backoff=0.5), tmp_path / "log.jsonl", 1, 1)
    assert all(0 <= seconds <= 75 for seconds in waits)
    assert any(seconds >= 0.3 for seconds in waits)


# Caps


def test_caps_are_of_all_games_together(tmp_path: Path) -> None:
    """Caps on calls and on tokens, where each game alone stays below them."""
    for caps, num_calls in (({"max_calls": 5}, 5), ({"max_total_tokens": 17 * 4}, 4)):
        with serving(response=OK) as server:
            settings = endpoint(server, concurrency=1, **caps)
            out = tmp_path / next(iter(caps))
            options = Options(
                player="openai", games="game_2048,game_2048:more_fours", episodes=1, steps=3, out=out, endpoint=settings
            )
            with pytest.raises(EvaluationError, match=r"is spent\. . of 3 steps of game_2048 are done"):
                evaluate(options)
            assert len(server.requests) == num_calls


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 0, "completion_tokens": 0}, {}, {"prompt_tokens": -1}])
def test_tokens_that_are_not_reported_are_estimated(usage: Any, tmp_path: Path) -> None:
    budget = Budget(max_total_tokens=1000)
    with serving("silent", sent={"silent": (200, {}, body(completion(usage=usage)))}) as server:
        settings = endpoint(server, max_tokens=400, concurrency=1)
        with pytest.raises(EvaluationError, match="max_total_tokens=1000 is spent"):
            play_remote(GAME, settings, tmp_path / "log.jsonl", 1, 9, budget=budget, prompt="2048")
        picture = (56 // 14) ** 2
        assert budget.num_tokens == len(server.requests) * (400 + len("2048") + picture)
        assert 1 < len(server.requests) < 4


def test_tries_that_may_have_cost_something_count(tmp_path: Path) -> None:
    for behavior, counts in (("500", False), ("truncated", True), ("cut", True)):
        budget = Budget()
        with serving(behavior) as server, pytest.raises(EvaluationError, match="0 of 1 steps"):
            play_remote(GAME, endpoint(server), tmp_path / f"{behavior}.jsonl", 1, 1, budget=budget)
        assert (budget.num_tokens > 0) == counts
        assert budget.num_calls == 2


# Event loops


def test_it_works_where_an_event_loop_runs(tmp_path: Path) -> None:
    with serving(response=OK) as server:

        async def cell() -> Any:
            played = play_remote(GAME, endpoint(server), tmp_path / "log.jsonl", 1, 2)
            taught = ask_endpoint(
                {"game_2048": GAME},
                lambda game: draw_states(game, StateSource(2)),
                2,
                {},
                endpoint(server),
                tmp_path / "exchanges",
            )
            with pytest.raises(EvaluationError, match="started with seed=0"):
                play_remote(GAME, endpoint(server), tmp_path / "log.jsonl", 1, 2, seed=1)
            return played, taught

        played, taught = asyncio.run(cell())
        again = play_remote(GAME, endpoint(server), tmp_path / "log.jsonl", 1, 2)
        assert len(server.requests) == 4
    np.testing.assert_array_equal(played.steps.reward, again.steps.reward)
    assert list(taught) == ["game_2048"]


@pytest.fixture
def handles_interrupts() -> Iterator[None]:
    """Python's own handler of SIGINT: a shell starts background processes with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("is_nested", [False, True])
def test_ctrl_c_cancels_what_runs_and_waits_for_it(is_nested: bool, handles_interrupts: None) -> None:
    ended = threading.Event()

    async def hang() -> None:
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()

    async def cell() -> None:
        event_loop.run(hang())

    if is_nested:
        loop = asyncio.new_event_loop()  # without the handler of `asyncio.run`, as in a notebook
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
        loop.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            event_loop.run(hang())
    assert ended.is_set()


def test_what_a_coroutine_gives_and_raises_comes_through() -> None:
    async def give(value: Any) -> Any:
        await asyncio.sleep(0)
        if isinstance(value, BaseException):
            raise value
        return value

    async def cell() -> Any:
        with pytest.raises(ZeroDivisionError):
            event_loop.run(give(ZeroDivisionError()))
        return event_loop.run(give(7))

    assert asyncio.run(cell()) == event_loop.run(give(7)) == 7
