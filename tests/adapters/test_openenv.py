"""The OpenEnv server and client, over real sockets."""

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from g1jax import envs
from tests.adapters.test_sessions import GAME, alone

pytest.importorskip("openenv", reason="extras: openenv")
import uvicorn
import websockets
from openenv.core.client_types import StepResult

from g1jax.adapters import openenv
from g1jax.adapters.openenv import GameAction, GameClient
from g1jax.adapters.sessions import Device

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the server's libraries
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    games = {"game_2048": GAME, "swap": envs.make("swap")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = openenv.make_app(games, max_sessions=12, max_steps=5)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_an_episode_from_the_client(url: str) -> None:
    with GameClient(url).sync() as env:
        result = env.reset(seed=7)
        observation = result.observation
        assert observation.game == "game_2048"
        assert "2048" in observation.prompt
        state, _ = alone(7, [])
        np.testing.assert_array_equal(Image.open(io.BytesIO(base64.b64decode(observation.image))), GAME.render(state))
        assert observation.is_legal is None
        moves = [0, 1, 2, 3, 0]
        results = [env.step(GameAction(response=f"<answer>{move}</answer>")) for move in moves]
        _, rewards = alone(7, moves)
        assert [result.reward for result in results] == rewards
        assert [result.done for result in results] == [False] * 4 + [True]
        assert results[-1].observation.truncated
        state = env.state()
        assert (state.step_count, state.score, state.seed) == (5, sum(rewards), 7)
        with pytest.raises(Exception, match="reset first: the episode is over"):
            env.step(GameAction(action=0))
        assert env.reset(game="swap").observation.num_actions == 4096


def test_candidates_are_tried_and_the_state_stays(url: str) -> None:
    with GameClient(url).sync() as env:
        board = env.reset(seed=1).observation.board
        tried = env.step(GameAction(candidates=[f"<answer>{move}</answer>" for move in range(4)])).observation
        assert tried.board == board
        for move in range(4):
            env.reset(seed=1)
            after = env.step(GameAction(action=move))
            outcome = tried.candidates[move]
            assert (outcome["board"], outcome["reward"]) == (after.observation.board, after.reward)


def test_concurrent_sessions_stay_apart_and_killed_ones_free_their_place(url: str) -> None:
    async def session(seed: int, is_killed: bool) -> list[float] | None:
        client = GameClient(url)
        await client.connect()
        await client.reset(seed=seed)
        rewards = []
        for move in (0, 1, 2):
            if is_killed and move == 2:
                client._ws.transport.abort()  # the peer sees a broken connection
                return None
            result: StepResult[Any] = await client.step(GameAction(action=move))
            rewards.append(result.reward)
        await client.close()
        return rewards

    async def rounds() -> None:
        for _ in range(3):
            got = await asyncio.gather(*(session(seed, seed % 3 == 0) for seed in range(12)))
            for seed, rewards in enumerate(got):
                assert rewards is None or rewards == alone(seed, [0, 1, 2])[1]
            await asyncio.sleep(0.5)  # the server notices the broken connections

    asyncio.run(rounds())


def test_bad_bodies_get_one_error_and_the_session_goes_on(url: str) -> None:
    bad = [
        "{",
        json.dumps({"type": "fly"}),
        json.dumps({"type": "step", "data": {}}),
        json.dumps({"type": "step", "data": {"action": 0, "response": "x"}}),
        json.dumps({"type": "step", "data": {"action": "up"}}),
        json.dumps({"type": "reset", "data": {"game": "gama_2048"}}),
        json.dumps({"type": "reset", "data": {"seed": -1}}),
    ]

    async def send() -> None:
        async with websockets.connect(url.replace("http", "ws") + "/ws") as socket:

            async def ask(message: str) -> Any:
                await socket.send(message)
                return json.loads(await socket.recv())

            first = await ask(json.dumps({"type": "step", "data": {"action": 0}}))
            assert "reset first" in first["data"]["message"]
            start = await ask(json.dumps({"type": "reset", "data": {"seed": 1}}))
            for body in bad:
                reply = await ask(body)
                assert reply["type"] == "error", body
                assert reply["data"]["message"]
            reply = await ask(json.dumps({"type": "reset", "data": {"game": "gama_2048"}}))
            assert "did you mean 'game_2048'" in reply["data"]["message"]
            candidates = json.dumps({"type": "step", "data": {"candidates": ["<answer>0</answer>"]}})
            assert (await ask(candidates))["data"]["observation"]["board"] == start["data"]["observation"]["board"]

    asyncio.run(send())


def test_an_environment_in_process_also_within_an_event_loop() -> None:
    device = Device(GAME)
    environment = openenv.GameEnvironment({"game_2048": device})

    async def play() -> float | None:  # as a cell of a notebook
        environment.reset(seed=7)
        reward: float | None = environment.step(GameAction(action=0)).reward
        return reward

    assert asyncio.run(play()) == alone(7, [0])[1][0]
    device.close()
