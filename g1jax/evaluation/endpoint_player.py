"""Plays a game through an endpoint: the same boards and random keys as for any other player, one request a step.

Every exchange is logged immediately. An interrupted run replays the logged responses and resumes from there, without
repeating a request.
"""

import asyncio
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from g1jax.endpoint import event_loop
from g1jax.endpoint.client import Budget, Client, Endpoint
from g1jax.endpoint.exchanges import ExchangeLog, Inquiry
from g1jax.envs import text
from g1jax.envs.batch import EPISODE_STEPS
from g1jax.envs.core import Game, describe_level
from g1jax.errors import EvaluationError
from g1jax.evaluation.protocol import (
    Answers,
    Boards,
    Episodes,
    Judged,
    Progress,
    Recorded,
    check_protocol,
    no_boards,
    renew,
    take_step,
)
from g1jax.rl.observation import CAPTION, PICTURE, Observation, about
from g1jax.rl.prompts import prompt_of
from g1jax.typing import Array, Pytree

_SHORTEST_RESPONSE, _LONGEST_RESPONSE = 2**10, 2**16  # padded length in bytes; the log has the whole response


def play_remote(
    game: Game[Any],
    endpoint: Endpoint,
    log_file: Path,
    num_episodes: int,
    num_steps: int = EPISODE_STEPS,
    seed: int = 0,
    *,
    prompt: str = "",
    observation: Observation = PICTURE,
    num_recorded: int = 0,
    on_progress: Progress | None = None,
    budget: Budget | None = None,
) -> Episodes:
    """Plays `num_episodes` episodes like `play`. Also works inside a running event loop, as in a notebook.

    `prompt` replaces the game's default. A `budget` may be shared by several calls; without one, the endpoint's caps
    hold for this call.

    Raises:
        EvaluationError: The endpoint is down, rejects the key or does not answer, or a cap is reached; call again to
            resume. Or the log belongs to another evaluation.
    """
    check_protocol(num_episodes, num_steps, seed)
    client = Client(endpoint, budget)
    prompt = prompt or prompt_of((), game, observation)
    setting = {"seed": seed, "game": game.id, "level": describe_level(game), "prompt": prompt, **about(observation)}
    with ExchangeLog(log_file, {**endpoint.setting(), **setting}) as log:
        run = _Run(game, client, log, num_steps, seed, prompt, observation, on_progress)
        episodes = event_loop.run(run.play(num_episodes))
    steps = _stack([_stack([step.judged for step in episode]) for episode in episodes])
    if np.any(steps.num_tokens < 0):  # the endpoint does not report them
        steps = dataclasses.replace(steps, num_tokens=None)
    return Episodes(game, seed, steps, _recorded(episodes[:num_recorded]) if num_recorded else None)


@dataclass(frozen=True, eq=False)
class _Step:
    state: Pytree  # as shown
    response: str
    action: int
    judged: Judged


class _Run:
    """The episodes of one game, as many at a time as the endpoint's concurrency allows."""

    def __init__(
        self,
        game: Game[Any],
        client: Client,
        log: ExchangeLog,
        num_steps: int,
        seed: int,
        prompt: str,
        observation: Observation,
        on_progress: Progress | None,
    ) -> None:
        self.game, self.inquiry = game, Inquiry(client, log)
        self.num_steps, self.seed, self.on_progress = num_steps, seed, on_progress
        self.prompt, self.observation = prompt, observation
        self.num_done = self.num_total = 0

    async def play(self, num_episodes: int) -> list[list[_Step]]:
        """All steps of all episodes."""
        self.num_total = num_episodes * self.num_steps
        self._compile()
        episodes: list[list[_Step]] = [[] for _ in range(num_episodes)]
        pending = iter(range(num_episodes))
        client = self.inquiry.client
        workers = [self._work(pending, episodes) for _ in range(min(client.endpoint.concurrency, num_episodes))]
        try:
            await asyncio.gather(*workers)
        finally:
            await client.close()
        if self.inquiry.problem:
            done = f"{self.num_done} of {self.num_total} steps of {self.game.id} are done"
            raise EvaluationError(f"{self.inquiry.problem}. {done}; run it again to resume.")
        return episodes

    def _compile(self) -> None:
        """Compiles before the first request: compiling blocks the event loop, which would count as response time."""
        boards, _ = _renew_and_describe(self.game, no_boards(self.game, self.seed, np.zeros(1, np.uint32)))
        _render(self.game, boards.states)
        jax.block_until_ready(_step(self.game, boards, _as_bytes(""), np.zeros(1, np.int32), np.uint32(0)))

    async def _work(self, pending: Iterator[int], episodes: list[list[_Step]]) -> None:
        """Plays one episode after another. When the run stops, requests in flight are still completed."""
        for episode in pending:
            boards = no_boards(self.game, self.seed, np.array([episode], np.uint32))
            for step in range(self.num_steps):
                boards, board = _renew_and_describe(self.game, boards)
                shown = text.decode(board[0])
                prompt = self.prompt + CAPTION + shown if self.observation.caption else self.prompt
                draw = functools.partial(self._frame_of, boards) if self.observation.picture else None
                line = await self.inquiry.line((episode, step), shown, prompt, draw)
                if line is None:
                    return
                num_tokens = np.array([line.get("completion_tokens", -1)], np.int32)
                after, action, judged = _step(
                    self.game, boards, _as_bytes(line["response"]), num_tokens, np.uint32(step)
                )
                state, judged = jax.device_get(jax.tree.map(lambda leaf: leaf[0], (boards.states, judged)))
                episodes[episode].append(_Step(state, line["response"], int(action[0]), judged))
                boards = after
                self.num_done += 1
                if self.on_progress:
                    self.on_progress(self.num_done, self.num_total)

    def _frame_of(self, boards: Boards) -> np.ndarray:
        return np.asarray(_render(self.game, boards.states)[0])


def _as_bytes(response: str) -> np.ndarray:
    """uint8[1, N]; N is a power of two, so that few shapes are compiled."""
    raw = response.encode("utf-8", "surrogatepass")[:_LONGEST_RESPONSE]
    return text.encode(raw, max(_SHORTEST_RESPONSE, 1 << max(len(raw) - 1, 0).bit_length()))[None]


@functools.partial(jax.jit, static_argnums=0)
def _renew_and_describe(game: Game[Any], boards: Boards) -> tuple[Boards, Array]:
    boards = renew(game, boards)
    return boards, jax.vmap(game.describe)(boards.states)


@functools.partial(jax.jit, static_argnums=0)
def _render(game: Game[Any], states: Pytree) -> Array:
    return jax.vmap(game.render)(states)


@functools.partial(jax.jit, static_argnums=0)
def _step(
    game: Game[Any], boards: Boards, response: Array, num_tokens: Array, step: Array
) -> tuple[Boards, Array, Judged]:
    actions = jax.vmap(game.parse)(response)
    after, judged = take_step(game, boards, Answers(actions, response, num_tokens), step)
    return after, actions, judged


def _stack(trees: Sequence[Pytree]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _recorded(episodes: Sequence[Sequence[_Step]]) -> Recorded:
    states = _stack([_stack([step.state for step in episode]) for episode in episodes])
    actions = np.array([[step.action for step in episode] for episode in episodes], np.int32)
    return Recorded(states, actions, [[step.response for step in episode] for episode in episodes])
