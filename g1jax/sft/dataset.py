"""Demonstrations on disk, in the chat format that TRL and LLaMA-Factory also read.

A dataset is a folder with `data.jsonl` and `images/`, or with `data.parquet`, which includes the images. A row has

    messages  [{"role": "user", "content": "<image>" + the prompt}, {"role": "assistant", "content": the response}]
    images    a list of one: a path relative to the folder, or in parquet {"bytes", "path"}
    game, board, action, reward, level   the state and the move; the level is JSON

The cold start reads `game`, `messages` and `images`; a run uses its own prompts.
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from g1jax import envs
from g1jax.envs import text
from g1jax.envs.core import Game
from g1jax.envs.response import PERCEPTION, has_tags_in_order
from g1jax.errors import ExperimentError, unknown
from g1jax.rl.policy import Policy
from g1jax.sft import dataset_parquet
from g1jax.sft.batch import tokenize
from g1jax.teachers.endpoint import IMAGE_PLACEHOLDER
from g1jax.typing import HostImages
from g1jax.untrusted import file_inside, read_json_lines
from g1jax.untrusted_images import open_image
from g1jax.vlm import ConfigError

JSONL, PARQUET, IMAGES = "data.jsonl", "data.parquet", "images"
_MAX_LINE = 4 * 2**20  # bytes; a row is a few thousand

Record = dict[str, Any]
"""A row as parsed JSON."""


@dataclass(frozen=True)
class Example:
    """A demonstration, with its game, level and state."""

    game: str
    level: str  # JSON
    prompt: str
    board: str
    response: str
    action: int
    reward: float
    frame: HostImages  # uint8[H, W, 3]

    def record(self, image: str) -> Record:
        """As a line of `data.jsonl`; `image` is the name of its image file."""
        messages = [("user", IMAGE_PLACEHOLDER + self.prompt), ("assistant", self.response)]
        return {
            "messages": [{"role": role, "content": content} for role, content in messages],
            "images": [image],
            "game": self.game,
            "board": self.board,
            "action": self.action,
            "reward": self.reward,
            "level": self.level,
        }


@dataclass(frozen=True, eq=False)
class Dataset:
    """The demonstrations of one game. Images are decoded when a batch needs them."""

    game: Game[Any]
    places: list[str]  # file and line of each row, for messages
    responses: list[str]
    images: list[Path | bytes]

    def __len__(self) -> int:
        return len(self.responses)

    def batch(self, policy: Policy, seed: int, step: int, count: int) -> dict[str, np.ndarray]:
        """The demonstrations of a step: the fields of an `SFTBatch`, on the host."""
        rows = rows_of_step(seed, self.game.id, len(self), step, count)
        frames = np.stack([_frame(self.images[i], self.places[i], self.game.frame_shape) for i in rows])
        responses = [self.responses[i] for i in rows]
        tokens, mask, is_perception = tokenize(policy, self.game, responses)
        batch = {"frames": frames, "tokens": tokens, "mask": mask, "is_perception": is_perception}
        if policy.observation.caption:
            batch["boards"] = np.stack([_board(self.game, response) for response in responses])
        return batch


def rows_of_step(seed: int, game_id: str, num_rows: int, step: int, count: int) -> np.ndarray:
    """The rows of a game that a step trains on, int[count]; every epoch shuffles all rows.

    Depends on the arguments alone, so a resumed run reads the same rows.
    """
    positions = np.arange(step * count, (step + 1) * count)
    epochs = positions // num_rows
    rows = [
        np.random.default_rng((seed % 2**32, zlib.crc32(game_id.encode()), epoch)).permutation(num_rows)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
    ]
    return np.concatenate(rows)[positions - epochs[0] * num_rows]


def read_dataset(folder: Path, games: Sequence[Game[Any]], policy: Policy) -> tuple[Dataset, ...]:
    """The demonstrations of each game; rows of other games are skipped.

    Raises:
        ExperimentError: there is no dataset, or a row does not fit these games or this policy; the message names it.
    """
    found: dict[str, list[tuple[str, str, Path | bytes]]] = {game.id: [] for game in games}
    shapes = {game.id: game.frame_shape for game in games}
    known = envs.game_ids()
    for place, record in _records(folder):
        game_id = record.get("game")
        ExperimentError.require(game_id in known, f"{place}: {unknown('game', game_id, known)}")
        if game_id in found:
            response, image = _response(record, place), _image(record, place, folder)
            _check_image(image, place, shapes[game_id])
            found[game_id].append((place, response, image))
    datasets = []
    for game in games:
        rows = found[game.id]
        ExperimentError.require(
            len(rows) > 0, f"{folder}: no row of {game.id}: leave the game out, or make a dataset that has it"
        )
        places, responses, images = map(list, zip(*rows, strict=True))
        datasets.append(Dataset(game, places, responses, images))
    _check_lengths(datasets, policy)
    if policy.observation.caption:
        for dataset in datasets:
            _check_boards(dataset)
    return tuple(datasets)


# Parsing rows


def _records(folder: Path) -> Iterator[tuple[str, Record]]:
    """Every row, with its file and line."""
    ExperimentError.require(folder.is_dir(), f"cold_start.dataset={str(folder)!r}: no such folder")
    files = [folder / name for name in (JSONL, PARQUET) if (folder / name).is_file()]
    ExperimentError.require(len(files) > 0, f"{folder} is not a dataset: it has neither {JSONL} nor {PARQUET}")
    ExperimentError.require(len(files) == 1, f"{folder} has both {JSONL} and {PARQUET}: remove one")
    file = files[0]
    if file.name == PARQUET:
        for number, record in enumerate(dataset_parquet.read(file, ("game", "messages", "images"))):
            yield f"{file}, row {number}", record
        return
    for number, record in read_json_lines(file, max_line_bytes=_MAX_LINE, error=ExperimentError):
        place = f"{file}:{number}"
        ExperimentError.require(isinstance(record, dict), f"{place}: not an object but {type(record).__name__}")
        yield place, record


def _response(record: Record, place: str) -> str:
    """The assistant's text."""
    messages = record.get("messages")
    is_chat = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    turns = [(message.get("role"), message.get("content")) for message in messages] if is_chat and messages else []
    ExperimentError.require(
        [role for role, _ in turns] == ["user", "assistant"] and all(isinstance(content, str) for _, content in turns),
        f"{place}: messages must be one of the user and one of the assistant, each with a string as content",
    )
    prompt, response = (content for _, content in turns)
    count = prompt.count(IMAGE_PLACEHOLDER)
    ExperimentError.require(count == 1, f"{place}: the user's text has {IMAGE_PLACEHOLDER} {count} times, not once")
    ExperimentError.require(
        has_tags_in_order(response),
        f"{place}: the assistant's text is not <perception>…</perception><think>…</think><answer>…</answer>",
    )
    return str(response)


def _image(record: Record, place: str, folder: Path) -> Path | bytes:
    images = record.get("images")
    ExperimentError.require(isinstance(images, list) and len(images) == 1, f"{place}: images must be a list of one")
    image = images[0] if images else None
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    ExperimentError.require(isinstance(image, str | bytes), f"{place}: its image is neither a path nor bytes")
    return image if isinstance(image, bytes) else file_inside(folder, str(image), place, ExperimentError)


def _check_image(image: Path | bytes, place: str, shape: tuple[int, int, int]) -> None:
    """Refuses an image that is damaged or of another size, which would stop a run later."""
    with _opened(image, place, shape) as picture:
        picture.verify()


def _frame(image: Path | bytes, place: str, shape: tuple[int, int, int]) -> HostImages:
    with _opened(image, place, shape) as picture:
        return np.asarray(picture.convert("RGB"))


@contextlib.contextmanager
def _opened(image: Path | bytes, place: str, shape: tuple[int, int, int]) -> Iterator[Image.Image]:
    """An image of a frame's size, not yet decoded."""
    height, width, _ = shape
    with open_image(image, place, error=ExperimentError) as picture:
        ExperimentError.require(
            picture.size == (width, height),
            f"{place}: an image of {picture.width}×{picture.height} pixels, but the game's frames have "
            f"{width}×{height}: make the dataset at the level of the run",
        )
        yield picture


def _board(game: Game[Any], response: str) -> np.ndarray:
    """The board text that a demonstration's perception is, uint8[L]; one that is too long is truncated."""
    start = response.find(f"<{PERCEPTION}>") + len(PERCEPTION) + 2
    board = response[start : response.find(f"</{PERCEPTION}>", start)].strip().encode()
    length = game.board_text.length
    return text.encode(board[:length], length)


def _check_boards(dataset: Dataset) -> None:
    """Refuses perceptions that are no boards, since captions show them."""
    boards = np.stack([_board(dataset.game, response) for response in dataset.responses])
    kinds = np.asarray(jax.jit(jax.vmap(dataset.game.read_board))(boards))
    for place, board in zip(dataset.places, kinds, strict=True):
        ExperimentError.require(
            bool((board >= 0).all()),
            f"{place}: its perception is not a board of {dataset.game.id}, which a caption would show: leave the row "
            "out, or train without captions",
        )


def _check_lengths(datasets: Sequence[Dataset], policy: Policy) -> None:
    try:
        lines = [policy.tokenizer.encode_batch(dataset.responses, dataset.places) for dataset in datasets]
    except ConfigError as error:
        raise ExperimentError(str(error)) from None
    lengths = [np.array([len(tokens) + 1 for tokens in of_game]) for of_game in lines]  # + end token
    longest = max(int(of_game.max()) for of_game in lengths)
    for dataset, of_game in zip(datasets, lengths, strict=True):
        limit, row = policy.max_new_tokens(dataset.game), int(of_game.argmax())
        ExperimentError.require(
            bool(of_game[row] <= limit),
            f"{dataset.places[row]}: a response of {of_game[row]} tokens, but {dataset.game.id} allows {limit}: "
            f"give --max-new-tokens={longest}, or leave the row out",
        )
