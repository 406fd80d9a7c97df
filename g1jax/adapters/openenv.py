"""The games as OpenEnv environments: typed actions and observations, a server app, and a client.

A client's session plays one game at a time. All sessions of a game are computed together, see `sessions`.

>>> from g1jax.adapters import openenv  # doctest: +SKIP
>>> with openenv.GameClient("http://127.0.0.1:8000").sync() as env:  # doctest: +SKIP
...     result = env.reset(game="swap", seed=1)
...     result = env.step(openenv.GameAction(response="<answer>(0, 0) (0, 1)</answer>"))
"""

import asyncio
import base64
import functools
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from fastapi import FastAPI
from openenv.core.client_types import StepResult
from openenv.core.env_client import EnvClient
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError  # a ValueError could not be written as JSON

from g1jax.adapters.sessions import Device, Seen
from g1jax.endpoint.event_loop import run
from g1jax.envs.batch import EPISODE_STEPS
from g1jax.envs.core import Game
from g1jax.errors import InputError, unknown

_MOST_CANDIDATES = 64
_MOST_LETTERS = 100_000


class GameAction(Action):
    """A move: a model's response, of which `<answer>…</answer>` counts, or an action's number; or moves to try out."""

    response: str | None = Field(None, max_length=_MOST_LETTERS)
    action: int | None = None
    candidates: list[str] = Field([], max_length=_MOST_CANDIDATES)
    """Responses, each tried from the current state, which stays: `observation.candidates` has what each leads to."""

    @model_validator(mode="after")
    def _is_one_move(self) -> "GameAction":
        given = [self.response is not None, self.action is not None, bool(self.candidates)]
        if sum(given) != 1:
            raise PydanticCustomError("move", "give one of response, action and candidates")
        if any(len(candidate) > _MOST_LETTERS for candidate in self.candidates):
            raise PydanticCustomError("move", "a candidate is too long")
        return self


class GameObservation(Observation):
    """What the player sees of a state, and how the last move went."""

    game: str
    prompt: str
    image: str
    """The frame, a PNG file in base64."""
    board: str
    """The true board text; show it to the policy only if it should not have to read the picture."""
    legal_actions: list[int]
    num_actions: int
    is_legal: bool | None = None
    """Whether the last move was legal; None after a reset."""
    truncated: bool = False
    """The episode has as many steps as the server allows."""
    candidates: list[dict[str, Any]] = Field([])
    """For each candidate: reward, is_legal, terminated, board."""


class GameState(State):
    """Where a session stands."""

    game: str = ""
    seed: int = 0
    score: float = 0.0
    """The sum of the rewards."""


class GameEnvironment(Environment[GameAction, GameObservation, GameState]):
    """One session; `devices` are shared by all sessions."""

    SUPPORTS_CONCURRENT_SESSIONS: ClassVar[bool] = True
    REQUIRES_SINGLE_THREAD_EXECUTOR: ClassVar[bool] = True  # a thread per session otherwise

    def __init__(self, devices: Mapping[str, Device], max_steps: int = EPISODE_STEPS) -> None:
        super().__init__()
        self._devices, self._max_steps = devices, max_steps
        self._state = GameState()
        self._seen: Seen | None = None

    async def reset_async(
        self, seed: int | None = None, episode_id: str | None = None, game: str | None = None, **_: Any
    ) -> GameObservation:
        """Starts an episode; `game` is needed once if the server has several. Without a seed it is random.

        Raises:
            InputError: the game is unknown, or the seed out of range.
        """
        name = game or self._state.game or next(iter(self._devices))
        InputError.require(name in self._devices, unknown("game", name, self._devices))
        seed = uuid.uuid4().int % 2**32 if seed is None else seed
        seen = await asyncio.wrap_future(self._devices[name].reset(seed))
        self._state = GameState(episode_id=episode_id or str(uuid.uuid4()), game=name, seed=seed)
        self._seen = seen
        return await self._observation(seen)

    async def step_async(self, action: GameAction, timeout_s: float | None = None, **_: Any) -> GameObservation:
        """Takes a move, or tries candidates.

        Raises:
            InputError: there is no episode, or it is over.
        """
        InputError.require(self._seen is not None, "reset first: the session has no episode")
        assert self._seen is not None
        InputError.require(not self._is_over(self._seen), "reset first: the episode is over")
        device, before = self._devices[self._state.game], self._seen
        take = functools.partial(device.step, before.state, seed=self._state.seed, number=self._state.step_count)
        if action.candidates:
            tried = await asyncio.gather(*(asyncio.wrap_future(take(response)) for response in action.candidates))
            observation = await self._observation(before)
            fields = ("reward", "is_legal", "terminated", "board")
            outcomes = [{field: getattr(one, field) for field in fields} for one in tried]
            return observation.model_copy(update={"candidates": outcomes})
        move = action.action if action.response is None else action.response
        assert move is not None
        self._seen = await asyncio.wrap_future(take(move))
        self._state.step_count += 1
        self._state.score += self._seen.reward
        observation = await self._observation(self._seen)
        result = {"reward": self._seen.reward, "is_legal": self._seen.is_legal}
        return observation.model_copy(update=result)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **settings: Any) -> GameObservation:
        """`reset_async`, for synchronous callers, also in a notebook."""
        return run(self.reset_async(seed, episode_id, **settings))

    def step(self, action: GameAction, timeout_s: float | None = None, **_: Any) -> GameObservation:
        """`step_async`, for synchronous callers, also in a notebook."""
        return run(self.step_async(action))

    @property
    def state(self) -> GameState:
        """A copy of where the session stands."""
        return self._state.model_copy()

    def get_metadata(self) -> EnvironmentMetadata:
        """The names of the games."""
        return EnvironmentMetadata(name="g1jax", description=f"Visual games: {', '.join(self._devices)}")

    def _is_over(self, seen: Seen) -> bool:
        return seen.terminated or self._state.step_count >= self._max_steps

    async def _observation(self, seen: Seen) -> GameObservation:
        game = self._devices[self._state.game].game
        png = await asyncio.to_thread(seen.png)
        return GameObservation(
            game=game.id,
            prompt=game.prompt,
            image=base64.b64encode(png).decode(),
            board=seen.board,
            legal_actions=list(seen.legal_actions),
            num_actions=game.num_actions,
            truncated=not seen.terminated and self._is_over(seen),
            done=self._is_over(seen),
        )


class GameClient(EnvClient[GameAction, GameObservation, GameState]):
    """A session on a server, by WebSocket: `await client.reset(game=…)`, or `client.sync()` for synchronous code."""

    def _step_payload(self, action: GameAction) -> dict[str, Any]:
        return action.model_dump(exclude_defaults=True)

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[GameObservation]:
        reward, done = payload.get("reward"), bool(payload.get("done"))
        observation = GameObservation(**payload["observation"], reward=reward, done=done)
        return StepResult(observation=observation, reward=reward, done=done, metadata=payload.get("metadata"))

    def _parse_state(self, payload: dict[str, Any]) -> GameState:
        return GameState(**payload)


def make_app(games: Mapping[str, Game[Any]], *, max_sessions: int = 1024, max_steps: int = EPISODE_STEPS) -> FastAPI:
    """An ASGI app that serves these games, by name; the first is the default.

    Args:
        games: by the names that clients give to `reset`.
        max_sessions: clients at once; one more gets an error.
        max_steps: an episode is truncated after this many steps.
    """
    devices = {name: Device(game) for name, game in games.items()}
    for device in devices.values():
        device.compile()
    environment = functools.partial(GameEnvironment, devices, max_steps)
    return create_fastapi_app(
        environment,
        GameAction,
        GameObservation,
        max_concurrent_envs=max_sessions,
        env_name="g1jax",
        state_cls=GameState,
    )
