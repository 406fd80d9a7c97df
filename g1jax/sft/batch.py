"""Demonstrations as tokens: the batch of a supervised step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from g1jax.envs import text
from g1jax.envs.core import Game
from g1jax.envs.response import PERCEPTION, compose
from g1jax.rl.policy import Policy
from g1jax.sft.demonstrations import Demonstrations
from g1jax.sft.fact_loss import Facts
from g1jax.typing import Array, Pytree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SFTBatch:
    """Responses of one game to train on."""

    frames: UInt8[Array, "B H W 3"]
    tokens: Int32[Array, "B N"]
    mask: Bool[Array, "B N"]  # True except for padding
    is_perception: Bool[Array, "B N"]  # the tokens that describe the board
    facts: Facts | None = None  # None: without the facts' loss
    boards: UInt8[Array, "B L"] | None = None  # for captions


def to_batch(
    policy: Policy,
    game: Game[Any],
    demonstrations: Demonstrations,
    place: Callable[[Pytree], Pytree] = jax.device_put,
) -> SFTBatch:
    """Tokenizes a game's demonstrations; `place` moves the tokens to the devices of the frames."""
    columns = (demonstrations.boards, demonstrations.rationales, demonstrations.answers)
    texts = [[text.decode(line) for line in np.asarray(column)] for column in columns]
    responses = [compose(*row) for row in zip(*texts, strict=True)]
    tokens, mask, is_perception = place(tokenize(policy, game, responses))
    boards = place(np.asarray(demonstrations.boards)) if policy.observation.caption else None
    return SFTBatch(demonstrations.frames, tokens, mask, is_perception, demonstrations.facts, boards)


def tokenize(policy: Policy, game: Game[Any], responses: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole responses as tokens, int32[B, N], with their mask and the perception's, both bool[B, N].

    The perception is the text that the game parses, with its opening tag. A token that overlaps it belongs to it.

    Raises:
        ConfigError: a response is longer than the policy's limit.
    """
    tokenizer = policy.tokenizer
    lines = [[*tokens, tokenizer.end_token] for tokens in tokenizer.encode_batch(responses)]
    tokens, mask = tokenizer.pad_batch(lines, side="right", length=policy.max_new_tokens(game))
    is_perception = np.zeros_like(mask)
    for row, line in enumerate(lines):
        is_perception[row, slice(*tokens_of(PERCEPTION, [policy.token_texts[token] for token in line]))] = True
    return tokens, mask, is_perception


def tokens_of(tag: str, pieces: Sequence[bytes]) -> tuple[int, int]:
    """The range [start, end) of the pieces that cover a text's first `<tag>…`, without the closing tag.

    (0, 0) if there is none. Offsets count bytes of the concatenated pieces, so it does not matter how a tokenizer
    splits tags, spaces or characters, or whether it normalizes the text first.

    >>> tokens_of(PERCEPTION, [b"<perc", b"eption>", b"2 | ", b"4</", b"perception>", b"<think>"])
    (0, 4)
    """
    response = b"".join(pieces)
    start = response.find(f"<{tag}>".encode())
    end = response.find(f"</{tag}>".encode(), start + len(tag) + 2)
    if start < 0 or end < 0:
        return 0, 0
    ends = np.cumsum([len(piece) for piece in pieces])
    return int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, end - 1, side="right")) + 1
