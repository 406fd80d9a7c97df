"""One game as a `gymnasium.Env`."""

import functools
from typing import Any

import gymnasium
import jax
import numpy as np
from jaxtyping import UInt8

from g1jax.adapters.gymnasium import programs
from g1jax.adapters.gymnasium.programs import Arrays, Observation, Transition, View
from g1jax.envs import text
from g1jax.envs.batch import EPISODE_STEPS, Batch, BatchState
from g1jax.envs.checks import as_int32
from g1jax.errors import InputError
from g1jax.typing import Array, ArrayLike, Pytree


class GameEnv(gymnasium.Env):
    """One game. For more than a few environments, `gymnasium.make_vec` steps all of them in one program.

    Actions: the game's action numbers, `Discrete(num_actions)`. Any other integer is a move of the game as well: the
    invalid one. Observations: see `Observation`. Rewards and the end of an episode: the game's own.

    `info` has `action_mask`, int8[num_actions], as `action_space.sample(mask)` takes it; `board_text`, the true board;
    and after a step `is_legal`.

    Args:
        game: one of `g1jax.envs.game_ids()`; part of the id where the environment is made by `gymnasium.make`.
        preset: presets of the level, as in `g1jax.envs.make`.
        observation: what an observation is.
        max_steps: an episode is truncated after this many steps, as in the paper's evaluation; None: never.
        arrays: `jax` leaves observations and masks on the device.
        action_mask, board_text: whether `info` has them.
        render_mode: `rgb_array`, or None. `gymnasium.make(…, render_mode="human")` opens a window, if there is pygame.
        **keys: level keys, as in `g1jax.envs.make`.

    Raises:
        LevelError: the game, a preset or a key is unknown, or the level cannot be played.
        InputError: an option has no such value.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(
        self,
        game: str,
        *,
        preset: str | None = None,
        observation: Observation = "frame",
        max_steps: int | None = EPISODE_STEPS,
        arrays: Arrays = "numpy",
        action_mask: bool = True,
        board_text: bool = True,
        render_mode: str | None = None,
        **keys: Any,
    ) -> None:
        self.view = View(observation, action_mask, board_text)
        programs.check_options(self.view, arrays, render_mode)
        self._batch = programs.make_batch(game, preset, keys, num_envs=1, autoreset="none", max_steps=max_steps)
        self.game = self._batch.game
        self.metadata = self.metadata | {"jax": arrays == "jax"}
        self.render_mode = render_mode
        self.observation_space = self.view.space(self.game)
        self.action_space = gymnasium.spaces.Discrete(self.game.num_actions)
        self._state: BatchState | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Pytree, dict[str, Any]]:
        """A new episode. Equal seeds give equal episodes for equal actions. There are no options."""
        super().reset(seed=seed)
        self._seed, self._num_steps = programs.draw_seed(self.np_random), 0
        self._state, (observation, info) = _reset(self._batch, self.view, self._seed)
        return self._hand_over(observation), self._describe(info)

    def step(self, action: ArrayLike | int) -> tuple[Pytree, float, bool, bool, dict[str, Any]]:
        """A move. After the end of the episode nothing changes, and the reward is 0.

        Raises:
            InputError: the action is not an integer, or there was no reset.
        """
        state, action = self._current(), as_int32("action", action, ())
        self._num_steps += 1
        self._state, transition = _step(self._batch, self.view, state, action, self._seed, np.int32(self._num_steps))
        observation, reward, terminated, truncated, info = transition
        flags = float(reward), bool(terminated), bool(truncated)
        return self._hand_over(observation), *flags, self._describe(info)

    def render(self) -> UInt8[np.ndarray, "H W 3"] | None:
        """The frame in render mode `rgb_array`, else None."""
        if self.render_mode is None:
            return None
        return np.array(_render(self._batch, self._current()))

    def _current(self) -> BatchState:
        InputError.require(self._state is not None, "no episode yet: call reset() first")
        return self._state  # type: ignore[return-value]

    def _hand_over(self, values: Pytree) -> Pytree:
        return values if self.metadata["jax"] else jax.tree.map(np.array, values)

    def _describe(self, info: dict[str, Array]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        if "action_mask" in info:
            own["action_mask"] = self._hand_over(info["action_mask"])
        if "board_text" in info:
            own["board_text"] = text.decode(info["board_text"])
        if "is_legal" in info:
            own["is_legal"] = bool(info["is_legal"])
        return own


def _first(values: Pytree) -> Pytree:
    return jax.tree.map(lambda leaf: leaf[0], values)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reset(batch: Batch, view: View, seed: Array) -> tuple[BatchState, tuple[Pytree, dict[str, Array]]]:
    state, shown = programs.reset(batch, view, seed)
    return state, _first(shown)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    batch: Batch, view: View, state: BatchState, action: Array, seed: Array, count: Array
) -> tuple[BatchState, Transition]:
    state, transition, *_ = programs.step(batch, view, state, action[None], seed, count)
    return state, _first(transition)


@functools.partial(jax.jit, static_argnums=0)
def _render(batch: Batch, state: BatchState) -> Array:
    return batch.render(state.states)[0]
