"""Thousands of environments of one game as a `gymnasium.vector.VectorEnv`, stepped by one compiled program."""

import functools
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import UInt8

from g1jax.adapters.gymnasium import programs
from g1jax.adapters.gymnasium.programs import Arrays, Observation, View
from g1jax.envs import AutoReset, text
from g1jax.envs.batch import EPISODE_STEPS, Batch, BatchState
from g1jax.envs.checks import as_int32
from g1jax.errors import InputError
from g1jax.typing import Array, ArrayLike, Pytree

_MODES: dict[AutoresetMode, AutoReset] = {
    AutoresetMode.NEXT_STEP: "next_step",
    AutoresetMode.SAME_STEP: "same_step",
    AutoresetMode.DISABLED: "none",
}

_reset = jax.jit(programs.reset, static_argnums=(0, 1))
_reset_some = jax.jit(programs.reset_some, static_argnums=(0, 1))
_step = jax.jit(programs.step, static_argnums=(0, 1))
_render = jax.jit(Batch.render, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _show_rows(batch: Batch, view: View, states: Pytree, rows: Array) -> tuple[Pytree, dict[str, Array]]:
    return view.show(batch, jax.tree.map(lambda leaf: leaf[rows], states))


class GameVectorEnv(gymnasium.vector.VectorEnv):
    """`num_envs` environments of one game. Options, spaces and `info` are those of `GameEnv`, batched.

    Frames are read-only views of the program's output where that is in host memory; all else is copied. With
    `arrays="jax"` everything but strings and what `SAME_STEP` says of the episodes that ended stays on the device.

    Autoreset modes, in `metadata["autoreset_mode"]`, and `info` follow Gymnasium's `SyncVectorEnv`. `NEXT_STEP`: the
    step after the end ignores its action. `SAME_STEP`: `info["final_obs"]` and `info["final_info"]` have the end of an
    episode. `DISABLED`: an environment whose episode ended stays as it is, with reward 0, until
    `reset(options={"reset_mask": mask})`.

    Args:
        game: one of `g1jax.envs.game_ids()`; part of the id where the environment is made by `gymnasium.make_vec`.
        num_envs: B.
        autoreset_mode: one of the modes, or its value.
        board_text: whether `info` has the boards as strings, which the host decodes one by one.

    Raises:
        LevelError: the game, a preset or a key is unknown, or the level cannot be played.
        InputError: an option has no such value.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(
        self,
        game: str,
        num_envs: int = 1,
        *,
        preset: str | None = None,
        observation: Observation = "frame",
        max_steps: int | None = EPISODE_STEPS,
        arrays: Arrays = "numpy",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        action_mask: bool = True,
        board_text: bool = False,
        render_mode: str | None = None,
        **keys: Any,
    ) -> None:
        super().__init__()
        self.view = View(observation, action_mask, board_text)
        programs.check_options(self.view, arrays, render_mode)
        mode = AutoresetMode(autoreset_mode)
        self._batch = programs.make_batch(
            game, preset, keys, num_envs=num_envs, autoreset=_MODES[mode], max_steps=max_steps
        )
        self.game, self.num_envs = self._batch.game, num_envs
        self.metadata = self.metadata | {"autoreset_mode": mode, "jax": arrays == "jax"}
        self.render_mode = render_mode
        self.single_observation_space = self.view.space(self.game)
        self.single_action_space = gymnasium.spaces.Discrete(self.game.num_actions)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._state: BatchState | None = None

    @functools.cached_property
    def observation_space(self) -> gymnasium.Space:
        """The space of the batch. Made on first use: the bounds of a Box have the size of a batch of frames each."""
        return batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Pytree, dict[str, Any]]:
        """New episodes: of all environments, or of those in `options["reset_mask"]`, bool[B].

        Raises:
            InputError: the mask is not bool[B], or there was no reset of all.
        """
        super().reset(seed=seed)
        mask = (options or {}).get("reset_mask")
        if mask is not None:
            self._check_mask(mask)
            state = self._current()
        self._seed, self._num_steps = programs.draw_seed(self.np_random), 0
        if mask is None:
            mask = np.ones(self.num_envs, bool)
            self._state, (observation, info) = _reset(self._batch, self.view, self._seed)
        else:
            self._state, (observation, info) = _reset_some(self._batch, self.view, state, mask, self._seed)
        return self._hand_over(observation), self._describe(info, mask, mask)

    def step(self, actions: ArrayLike) -> tuple[Pytree, ArrayLike, ArrayLike, ArrayLike, dict[str, Any]]:
        """Steps every environment, actions integer[B].

        Raises:
            InputError: the actions are not one integer per environment, or there was no reset.
        """
        state = self._current()
        actions = as_int32("actions", actions, (self.num_envs,))
        self._num_steps += 1
        self._state, transition, final, has_moved = _step(
            self._batch, self.view, state, actions, self._seed, np.int32(self._num_steps)
        )
        observation, reward, terminated, truncated, info = transition
        described = self._describe(info, np.ones(self.num_envs, bool), self._hand_over(has_moved))
        if self._batch.autoreset == "same_step" and not np.all(has_moved):
            described |= self._final(final, np.flatnonzero(~np.asarray(has_moved)), info["is_legal"])
        flags = self._hand_over((reward, terminated, truncated))
        return self._hand_over(observation), *flags, described

    def render(self) -> tuple[UInt8[np.ndarray, "H W 3"], ...] | None:
        """The frames in render mode `rgb_array`, else None."""
        if self.render_mode is None:
            return None
        return tuple(np.array(_render(self._batch, self._current().states)))

    def close_extras(self, **kwargs: Any) -> None:
        """Frees the state."""
        del kwargs
        self._state = None

    def _current(self) -> BatchState:
        InputError.require(self._state is not None, "no episode yet: call reset() first")
        return self._state  # type: ignore[return-value]

    def _check_mask(self, mask: Any) -> None:
        is_mask = isinstance(mask, np.ndarray | jax.Array) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,)
        InputError.require(is_mask, f"options['reset_mask']: give an array, bool[{self.num_envs}]")

    def _hand_over(self, values: Pytree) -> Pytree:
        """Arrays as the user gets them."""
        if self.metadata["jax"]:
            return values
        return jax.tree.map(lambda leaf: np.asarray(leaf) if leaf.ndim == 4 else np.array(leaf), values)  # 4: frames

    def _describe(self, info: dict[str, Array], is_shown: ArrayLike, has_moved: ArrayLike) -> dict[str, Any]:
        """`info`, each entry with the mask of the environments that have it."""
        own: dict[str, Any] = {}
        for key, value in info.items():
            own[key] = _strings(value) if key == "board_text" else self._hand_over(value)
            own[f"_{key}"] = has_moved if key == "is_legal" else is_shown
        return own

    def _final(self, states: Pytree, rows: np.ndarray[Any, Any], is_legal: Array) -> dict[str, Any]:
        """`final_obs` and `final_info` of the environments whose episode ended, integer[n]."""
        padded = np.zeros(1 << (len(rows) - 1).bit_length(), np.int32)  # few sizes are compiled
        padded[: len(rows)] = rows
        observation, shown = _show_rows(self._batch, self.view, states, padded)
        observation, mask = self._hand_over(observation), np.zeros(self.num_envs, bool)
        mask[rows] = True
        final_observation = np.full(self.num_envs, None, object)
        for i, row in enumerate(rows):
            final_observation[row] = jax.tree.map(lambda leaf, i=i: leaf[i], observation)
        final_info: dict[str, Any] = {}
        for key, value in (shown | {"is_legal": is_legal[padded]}).items():
            part = _strings(value) if key == "board_text" else np.asarray(value)
            final_info[key] = np.full((self.num_envs, *part.shape[1:]), None if part.dtype == object else 0, part.dtype)
            final_info[key][rows] = part[: len(rows)]
            final_info[f"_{key}"] = mask
        return {"final_obs": final_observation, "_final_obs": mask, "final_info": final_info, "_final_info": mask}


def _strings(texts: Array) -> np.ndarray[Any, Any]:
    """Strings of zero-padded bytes, uint8[B, L]."""
    return np.array([text.decode(row) for row in np.asarray(texts)], object)
