"""The games with the interface of gymnax, for learners and wrappers written for it, such as PureJaxRL's.

>>> env, params = make("swap", rows=4, cols=4)
>>> obs, state = env.reset(jax.random.key(0), params)
>>> obs, state, reward, done, info = env.step(jax.random.key(1), state, 0, params)
>>> obs.shape, env.num_actions, bool(info["is_legal"])
((4, 4, 12), 256, False)

Up to version 0.0.9, and in PureJaxRL, `step` returns five values, with one `done`; since 1.0 it returns six, with
`terminated` and `truncated` apart. `make(..., step_api="terminated_truncated")` gives the latter.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Int32, Shaped

from g1jax import envs
from g1jax.adapters import spaces
from g1jax.envs import prng
from g1jax.envs.batch import EPISODE_STEPS, renewed
from g1jax.errors import InputError, unknown
from g1jax.typing import Array, Keys, Pytree

try:  # gymnax's wrappers require its own classes
    from gymnax.environments.spaces import Box, Discrete
except ImportError:
    Box, Discrete = spaces.Box, spaces.Discrete

Observation = Literal["board", "pixels"]
"""`board`: the kind of each cell as float32[R, C, K], one-hot. `pixels`: the frame, uint8[H, W, 3]."""

StepApi = Literal["done", "terminated_truncated"]


@struct.dataclass
class EnvParams:
    """What may change without recompiling."""

    level: envs.TracedLevel
    """The level of episodes that start from now on; `env.game.traced_level(colors=3)` makes another one."""
    max_steps_in_episode: Int32[Array, "*B"]
    """An episode is truncated after this many steps."""


@struct.dataclass
class EnvState:
    """A running episode."""

    game: Pytree
    """The game's own state."""
    time: Int32[Array, "*B"]
    """Steps since the reset."""


@dataclass(frozen=True)
class Environment:
    """One game as a gymnax environment: pure functions of one state, to be mapped by `jax.vmap`.

    Equal environments share compiled programs. Keys may be typed or raw (`jax.random.PRNGKey`).
    """

    game: envs.Game[Any]
    obs: Observation = "board"
    max_steps: int = EPISODE_STEPS
    step_api: StepApi = "done"
    mask_in_info: bool = True

    @property
    def name(self) -> str:
        """The game's id."""
        return self.game.id

    @property
    def num_actions(self) -> int:
        """The number of actions."""
        return self.game.num_actions

    @property
    def default_params(self) -> EnvParams:
        """The game's own level, and episodes of `max_steps`."""
        return EnvParams(level=self.game.traced_level(), max_steps_in_episode=jnp.int32(self.max_steps))

    def action_space(self, params: EnvParams | None = None) -> Discrete:
        """All actions, legal or not."""
        del params
        return Discrete(self.num_actions)

    def observation_space(self, params: EnvParams | None = None) -> Box:
        """Frames or one-hot boards."""
        del params
        if self.obs == "pixels":
            return Box(0, 255, self.game.frame_shape, jnp.uint8)
        return Box(0.0, 1.0, (self.game.rows, self.game.cols, len(self.game.cell_names())), jnp.float32)

    @functools.partial(jax.jit, static_argnames="self")
    def reset(self, key: Keys, params: EnvParams | None = None) -> tuple[Shaped[Array, "..."], EnvState]:
        """The observation and state of a new episode."""
        return self.reset_env(key, self.default_params if params is None else params)

    @functools.partial(jax.jit, static_argnames="self")
    def step(self, key: Keys, state: EnvState, action: Array | int, params: EnvParams | None = None) -> tuple[Any, ...]:
        """One move; an episode that ends is reset in the same step, and the observation is that of the new one.

        Returns:
            observation, state, reward float32[], done bool[] and info. With `step_api="terminated_truncated"`,
            `terminated` and `truncated` in place of `done`, and `info["final_observation"]`, the one before the reset.

            info has `terminated`, `truncated`, `is_legal` (the action was), `discount` (0 if terminated, else 1) and,
            with `mask_in_info`, `legal_actions`, those of the returned state.
        """
        params = self.default_params if params is None else params
        key, reset_key = jax.random.split(_typed(key))
        state, reward, info = self._move(key, state, action, params)
        is_done = info["terminated"] | info["truncated"]
        after = self._reset_where(is_done, reset_key, state, params)
        if self.mask_in_info:
            info["legal_actions"] = self.legal_actions(after)
        if self.step_api == "done":
            return self.get_obs(after), after, reward, is_done, info
        info["final_observation"] = self.get_obs(state)
        return self.get_obs(after), after, reward, info["terminated"], info["truncated"], info

    def reset_env(self, key: Keys, params: EnvParams) -> tuple[Shaped[Array, "..."], EnvState]:
        """Like `reset`, not compiled."""
        state = EnvState(game=self.game.reset(_typed(key), params.level), time=jnp.int32(0))
        return self.get_obs(state), state

    def step_env(self, key: Keys, state: EnvState, action: Array | int, params: EnvParams) -> tuple[Any, ...]:
        """One move without a reset: observation, state, reward, done and info.

        `done` is `terminated | truncated`, and with `step_api="terminated_truncated"` only `terminated`, as in gymnax.
        """
        state, reward, info = self._move(_typed(key), state, action, params)
        is_done = info["terminated"] if self.step_api != "done" else info["terminated"] | info["truncated"]
        if self.mask_in_info:
            info["legal_actions"] = self.legal_actions(state)
        return self.get_obs(state), state, reward, is_done, info

    def get_obs(self, state: EnvState, params: EnvParams | None = None, key: Any = None) -> Shaped[Array, "..."]:
        """The observation of a state."""
        del params, key
        if self.obs == "pixels":
            return self.game.render(state.game)
        return jax.nn.one_hot(self.game.cells(state.game), len(self.game.cell_names()), dtype=jnp.float32)

    def legal_actions(self, state: EnvState) -> Bool[Array, "{self.num_actions}"]:
        """The mask of legal actions: what `info` lacks for the first state of a run."""
        return self.game.legal_actions(state.game)

    def render(self, state: EnvState, params: EnvParams | None = None) -> Shaped[Array, "H W 3"]:
        """The frame, whatever the observation is."""
        del params
        return self.game.render(state.game)

    def is_terminal(self, state: EnvState, params: EnvParams) -> Bool[Array, ""]:
        """Whether the episode is over: by the rules or, with five values, by the time limit."""
        is_truncated = (state.time >= params.max_steps_in_episode) & (self.step_api == "done")
        return state.game.terminated | is_truncated

    def _move(
        self, key: Keys, state: EnvState, action: Array | int, params: EnvParams
    ) -> tuple[EnvState, Array, dict[str, Array]]:
        game, result = self.game.step(state.game, action, key)
        time = state.time + 1
        info = {
            "terminated": result.terminated,
            "truncated": (time >= params.max_steps_in_episode) & ~result.terminated,
            "is_legal": result.is_legal,
            "discount": 1 - result.terminated.astype(jnp.float32),
        }
        return EnvState(game=game, time=time), result.reward, info

    def _reset_where(self, is_done: Array, key: Keys, state: EnvState, params: EnvParams) -> EnvState:
        """A fresh state if done. Under `vmap` only the environments that are done compute one."""
        games, levels = jax.tree.map(lambda leaf: leaf[None], (state.game, params.level))
        games = renewed(self.game, games, is_done[None], prng.seed_of(key), jnp.zeros(1, jnp.uint32), levels)
        game = jax.tree.map(lambda leaf: leaf[0], games)
        return EnvState(game=game, time=jnp.where(is_done, 0, state.time))


def make(
    game_id: str,
    preset: str | None = None,
    *,
    obs: Observation = "board",
    max_steps: int = EPISODE_STEPS,
    step_api: StepApi = "done",
    mask_in_info: bool = True,
    **level: Any,
) -> tuple[Environment, EnvParams]:
    """An environment and its default parameters.

    Args:
        game_id: one of `envs.game_ids()`.
        preset: names of presets, as in `envs.make`.
        obs: what a policy sees.
        max_steps: an episode is truncated after this many steps.
        step_api: `done` for five values from `step`, `terminated_truncated` for the six of gymnax 1.0.
        mask_in_info: whether `info` has the mask of legal actions. A learner that keeps the `info` of every step, such
            as PureJaxRL's, then also keeps a byte per action and step: 4096 in Swap.
        **level: level keys, as in `envs.make`.

    Raises:
        LevelError: a game, preset or key is unknown, or the level cannot be played.
        InputError: another argument has no such value.
    """
    for name, value, known in (("obs", obs, Observation), ("step_api", step_api, StepApi)):
        InputError.require(value in get_args(known), unknown(name, value, get_args(known)))
    InputError.require(max_steps > 0, f"max_steps={max_steps}: an episode has at least one step")
    env = Environment(envs.make(game_id, preset, **level), obs, max_steps, step_api, mask_in_info)
    return env, env.default_params


def _typed(key: Keys) -> Keys:
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
