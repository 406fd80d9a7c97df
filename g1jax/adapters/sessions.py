"""Many independent sessions of one game, computed together on the device.

A session keeps its own state on the host, so sessions share nothing. One thread runs the device: whatever requests have
arrived when it is free become its next batch, padded to one of a few sizes so that few programs are compiled.
"""

import dataclasses
import functools
import io
import queue
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int32, UInt8, UInt32
from PIL import Image

from g1jax.envs import text
from g1jax.envs.core import Game, StepResult
from g1jax.envs.response import ANSWER
from g1jax.errors import InputError
from g1jax.typing import Array, Pytree

_SIZES = (1, 8, 64, 256)  # of a batch
_ANSWER_BYTES = 256  # a longer answer is parsed by itself
_OPEN, _CLOSE = f"<{ANSWER}>", f"</{ANSWER}>"


@dataclasses.dataclass(frozen=True)
class Seen:
    """A state as it is shown to a player, on the host, and the result of the step that led to it."""

    state: Pytree  # leaves np.ndarray
    frame: UInt8[np.ndarray, "H W 3"]
    board: str
    legal_actions: tuple[int, ...]
    reward: float = 0.0
    is_legal: bool = True
    terminated: bool = False

    def png(self) -> bytes:
        """The frame as a PNG file."""
        file = io.BytesIO()
        Image.fromarray(self.frame).save(file, "PNG", compress_level=1)
        return file.getvalue()


@dataclasses.dataclass(frozen=True)
class _Request:
    future: "Future[Seen]"
    seed: int
    state: Pytree = None  # None: reset
    action: int | str = 0  # a string is a response to be parsed
    number: int = 0  # of the step in its episode


class Device:
    """Computes resets and steps of one game for any number of sessions and threads.

    >>> from g1jax import envs
    >>> device = Device(envs.make("swap"))
    >>> first = device.reset(seed=1).result()
    >>> after = device.step(first.state, "<answer>(0, 0) (0, 1)</answer>", seed=1, number=0).result()
    >>> device.close()
    """

    def __init__(self, game: Game[Any]) -> None:
        self.game = game
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name=f"g1jax {game.id}", daemon=True)
        self._thread.start()

    def compile(self) -> None:
        """Compiles the programs of all batch sizes, so that no session waits for it."""
        for size in _SIZES:
            requests = [_Request(Future(), 0)] * size
            seen = _reset(self.game, requests)
            _step(self.game, [dataclasses.replace(requests[0], state=one.state) for one in seen])

    def reset(self, seed: int) -> "Future[Seen]":
        """The first state of the episode of a seed, 0 to 2**32 - 1. Equal seeds give equal boards.

        Raises:
            InputError: the seed is out of range.
        """
        return self._ask(_Request(Future(), _checked(seed)))

    def step(self, state: Pytree, action: int | str, *, seed: int, number: int) -> "Future[Seen]":
        """The state after an action, or after the action in a response; `number` steps of the episode came before.

        The episode's seed and `number` determine what is random in the step, so actions tried from one state differ in
        nothing else.

        Raises:
            InputError: the seed is out of range.
        """
        if isinstance(action, str):
            action = _answer_of(self.game, action)
        elif not 0 <= action < self.game.num_actions:
            action = self.game.invalid_action
        return self._ask(_Request(Future(), _checked(seed), state, action, number))

    def close(self) -> None:
        """Ends the thread; requests that still wait are canceled."""
        self._is_closed = True
        self._requests.put(None)
        self._thread.join()

    def _ask(self, request: _Request) -> "Future[Seen]":
        InputError.require(not self._is_closed, f"{self.game.id}: the device is closed")
        self._requests.put(request)
        return request.future

    def _work(self) -> None:
        while not self._is_closed:
            batch = [self._requests.get(), *_waiting(self._requests, _SIZES[-1] - 1)]
            requests = [one for one in batch if one is not None and one.future.set_running_or_notify_cancel()]
            for of_kind, run in (
                ([one for one in requests if one.state is None], _reset),
                ([one for one in requests if one.state is not None], _step),
            ):
                if of_kind:
                    _answer(self.game, of_kind, run)
        for request in _waiting(self._requests, None):
            if request is not None:
                request.future.cancel()


def _waiting(requests: "queue.SimpleQueue[Any]", most: int | None) -> list[Any]:
    """Up to `most` of the requests that wait now."""
    found: list[Any] = []
    try:
        while most is None or len(found) < most:
            found.append(requests.get_nowait())
    except queue.Empty:
        pass
    return found


def _answer(game: Game[Any], requests: list[_Request], run: Any) -> None:
    """Computes a batch and completes its futures; an error goes to all of them, and later batches are unaffected."""
    try:
        seen = run(game, requests)
    except Exception as error:
        for request in requests:
            request.future.set_exception(error)
        return
    for request, one in zip(requests, seen, strict=True):
        request.future.set_result(one)


def _reset(game: Game[Any], requests: list[_Request]) -> list[Seen]:
    padded = _padded(requests)
    return _on_host(game, _first(game, _uint32(one.seed for one in padded)), len(requests))


def _step(game: Game[Any], requests: list[_Request]) -> list[Seen]:
    padded = _padded(requests)
    states = jax.tree.map(lambda *leaves: np.stack(leaves), *(one.state for one in padded))
    numbers = [one.action if isinstance(one.action, int) else -2 for one in padded]  # -2: parse the response
    responses = np.zeros((len(padded), _ANSWER_BYTES), np.uint8)
    for row, one in zip(responses, padded, strict=True):
        if isinstance(one.action, str):
            row[:] = text.encode(one.action, _ANSWER_BYTES)
    seeds, steps = _uint32(one.seed for one in padded), _uint32(one.number for one in padded)
    return _on_host(game, _next(game, states, np.array(numbers, np.int32), responses, seeds, steps), len(requests))


def _padded(requests: list[_Request]) -> list[_Request]:
    """The requests, the last one repeated up to a size that is compiled."""
    size = next(size for size in _SIZES if size >= len(requests))
    return requests + [requests[-1]] * (size - len(requests))


def _uint32(numbers: Iterable[int]) -> UInt32[np.ndarray, "B"]:
    return np.array(list(numbers), np.uint32)


@functools.partial(jax.jit, static_argnums=0)
def _first(game: Game[Any], seeds: UInt32[Array, "B"]) -> tuple[Pytree, Any, Array, Array, Array]:
    """The first states of the episodes of these seeds, and how they are shown."""
    states = jax.vmap(lambda seed: game.reset(jax.random.key(seed)))(seeds)
    zeros = jnp.zeros(seeds.shape, jnp.float32)
    result = StepResult(zeros, states.terminated, zeros > 0, zeros == 0)
    return states, result, *_shown(game, states)


@functools.partial(jax.jit, static_argnums=0)
def _next(
    game: Game[Any],
    states: Pytree,
    actions: Int32[Array, "B"],
    responses: UInt8[Array, "B N"],
    seeds: UInt32[Array, "B"],
    numbers: UInt32[Array, "B"],
) -> tuple[Pytree, Any, Array, Array, Array]:
    """The next states, the results of the steps, and how the states are shown."""
    actions = jnp.where(actions == -2, jax.vmap(game.parse)(responses), actions)
    keys = jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(seeds, numbers)
    states, result = jax.vmap(game.step)(states, actions, keys)
    return states, result, *_shown(game, states)


def _shown(game: Game[Any], states: Pytree) -> tuple[UInt8[Array, "B H W 3"], UInt8[Array, "B L"], Bool[Array, "B A"]]:
    """Frames, board texts and legal actions."""
    return jax.vmap(game.render)(states), jax.vmap(game.describe)(states), jax.vmap(game.legal_actions)(states)


def _on_host(game: Game[Any], shown: Any, count: int) -> list[Seen]:
    """The first rows of a batch, each by itself."""
    states, result, frames, texts, legal = jax.device_get(shown)
    return [
        Seen(
            state=jax.tree.map(lambda leaf, i=i: leaf[i].copy(), states),
            frame=frames[i].copy(),
            board=text.decode(texts[i]),
            legal_actions=tuple(np.flatnonzero(legal[i]).tolist()),
            reward=float(result.reward[i]),
            is_legal=bool(result.is_legal[i]),
            terminated=bool(result.terminated[i]),
        )
        for i in range(count)
    ]


def _answer_of(game: Game[Any], response: str) -> int | str:
    """The part of a response that `Game.parse` reads, or the action in it if that is long."""
    start = response.find(_OPEN)
    end = response.find(_CLOSE, start)
    if start < 0 or end < 0:
        return game.invalid_action
    answer = response[start : end + len(_CLOSE)]
    return answer if len(answer.encode("utf-8", "surrogatepass")) <= _ANSWER_BYTES else int(game.parse(response))


def _checked(seed: int) -> int:
    InputError.require(0 <= seed < 2**32, f"seed={seed}: 0 to {2**32 - 1}")
    return seed
