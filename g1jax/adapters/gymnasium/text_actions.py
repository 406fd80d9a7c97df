"""Wrappers for vision-language models: the action is a response, the observation has the prompt."""

import functools
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector.utils import batch_space

from g1jax.envs import Game, text
from g1jax.errors import InputError
from g1jax.typing import Array, ArrayLike, Pytree

_LONGEST = 4096
"""Of the action space, so that samples are not endless; `step` takes a response of any length."""


class TextActions(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """A `GameEnv` whose action is a model's response: a string with `<answer>…</answer>`.

    The observation is a dict: `frame` (or `board`, or both), `prompt`, and `board_text` where asked for. `info` has
    `action`, the number that was read; a response that cannot be read is the game's invalid action.

    >>> import gymnasium
    >>> from g1jax.adapters.gymnasium import TextActions
    >>> env = TextActions(gymnasium.make("g1jax/Game2048-v0"))
    >>> observation, info = env.reset(seed=0)
    >>> _, _, _, _, info = env.step("The tiles go left. <answer>3</answer>")
    >>> sorted(observation), info["action"]
    (['frame', 'prompt'], 3)

    Args:
        env: a `GameEnv`, wrapped or not.
        prompt: a prompt template; None: the game's own prompt.
        board_text: whether the observation has the true board. The environment has it in `info` by default.

    Raises:
        LevelError: the prompt has an unknown placeholder.
    """

    def __init__(self, env: gymnasium.Env, *, prompt: str | None = None, board_text: bool = False) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, prompt=prompt, board_text=board_text)
        gymnasium.Wrapper.__init__(self, env)
        self._game, self._texts = env.unwrapped.game, _Texts.of(env.unwrapped, prompt, board_text)
        self.observation_space = self._texts.space(env.observation_space, self._game)
        self.action_space = _responses()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A new episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._texts.add(observation, info), info

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """The move in a response."""
        number = int(self._game.parse(action))
        observation, reward, terminated, truncated, info = self.env.step(number)
        return self._texts.add(observation, info), reward, terminated, truncated, info | {"action": number}


class VectorTextActions(gymnasium.vector.VectorWrapper):
    """`TextActions` for a `GameVectorEnv`: actions are B responses, which one program reads; texts are B strings.

    `info["final_obs"]` has the observations of the environment inside. Arguments and errors: those of `TextActions`;
    `board_text` needs an environment made with `board_text=True`.
    """

    def __init__(self, env: gymnasium.vector.VectorEnv, *, prompt: str | None = None, board_text: bool = False) -> None:
        super().__init__(env)
        self._game, self._texts = env.unwrapped.game, _Texts.of(env.unwrapped, prompt, board_text)
        self.single_observation_space = self._texts.space(env.single_observation_space, self._game)
        self.single_action_space = _responses()
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @functools.cached_property
    def observation_space(self) -> gymnasium.Space:
        """The space of the batch, made on first use."""
        return batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """New episodes."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._texts.add(observation, info, self.num_envs), info

    def step(self, actions: Sequence[str]) -> tuple[dict[str, Any], ArrayLike, ArrayLike, ArrayLike, dict[str, Any]]:
        """The moves in B responses.

        Raises:
            InputError: there are not B responses.
        """
        count = len(actions)
        InputError.require(count == self.num_envs, f"actions: {count} responses; give {self.num_envs}")
        length = max(len(text.encode(response)) for response in actions)
        numbers = np.array(_parse(self._game, np.stack([text.encode(response, length) for response in actions])))
        observation, reward, terminated, truncated, info = self.env.step(numbers)
        info = info | {"action": numbers, "_action": np.ones(self.num_envs, bool)}
        return self._texts.add(observation, info, self.num_envs), reward, terminated, truncated, info


@functools.partial(jax.jit, static_argnums=0)
def _parse(game: Game[Any], responses: Array) -> Array:
    return jax.vmap(game.parse)(responses)


@dataclass(frozen=True)
class _Texts:
    """What is added to the observations of an environment."""

    name: str  # of the observation within the dict, if it is none itself
    prompt: str
    has_board: bool

    @classmethod
    def of(cls, env: Any, prompt: str | None, board_text: bool) -> "_Texts":
        game = env.game
        return cls(env.view.observation, game.prompt if prompt is None else game.fill_prompt(prompt), board_text)

    def space(self, own: gymnasium.Space, game: Game[Any]) -> gymnasium.spaces.Dict:
        parts = dict(own) if isinstance(own, gymnasium.spaces.Dict) else {self.name: own}
        parts["prompt"] = gymnasium.spaces.Text(len(self.prompt), charset=frozenset(self.prompt))
        if self.has_board:
            known = frozenset("".join(game.cell_names()) + "-| \n")
            parts["board_text"] = gymnasium.spaces.Text(game.board_text.length, charset=known)
        return gymnasium.spaces.Dict(parts)

    def add(self, observation: Pytree, info: dict[str, Any], num_envs: int | None = None) -> dict[str, Any]:
        parts = dict(observation) if isinstance(observation, dict) else {self.name: observation}
        parts["prompt"] = self.prompt if num_envs is None else (self.prompt,) * num_envs
        if self.has_board:
            InputError.require("board_text" in info, "board_text: make the environment with board_text=True")
            parts["board_text"] = info["board_text"] if num_envs is None else tuple(info["board_text"])
        return parts


def _responses() -> gymnasium.spaces.Text:
    return gymnasium.spaces.Text(_LONGEST, min_length=0, charset=string.printable)
