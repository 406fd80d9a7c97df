"""The reward of a response, from its bytes and the result of its move, on the device."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, UInt8

from g1jax.envs import text
from g1jax.envs.core import Game, StepResult
from g1jax.envs.response import TAGS
from g1jax.errors import AlgorithmError
from g1jax.settings import Range, check
from g1jax.typing import Array

Coefficient = Annotated[float, Range(-1e6, 1e6)]


@dataclass(frozen=True, kw_only=True)
class RewardWeights:
    """The weights and shapes of the parts of a reward in one game; the defaults are the release's.

    Raises:
        AlgorithmError: a key has an invalid value.
    """

    game: Coefficient = 1.0
    """Weight of the move's reward."""
    format: Coefficient = 1.0
    """Weight of the response's format."""
    perception: Coefficient = 1.0
    """Weight of a correctly read board."""
    game_shape: Literal["sign", "raw", "worth"] = "sign"
    """`sign`: 1 if the step's reward is above 0, else −1. `raw`: the step's reward. `worth`: how good the move is among
    the legal ones, −1 to 1, by the game's own measure (`Game.worth`)."""
    format_shape: Literal["present", "ordered"] = "present"
    """`present`: 1 if all six tags occur. `ordered`: 1 if they occur in the prompt's order."""
    perception_shape: Literal["exact", "cells"] = "exact"
    """`exact`: 1 if the whole board text is correct. `cells`: the fraction of its cells that are correct."""

    def __post_init__(self) -> None:
        check(self, AlgorithmError)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reward:
    """The reward of a response, and its parts before weighting."""

    total: Float32[Array, "*B"]
    game: Float32[Array, "*B"]
    format: Float32[Array, "*B"]  # 0 or 1
    perception: Float32[Array, "*B"]  # 0 to 1
    is_success: Bool[Array, "*B"]  # the step's reward is above 0
    is_seen: Bool[Array, "*B"]  # the perception is exact


def reward(
    game: Game[Any],
    response: UInt8[Array, "N"],
    state: Any,
    result: StepResult,
    weights: RewardWeights | None = None,
) -> Reward:
    """The reward of one response to a state, given the result of its move; use `jax.vmap` for several.

    A response without a perception scores as one with a wrong perception.
    """
    weights = RewardWeights() if weights is None else weights
    is_success = result.reward > 0
    is_seen = game.perception_exact(response, state)
    if weights.game_shape == "worth":
        shaped = game.worth(state, game.parse(response), result)
    else:
        shaped = jnp.where(is_success, 1.0, -1.0) if weights.game_shape == "sign" else result.reward
    formatted = has_format(response, ordered=weights.format_shape == "ordered").astype(jnp.float32)
    if weights.perception_shape == "exact":
        perception = is_seen.astype(jnp.float32)
    else:
        perception = game.perception_cells(response, state)
    total = weights.game * shaped + weights.format * formatted + weights.perception * perception
    return Reward(total, shaped, formatted, perception, is_success, is_seen)


def has_format(response: UInt8[Array, "N"], *, ordered: bool = False) -> Bool[Array, ""]:
    """Whether a response has all six tags; if `ordered`, each after the previous one."""
    num_bytes = response.shape[0]
    after, is_found = jnp.int32(0), jnp.bool_(True)
    for tag in TAGS:
        start = text.find(response, tag, after)
        is_found &= start < num_bytes
        if ordered:
            after = start + len(tag)
    return is_found
