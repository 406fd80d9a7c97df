"""Teachers whose lessons are kept: the built-in one, and any model behind an OpenAI-compatible endpoint.

Both are asked about the same states, drawn as the cold start draws them. An endpoint is given the picture and the true
board, and its lesson is kept only if the move earns a reward when it is played from that state.
"""

import asyncio
import functools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax import envs
from g1jax.endpoint import event_loop
from g1jax.endpoint.client import Client, Endpoint
from g1jax.endpoint.exchanges import ExchangeLog, Inquiry
from g1jax.envs import text
from g1jax.envs.core import Game, describe_level
from g1jax.envs.vector import EPISODE_STEPS, VecEnv, VecState
from g1jax.errors import EvaluationError
from g1jax.files import file_name
from g1jax.rl.policy import lesson_text
from g1jax.sft.dataset import PLACEHOLDER, Row
from g1jax.sft.demonstrations import Script, next_scripts
from g1jax.typing import Array, Key, Pytree

_MOST_ENVIRONMENTS = 16
_ANSWER_BYTES = 128  # of an answer that is read; longer ones are none
_TAG = re.compile(r"</?(perception|think|answer)>|<\|[^<|>]*\|>")  # or a special token, of whichever tokenizer
_FORMAT = (
    "You teach somebody who will learn your reply by heart. Choose a move that earns a reward at once, and reply in "
    "two parts, each in its tags.\n"
    "<think>a few short sentences: which tiles matter, where they are, why this move</think>\n"
    "<answer>the move</answer>\n"
    "Write only what is true on the board. Name tiles as the board below does, and places as (row, column), counted "
    "from 0 at the top left. Your pupil sees the picture alone, so do not mention the text of the board."
)


@dataclass(frozen=True)
class Draw:
    """Which states of a game are taught; all that decides them beside the game."""

    num_states: int
    seed: int = 0
    random_moves: float = 0.5
    """Share of moves between states that are random; the others are the built-in teacher's."""

    @property
    def num_envs(self) -> int:
        """Boards played side by side: fewer, and so longer play, where few states are asked for."""
        return min(_MOST_ENVIRONMENTS, int(np.ceil(np.sqrt(self.num_states))))


@dataclass(frozen=True, eq=False)
class Sights:
    """Some states that a teacher is shown: one step of all environments."""

    step: int
    count: int  # of the environments, those that are taught
    states: Pytree  # leaves [E, …]
    frames: np.ndarray  # uint8[E, H, W, 3]
    boards: list[str]
    script: Script  # what the built-in teacher says to them


@dataclass(frozen=True)
class Taught:
    """What a teacher says to one state; without an answer it says why not."""

    words: str = ""
    answer: str = ""
    problem: str = ""


Teach = Callable[[Sights], Sequence[Taught]]
"""A teacher: something to each of `count` states."""


def draw_sights(game: Game[Any], draw: Draw) -> Iterator[Sights]:
    """The states, step by step. The same for every teacher."""
    vec = _vec_of(game, draw.num_envs)
    begin_key, step_key, _ = _keys_of(game, draw.seed)
    states = _reset(vec, begin_key)
    for step in range(-(-draw.num_states // draw.num_envs)):
        (after,), (script,) = next_scripts((vec,), draw.random_moves, (states,), jax.random.fold_in(step_key, step))
        count = min(draw.num_envs, draw.num_states - step * draw.num_envs)
        boards = [text.decode(board) for board in np.asarray(script.boards)]
        yield Sights(step, count, states.games[0], np.asarray(script.frames), boards, script)
        states = after


def make_rows(game: Game[Any], draw: Draw, teach: Teach, *, only_rewarded: bool) -> Iterator[Row | str]:
    """A row for every state, or why it has none."""
    level = json.dumps(describe_level(game))
    for sights in draw_sights(game, draw):
        taught = teach(sights)
        said = [lesson.answer if len(lesson.answer.encode()) <= _ANSWER_BYTES else "" for lesson in taught]
        said += [""] * (draw.num_envs - sights.count)
        answers = np.stack([text.encode(answer, _ANSWER_BYTES) for answer in said])
        key = jax.random.fold_in(_keys_of(game, draw.seed)[2], sights.step)
        actions, rewards, written = jax.device_get(_execute(game, sights.states, answers, key))
        for i, lesson in enumerate(taught):
            action, reward = int(actions[i]), float(rewards[i])
            if lesson.problem:
                yield lesson.problem
            elif only_rewarded and action == game.invalid_action:
                yield "without a move"
            elif only_rewarded and not reward > 0:
                yield "without a reward"
            else:
                response = lesson_text(sights.boards[i], lesson.words, text.decode(written[i]))
                yield Row(game.id, level, game.prompt, sights.boards[i], response, action, reward, sights.frames[i])


def expert(sights: Sights) -> list[Taught]:
    """The built-in teacher."""
    columns = [np.asarray(column)[: sights.count] for column in (sights.script.words, sights.script.answers)]
    return [Taught(text.decode(words), text.decode(answer)) for words, answer in zip(*columns, strict=True)]


# An endpoint


def ask_endpoint(
    games: dict[str, Game[Any]],
    draw: Draw,
    endpoint: Endpoint,
    folder: Path,
    on_progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> dict[str, Teach]:
    """Asks about every state of every game; gives the teachers, by the games' labels. Also where a loop runs.

    Every exchange goes to `folder` at once, in one file a label, and what is there is not asked again.

    Raises:
        EvaluationError: the endpoint is down, refuses the key or does not answer, or a cap is reached; call it again
            to go on. The exchanges are of another setting.
    """
    client = Client(endpoint)

    async def ask() -> dict[str, Teach]:
        try:
            return {
                label: functools.partial(
                    _recite,
                    await _ask_about(label, game, draw, client, folder / f"{file_name(label)}.jsonl", on_progress),
                )
                for label, game in games.items()
            }
        finally:
            await client.close()

    return event_loop.run(ask())


def prompt_of(game: Game[Any], board: str) -> str:
    """What an endpoint is asked beside the picture: the rules, the form of a lesson, the true board."""
    rules = type(game)(replace(game.level, prompt=game.default_prompt.replace("{format}", _FORMAT)))
    return f"{rules.prompt}\n\nThe board in the picture:\n{board}"


async def _ask_about(
    label: str,
    game: Game[Any],
    draw: Draw,
    client: Client,
    file: Path,
    on_progress: Callable[[str, int, int], None],
) -> dict[tuple[int, int], dict[str, Any]]:
    """The log's line for every state of a game, by (environment, step)."""
    rules = prompt_of(game, "")
    setting = {"seed": draw.seed, "random_moves": draw.random_moves, "environments": draw.num_envs}
    about = {"game": game.id, "level": describe_level(game), "prompt": rules}
    lines: dict[tuple[int, int], dict[str, Any]] = {}
    waiting = ((sights, i) for sights in draw_sights(game, draw) for i in range(sights.count))
    with ExchangeLog(file, {**client.endpoint.setting(), **setting, **about}) as log:
        inquiry = Inquiry(client, log)

        async def work() -> None:
            for sights, i in waiting:
                place, board = (i, sights.step), sights.boards[i]
                line = await inquiry.line(place, board, rules + board, functools.partial(np.asarray, sights.frames[i]))
                if line is None:
                    return
                lines[place] = line
                on_progress(label, len(lines), draw.num_states)

        await asyncio.gather(*(work() for _ in range(min(client.endpoint.concurrency, draw.num_states))))
    if inquiry.problem:
        done = f"{len(lines)} of {draw.num_states} states of {label} are done"
        raise EvaluationError(f"{inquiry.problem}. {done}; run it again to go on.")
    return lines


def _recite(lines: dict[tuple[int, int], dict[str, Any]], sights: Sights) -> list[Taught]:
    return [lesson_of(lines[i, sights.step]) for i in range(sights.count)]


def lesson_of(line: dict[str, Any]) -> Taught:
    """The lesson in an exchange: the reasoning, and the first answer after it.

    A server may give the reasoning apart from the response, or cut the reasoning's opening tag off.
    """
    if "gave_up" in line:
        return Taught(problem="not answered")
    response: str = line["response"]
    before, closing, rest = response.partition("</think>")
    if closing:
        words = before.rpartition("<think>")[2]
    else:
        words, rest = line.get("reasoning", ""), response
    words = words.strip().encode("utf-8", "replace").decode()
    start = rest.find("<answer>")
    end = rest.find("</answer>", start)
    if not words or _TAG.search(words) or PLACEHOLDER in words or "\0" in words:
        return Taught(problem="without reasoning")
    if start < 0 or end < 0:
        return Taught(problem="without a move")
    return Taught(words, rest[start : end + len("</answer>")])


def count_reasons(reasons: Sequence[str]) -> str:
    """`3 without a reward, 1 not answered`."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())


# Its parts


@functools.lru_cache(maxsize=64)
def _vec_of(game: Game[Any], num_envs: int) -> VecEnv:
    """The same one each time: an endpoint's states are drawn twice, to ask and to write, and compiled once."""
    return envs.make_vec(game, num_envs, autoreset="same_step", max_steps=EPISODE_STEPS)


@functools.partial(jax.jit, static_argnums=0)
def _reset(vec: VecEnv, key: Key) -> VecState:
    return vec.reset(key)


@functools.partial(jax.jit, static_argnums=0)
def _execute(game: Game[Any], states: Pytree, answers: Array, key: Key) -> tuple[Array, Array, Array]:
    """What answers, uint8[E, A], ask for and earn: actions int32[E], rewards float32[E], the answers written anew."""
    actions = jax.vmap(game.parse)(answers)
    _, result = jax.vmap(game.step)(states, actions, jax.random.split(key, actions.shape[0]))
    return actions, jnp.asarray(result.reward), jax.vmap(game.write_action)(actions)


def _keys_of(game: Game[Any], seed: int) -> Key:
    """A game's own chance, whatever other games are taught: of its first states, of the steps, of the moves played."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), zlib.crc32(game.id.encode())), 3)
