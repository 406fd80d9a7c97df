"""A teacher behind an OpenAI-compatible endpoint: it is shown a picture and the true board, and replies in text."""

import asyncio
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from g1jax.endpoint import event_loop
from g1jax.endpoint.client import Client, Endpoint
from g1jax.endpoint.exchanges import ExchangeLog, Inquiry
from g1jax.envs.core import Game, describe_level
from g1jax.envs.response import ANSWER, TAGS, THINK, tagged
from g1jax.errors import EvaluationError
from g1jax.files import file_name
from g1jax.teachers.core import Reply, Respond, StateBatch

IMAGE_PLACEHOLDER = "<image>"
"""Stands for the picture in a dataset's messages; a reply may not contain it."""
_NAMES = "|".join(tag.strip("<>") for tag in TAGS[::2])
_TAG = re.compile(rf"</?({_NAMES})>|<\|[^<|>]*\|>")  # or a special token, of whichever tokenizer
_FORMAT = "\n".join(
    (
        "You teach somebody who will be trained on your reply. Choose a move that earns a reward at once, and reply in "
        "two parts, each in its tags.",
        tagged(THINK, "a few short sentences: which tiles matter, where they are, why this move"),
        tagged(ANSWER, "the move"),
        "Write only what is true on the board. Name tiles as the board below does, and places as (row, column), "
        "counted from 0 at the top left. Your pupil sees the picture alone, so do not mention the text of the board.",
    )
)


def ask_endpoint(
    games: Mapping[str, Game[Any]],
    batches: Callable[[Game[Any]], Iterable[StateBatch]],
    num_states: int,
    setting: Mapping[str, Any],
    endpoint: Endpoint,
    folder: Path,
    on_progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> dict[str, Respond]:
    """Asks about every state of every game; gives the teachers, by the games' labels. Also where a loop runs.

    Every exchange is appended to a file of `folder` at once, one file a label, and what is there is not asked again.

    Args:
        games: by label.
        batches: the states of a game, `num_states` in all.
        num_states: for the progress.
        setting: what decides the states, which the files note.
        endpoint: the server and its limits.
        folder: for the exchanges.
        on_progress: called with a label, the replies so far and `num_states`.

    Raises:
        EvaluationError: the endpoint is down, refuses the key or does not answer, or a cap is reached (call it again to
            resume); or the exchanges are of another setting.
    """
    client = Client(endpoint)

    async def ask() -> dict[str, Respond]:
        try:
            return {
                label: functools.partial(
                    _replies_of,
                    await _ask_about(label, game, batches(game), num_states, setting, client, folder, on_progress),
                )
                for label, game in games.items()
            }
        finally:
            await client.close()

    return event_loop.run(ask())


def prompt_of(game: Game[Any], board: str) -> str:
    """What an endpoint is asked beside the picture: the rules, the form of a reply, the true board."""
    rules = type(game)(replace(game.level, prompt=game.default_prompt.replace("{format}", _FORMAT)))
    return f"{rules.prompt}\n\nThe board in the picture:\n{board}"


async def _ask_about(
    label: str,
    game: Game[Any],
    batches: Iterable[StateBatch],
    num_states: int,
    setting: Mapping[str, Any],
    client: Client,
    folder: Path,
    on_progress: Callable[[str, int, int], None],
) -> dict[tuple[int, int], dict[str, Any]]:
    """The log's line for every state of a game, by (environment, step)."""
    rules = prompt_of(game, "")
    about = {"game": game.id, "level": describe_level(game), "prompt": rules}
    lines: dict[tuple[int, int], dict[str, Any]] = {}
    waiting = ((batch, i) for batch in batches for i in range(len(batch.boards)))
    file = folder / f"{file_name(label)}.jsonl"
    with ExchangeLog(file, {**client.endpoint.setting(), **setting, **about}) as log:
        inquiry = Inquiry(client, log)

        async def work() -> None:
            for batch, i in waiting:
                place, board = (i, batch.step), batch.boards[i]
                line = await inquiry.line(place, board, rules + board, functools.partial(np.asarray, batch.frames[i]))
                if line is None:
                    return
                lines[place] = line
                on_progress(label, len(lines), num_states)

        await asyncio.gather(*(work() for _ in range(min(client.endpoint.concurrency, num_states))))
    if inquiry.problem:
        done = f"{len(lines)} of {num_states} states of {label} are done"
        raise EvaluationError(f"{inquiry.problem}. {done}; run it again to resume.")
    return lines


def _replies_of(lines: dict[tuple[int, int], dict[str, Any]], batch: StateBatch) -> Sequence[Reply]:
    return [reply_of(lines[i, batch.step]) for i in range(len(batch.boards))]


def reply_of(line: Mapping[str, Any]) -> Reply:
    """The reply in an exchange: the reasoning, and the first answer after it.

    A server may give the reasoning apart from the response, or cut the reasoning's opening tag off.
    """
    if "gave_up" in line:
        return Reply(problem="not answered")
    response: str = line["response"]
    before, closing, rest = response.partition(f"</{THINK}>")
    if closing:
        rationale = before.rpartition(f"<{THINK}>")[2]
    else:
        rationale, rest = line.get("reasoning", ""), response
    rationale = rationale.strip().encode("utf-8", "replace").decode()
    opening, closing = f"<{ANSWER}>", f"</{ANSWER}>"
    start = rest.find(opening)
    end = rest.find(closing, start)
    if not rationale or _TAG.search(rationale) or IMAGE_PLACEHOLDER in rationale or "\0" in rationale:
        return Reply(problem="without reasoning")
    if start < 0 or end < 0:
        return Reply(problem="without a move")
    return Reply(rationale, rest[start : end + len(closing)])
