"""The games in `verifiers`: whole episodes against a local endpoint."""

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from g1jax import envs, rl
from g1jax.envs import text
from g1jax.envs.response import compose
from g1jax.errors import InputError, LevelError
from tests.conftest import REPOSITORY
from tests.endpoint.server import RESPONSE, Server, serving

pytest.importorskip("verifiers.v1", reason="extras: verifiers")
import verifiers.v1 as vf

from g1jax.adapters.verifiers import load_environment

GAME = envs.make("game_2048")
pytestmark = pytest.mark.filterwarnings("ignore")  # of verifiers and its libraries


def completion(response: str) -> Any:
    """A server's answer."""
    message = {"role": "assistant", "content": response}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    head = {"id": "x", "object": "chat.completion", "created": 0, "model": "tiny"}
    return 200, {}, json.dumps(head | {"choices": choices}).encode()


def play(env: Any, server: Server, tasks: int = 1) -> list[Any]:
    """The episodes of the first tasks, one after another."""
    context = vf.ModelContext("tiny", vf.EvalClientConfig(base_url=server.url, api_key_var="HOME"))

    async def run() -> list[Any]:
        async with env.serving():
            slots = [slot for task in env.taskset.take(tasks) for slot in env.slots(task)]
            return [await env.run_slot(slot, context) for slot in slots]

    return asyncio.run(run())


def played(seed: int, responses: list[str]) -> tuple[list[rl.Reward], list[float], list[bool]]:
    """The rewards of responses, and of their moves, computed without the adapter."""
    state, rewards, scores, legal = jax.jit(GAME.reset)(jax.random.key(seed)), [], [], []
    for number, response in enumerate(responses):
        key = jax.random.fold_in(jax.random.key(seed), number)
        after, result = jax.jit(GAME.step)(state, GAME.parse(response), key)
        rewards.append(jax.jit(partial(rl.reward, GAME))(text.encode(response), state, result))
        scores.append(float(result.reward))
        legal.append(bool(result.is_legal))
        state = after
    return rewards, scores, legal


def picture(message: dict[str, Any]) -> np.ndarray:
    """The frame in a user's message."""
    url = message["content"][0]["image_url"]["url"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def test_an_episode_has_the_rewards_of_its_responses() -> None:
    state = GAME.reset(jax.random.key(3))
    board = text.decode(jax.jit(GAME.describe)(state))
    responses = [compose(board, "Left.", GAME.format_action(3)), "<answer>0</answer>", "What?", RESPONSE]
    replies = {f"reply {i}": completion(response) for i, response in enumerate(responses)}
    with serving(*replies, sent=replies) as server:
        env = load_environment(first_seed=3, max_steps=4, rewards={"perception": 2.0, "game_shape": "raw"})
        (episode,) = play(env, server)
    assert episode.ok, episode.errors
    (trace,) = episode.traces
    parts, scores, legal = played(3, responses)
    assert trace.rewards["game"].score == pytest.approx(np.mean(scores))
    assert trace.rewards["format"].score == pytest.approx(np.mean([float(part.format) for part in parts])) == 0.5
    assert trace.rewards["perception"].score == pytest.approx(np.mean([float(part.perception) for part in parts]))
    assert trace.rewards["perception"].score == 0.25
    assert [trace.rewards[name].weight for name in ("game", "format", "perception")] == [1, 1, 2]
    assert trace.metrics == {"score": sum(scores), "steps": 4, "legal": np.mean(legal)}
    conversation = server.requests[-1]["messages"]
    assert [message["role"] for message in conversation] == ["user", "assistant"] * 3 + ["user"]
    assert [message["content"] for message in conversation[1::2]] == responses[:3]
    np.testing.assert_array_equal(picture(conversation[0]), GAME.render(state))
    assert not np.array_equal(picture(conversation[2]), picture(conversation[0]))
    assert conversation[0]["content"][1]["text"] == GAME.prompt


def test_a_task_starts_after_the_random_moves_of_its_seed() -> None:
    settings: dict[str, Any] = {"random_moves": 6, "observation": "both", "prompt": "Move."}
    with serving() as server:
        env = load_environment(**settings)
        assert all(episode.ok for episode in play(env, server, tasks=3))
    tasks = list(env.taskset.take(3))
    assert [task.data.seed for task in tasks] == [0, 1, 2]
    assert any(task.data.moves for task in tasks)
    for task, request in zip(tasks, server.requests, strict=True):
        state = GAME.reset(jax.random.key(task.data.seed))
        for number, move in enumerate(task.data.moves):
            key = jax.random.fold_in(jax.random.key(task.data.seed), number)
            state, _ = jax.jit(GAME.step)(state, move, key)
        (message,) = request["messages"]
        np.testing.assert_array_equal(picture(message), GAME.render(state))
        assert message["content"][1]["text"] == f"Move.\n\n{text.decode(jax.jit(GAME.describe)(state))}"


def test_a_model_without_vision_sees_the_board_only() -> None:
    task = next(iter(load_environment(game="swap", observation="board").taskset))
    (message,) = task.data.prompt
    assert [part.type for part in message.content] == ["text"]
    assert message.content[0].text.rsplit("\n\n", 1)[1].count(" | ") == 8 * 7


def test_a_failing_endpoint_gives_no_rewards() -> None:
    with serving("400") as server:
        (episode,) = play(load_environment(), server)
    assert not episode.ok
    assert episode.traces[0].rewards == {}


def test_wrong_settings_are_named() -> None:
    with pytest.raises(InputError, match="gmae"):
        load_environment(gmae="swap")
    with pytest.raises(TypeError, match="gmae_shape"):
        load_environment(rewards={"gmae_shape": "raw"})
    with pytest.raises(ValueError, match="game_shape"):
        load_environment(rewards={"game_shape": "rwa"})
    with pytest.raises(LevelError, match="did you mean 'swap'"):
        next(iter(load_environment(game="swop").taskset))


@pytest.mark.slow
def test_the_command_of_verifiers_finds_the_games(tmp_path: Path) -> None:
    with serving() as server:
        command = [
            str(Path(sys.executable).with_name("vf-eval")),
            "g1jax-verifiers",
            "-n",
            "2",
            "-r",
            "1",
            "-m",
            "tiny",
        ]
        command += ["--client.base-url", server.url, "--client.api-key-var", "HOME", "--no-push"]
        command += ["--env.taskset.game", "swap", "--env.max-steps", "2"]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 4
    (file,) = tmp_path.rglob("traces.jsonl")
    assert len(file.read_text().splitlines()) == 2
