"""A teacher behind an OpenAI-compatible endpoint: it gets the frame and the true board, and replies in text."""

import asyncio
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
"""The placeholder for the frame in a dataset's messages; not allowed in replies."""
_NAMES = "|".join(tag.strip("<>") for tag in TAGS[::2])
_TAG = re.compile(rf"</?({_NAMES})>|<\|[^<|>]*\|>")  # or any tokenizer's special token
_FORMAT = "\n".join(
    (
        "You are a teacher, and a student will be trained on your reply. Choose a move that earns a reward "
        "immediately, and reply in two parts, each inside its tags.",
        tagged(THINK, "a few short sentences: which tiles matter, where they are, and why this move"),
        tagged(ANSWER, "the move"),
        "Write only what is true of the board. Name tiles as the board text below does, and give positions as (row, "
        "column), counted from 0 at the top left. The student sees only the picture, so do not mention the board text.",
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
    """Asks about every state of every game; returns the teachers, by label. Also works inside a running event loop.

    Every exchange is logged at once, in one file per label in `folder`. Logged states are not asked again.

    Args:
        games: the games, by label.
        batches: the states of a game, `num_states` in all.
        num_states: states of each game.
        setting: what determines the states; recorded in the log.
        endpoint: the server and its limits.
        folder: for the exchanges.
        on_progress: called with a label, the number of replies and `num_states`.

    Raises:
        EvaluationError: the endpoint is down, refuses the key or does not answer, or a cap is reached (call again to
            resume); or the log has another setting.
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
    """The prompt sent with the frame: the rules, the format of a reply, the true board."""
    rules = game.fill_prompt(game.default_prompt.replace("{format}", _FORMAT))
    return f"{rules}\n\nThe board in the picture:\n{board}"


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
    header = {**client.endpoint.setting(), **setting}
    header |= {"game": game.id, "level": describe_level(game), "prompt": rules}
    lines: dict[tuple[int, int], dict[str, Any]] = {}
    pending = ((batch, i) for batch in batches for i in range(len(batch.boards)))
    file = folder / f"{file_name(label)}.jsonl"
    with ExchangeLog(file, header) as log:
        inquiry = Inquiry(client, log)

        async def work() -> None:
            for batch, i in pending:
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

    A server may return the reasoning separately from the response, or drop its opening tag.
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
