"""What a player is shown of a state: its picture, its board as text (a caption), or both; and which parts of a prompt.

A caption is text at the end of the prompt. Its tokens are gathered on the device from a table with the tokens of every
cell, so it costs no host round trip in training or evaluation. It has a place for as many tokens as the longest board
takes, so that its length is static; the rest is masked.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from g1jax.envs.core import Game
from g1jax.envs.prompt import PARTS
from g1jax.envs.text import CELL_SEPARATOR
from g1jax.errors import ConfigError
from g1jax.typing import Array
from g1jax.vlm import Tokenizer

Name = Literal["picture", "caption", "no_rules", "no_goal"]
NAMES: tuple[Name, ...] = get_args(Name)
Shown = tuple[Name, ...]
"""An observation as a setting; empty: the default of whoever reads it."""
CAPTION = "\nThe board:\n"
"""Precedes the board's text in a prompt."""


@dataclass(frozen=True)
class Observation:
    """What a player is shown of each state, and of its prompt.

    >>> Observation.of(("caption", "no_goal"))
    Observation(picture=False, caption=True, rules=True, goal=False)
    >>> Observation.of(("caption", "no_goal")).shown
    ('caption', 'no_goal')

    Raises:
        ConfigError: neither the picture nor the caption is shown.
    """

    picture: bool = True
    caption: bool = False
    """The true board text."""
    rules: bool = True
    """Whether the prompt keeps its `{rules}…{/rules}`."""
    goal: bool = True
    """Whether the prompt keeps its `{goal}…{/goal}`."""

    def __post_init__(self) -> None:
        ConfigError.require(self.picture or self.caption, "observation: show the picture, the caption, or both")

    @staticmethod
    def of(shown: Sequence[str]) -> "Observation":
        """The observation that a setting names; empty: the picture and the whole prompt."""
        if not shown:
            return Observation()
        others = [name for name in shown if name not in NAMES]
        ConfigError.require(not others, f"observation: {', '.join(others)}: expected some of {', '.join(NAMES)}")
        return Observation("picture" in shown, "caption" in shown, "no_rules" not in shown, "no_goal" not in shown)

    @property
    def shown(self) -> Shown:
        """The setting that names it."""
        are_named = (self.picture, self.caption, not self.rules, not self.goal)
        return tuple(name for name, is_named in zip(NAMES, are_named, strict=True) if is_named)

    @property
    def without(self) -> tuple[str, ...]:
        """The parts that the prompt is without."""
        return tuple(part for part in PARTS if not getattr(self, part))


PICTURE = Observation()
"""The default: the picture, and the whole prompt."""


def about(observation: Observation) -> dict[str, list[str]]:
    """What results, logs and files record of an observation: nothing of the default one."""
    return {} if observation == PICTURE else {"observation": list(observation.shown)}


def board_tokens(
    tokenizer: Tokenizer, game: Game[Any], boards: UInt8[Array, "B L"]
) -> tuple[Int32[Array, "B S"], Bool[Array, "B S"]]:
    """The tokens of true board texts and their mask, which has gaps between cells. To be called within a jit.

    Cells are encoded one by one, each with the separator before it. The result is what the tokenizer gives for the
    whole text where it never joins cells, as that of the games does; it decodes to the same text with any tokenizer.
    """
    tokens, mask = _cell_tokens(tokenizer, game)
    kinds = jnp.maximum(jax.vmap(game.read_board)(boards), 0)
    index = (_separators(game) * tokens.shape[1])[None] + kinds
    flat = (len(boards), -1)
    return (
        jnp.asarray(tokens.reshape(-1, tokens.shape[-1]))[index].reshape(flat),
        jnp.asarray(mask.reshape(-1, mask.shape[-1]))[index].reshape(flat),
    )


def num_board_tokens(tokenizer: Tokenizer, game: Game[Any]) -> int:
    """The places that a caption's board takes in a prompt."""
    return game.rows * game.cols * int(_cell_tokens(tokenizer, game)[0].shape[-1])


def _separators(game: Game[Any]) -> Int32[np.ndarray, "R C"]:
    """What precedes each cell: nothing, the end of a row, or a cell of its row."""
    separators = np.full((game.rows, game.cols), 2, np.int32)
    separators[:, 0] = 1
    separators[0, 0] = 0
    return separators


@functools.lru_cache(maxsize=256)
def _cell_tokens(tokenizer: Tokenizer, game: Game[Any]) -> tuple[Int32[np.ndarray, "3 K M"], Bool[np.ndarray, "3 K M"]]:
    """The tokens of every kind of cell after each separator, and their mask."""
    names = game.cell_names()
    texts = [before + name for before in ("", "\n", CELL_SEPARATOR) for name in names]
    rows = tokenizer.encode_batch(texts, [f"a cell of {game.id}"] * len(texts))
    tokens, mask = tokenizer.pad_batch(rows, side="right")
    return tokens.reshape(3, len(names), -1), mask.reshape(3, len(names), -1)
