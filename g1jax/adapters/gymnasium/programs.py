"""What both environments share: their options, spaces, and the functions that are compiled."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int32, UInt32

from g1jax import envs
from g1jax.envs import AutoReset, Game
from g1jax.envs.batch import Batch, BatchState
from g1jax.envs.vmap_loop import where
from g1jax.errors import InputError, unknown
from g1jax.typing import Array, Pytree

Observation = Literal["frame", "board", "both"]
"""`frame`: uint8[H, W, 3]. `board`: int32[R, C], the kind of every cell. `both`: a dict of the two."""

Arrays = Literal["numpy", "jax"]
"""Where observations, masks and rewards are: on the host, or left on the device for consumers of DLPack."""

Transition = tuple[Pytree, Array, Array, Array, dict[str, Array]]
"""Observation, reward, terminated, truncated and info."""


@dataclass(frozen=True)
class View:
    """What is shown of a state. A value, so that equal environments share compiled programs."""

    observation: Observation = "frame"
    action_mask: bool = True
    board_text: bool = True

    def space(self, game: Game[Any]) -> gymnasium.Space:
        """The space of `show`'s observations of one environment."""
        num_kinds = len(game.cell_names())
        parts = {
            "frame": gymnasium.spaces.Box(0, 255, game.frame_shape, np.uint8),
            "board": gymnasium.spaces.Box(0, num_kinds - 1, (game.rows, game.cols), np.int32),
        }
        return gymnasium.spaces.Dict(parts) if self.observation == "both" else parts[self.observation]

    def show(self, batch: Batch, states: Pytree) -> tuple[Pytree, dict[str, Array]]:
        """The observations and the info of states, leaves [B, …]."""
        game, parts, info = batch.game, {}, {}
        if self.observation != "board":
            parts["frame"] = jax.vmap(game.render)(states)
        if self.observation != "frame":
            parts["board"] = jax.vmap(game.cells)(states)
        if self.action_mask:
            info["action_mask"] = jax.vmap(game.legal_actions)(states).astype(jnp.int8)  # as `Space.sample` takes it
        if self.board_text:
            info["board_text"] = jax.vmap(game.describe)(states)
        return parts if self.observation == "both" else parts[self.observation], info


def make_batch(
    game: str,
    preset: str | None,
    keys: dict[str, Any],
    *,
    num_envs: int,
    autoreset: AutoReset,
    max_steps: int | None,
) -> Batch:
    """The batch of an environment, from its options.

    Raises:
        LevelError: the game, a preset or a key is unknown, a level cannot be played, or a number is out of range.
        InputError: `max_episode_steps` is given.
    """
    InputError.require("max_episode_steps" not in keys, "max_episode_steps: use max_steps=…, or None for no limit")
    made = envs.make(game, preset, **keys)
    return envs.make_vec(made, num_envs, autoreset=autoreset, max_steps=max_steps).batches[0]


def check_options(view: View, arrays: Arrays, render_mode: str | None) -> None:
    """Rejects values that do not exist.

    Raises:
        InputError: the message has the option and its values.
    """
    for what, value, known in (
        ("observation", view.observation, get_args(Observation)),
        ("arrays", arrays, get_args(Arrays)),
    ):
        InputError.require(value in known, unknown(what, value, known))
    is_known = render_mode in (None, "rgb_array")
    InputError.require(
        is_known,
        f"render_mode={render_mode!r}: 'rgb_array' or None; gymnasium.make(…, render_mode='human') opens a window",
    )


def draw_seed(generator: np.random.Generator) -> UInt32[np.ndarray, "2"]:
    """The seed of the compiled functions, from Gymnasium's generator."""
    return generator.integers(2**32, size=2, dtype=np.uint32)


# To be jitted with `batch` and `view` static. Randomness comes from a seed and a counter, never from the host.


def reset(batch: Batch, view: View, seed: UInt32[Array, "2"]) -> tuple[BatchState, tuple[Pytree, dict[str, Array]]]:
    """New episodes: the state, and its observations and info."""
    state = batch.reset(_key(seed, jnp.int32(0)))
    return state, view.show(batch, state.states)


def reset_some(
    batch: Batch, view: View, state: BatchState, mask: Bool[Array, "B"], seed: UInt32[Array, "2"]
) -> tuple[BatchState, tuple[Pytree, dict[str, Array]]]:
    """New episodes where the mask holds; observations and info of all."""
    state = where(mask, batch.reset(_key(seed, jnp.int32(0))), state)
    return state, view.show(batch, state.states)


def step(
    batch: Batch,
    view: View,
    state: BatchState,
    actions: Int32[Array, "B"],
    seed: UInt32[Array, "2"],
    count: Int32[Array, ""],
) -> tuple[BatchState, Transition, Pytree, Bool[Array, "B"]]:
    """A step, the `count`-th since the reset.

    Returns the state, what Gymnasium returns, the states before any reset, and whose observation a move led to, not a
    reset.
    """
    after, result = batch.step(state, actions, _key(seed, count))
    observation, info = view.show(batch, after.states)
    info["is_legal"] = result.is_legal
    ended = after if batch.autoreset == "same_step" else state
    has_moved = ~(ended.terminated | ended.truncated)
    transition = observation, result.reward, result.terminated, result.truncated, info
    return after, transition, result.final, has_moved


def _key(seed: UInt32[Array, "2"], count: Int32[Array, ""]) -> Array:
    return jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), count)
