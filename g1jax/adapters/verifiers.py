"""The games as an environment of Prime Intellect's `verifiers`, its v1 interface: `vf-eval g1jax-verifiers`.

A task is the state of a seed, shown as a picture, as board text, or both; the player's replies are parsed, played and
rewarded by the game. `g1jax_verifiers` is the installed name by which verifiers finds these classes.

>>> from g1jax.adapters.verifiers import load_environment  # doctest: +SKIP
>>> env = load_environment(game="swap", preset="easy", max_steps=10)  # doctest: +SKIP
"""

import asyncio
import base64
import functools
import itertools
import random
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import openai
import verifiers.v1 as vf
from jaxtyping import UInt8
from pydantic import Field, field_validator
from verifiers.v1.dialects.chat import message_to_wire

from g1jax import envs
from g1jax.adapters.sessions import Device, Seen
from g1jax.envs import text
from g1jax.envs.core import Game, StepResult
from g1jax.errors import InputError
from g1jax.rl.rewards import RewardWeights, reward
from g1jax.typing import Array, Pytree

NAME = "g1jax_verifiers"
"""The name of the environment in verifiers."""

Observation = Literal["picture", "board", "both"]


class GameConfig(vf.TasksetConfig):
    """Which states of which game, and how they are shown: `--env.taskset.game=…`."""

    game: str = "game_2048"
    """A game's id."""
    preset: str | None = None
    """Presets of the game, joined by `+`."""
    level: dict[str, Any] = Field(default_factory=dict)
    """Further keys of the level."""
    first_seed: int = Field(0, ge=0, lt=2**32)
    """The seed of the first task; the next tasks have the next seeds."""
    random_moves: int = Field(0, ge=0)
    """Tasks start after up to so many random legal moves, which their seeds determine."""
    observation: Observation = "picture"
    """What the player sees. `board` is the true board text, for models without vision."""
    prompt: str | None = None
    """Instead of the game's own prompt."""

    def make(self) -> Game[Any]:
        """The game.

        Raises:
            LevelError: there is no such game, preset or key.
        """
        return envs.make(self.game, self.preset, **self.level)


class GameData(vf.TaskData):
    """A task: with the taskset's config it determines the state."""

    seed: int
    moves: list[int]
    """Taken from the seed's first state."""


class GameTask(vf.Task[GameData]):
    """One state of a game."""


class GameTaskset(vf.Taskset[GameTask, GameConfig]):
    """The states of a game, one a seed, without end."""

    INFINITE = True

    def load(self) -> Iterator[GameTask]:
        """The tasks in order of their seeds."""
        device = _device(self.config.make())
        for seed in itertools.count(self.config.first_seed):
            chance = random.Random(seed)
            seen = device.reset(seed).result()
            moves: list[int] = []
            for number in range(chance.randint(0, self.config.random_moves)):
                move = chance.choice(seen.legal_actions or (device.game.invalid_action,))
                after = device.step(seen.state, move, seed=seed, number=number).result()
                if after.terminated:
                    break
                seen, moves = after, [*moves, move]
            name = f"{self.config.game}#{seed}"
            data = GameData(name=name, prompt=shown(seen, device.game, self.config), seed=seed, moves=moves)
            yield GameTask(data, self.config.task)


class ChatConfig(vf.HarnessConfig):
    """The settings of every harness."""


class ChatHarness(vf.Harness[ChatConfig]):
    """One completion a turn, requested from this process; the harnesses of verifiers start a program for each turn."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Requests the reply to the messages so far."""
        system, prompt = self.resolve_prompt(data)
        messages = [] if system is None else [vf.SystemMessage(content=system)]
        messages += [vf.UserMessage(content=prompt)] if isinstance(prompt, str) else prompt or []
        try:
            async with openai.AsyncOpenAI(base_url=endpoint, api_key=secret, timeout=None) as client:
                await client.chat.completions.create(model=ctx.model, messages=[message_to_wire(m) for m in messages])
        except openai.OpenAIError as error:  # verifiers refuses the request at a limit, which is no failure
            return vf.ProgramResult(1, "", str(error))
        return vf.ProgramResult(0, "", "")


class GameEnvConfig(vf.EnvConfig):
    """Who plays, for how long, and what the rewards are: `--env.max-steps=…`."""

    player: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())
    max_steps: int = Field(1, ge=1)
    """Moves in one conversation. 1, as in the paper: each task is one state and one move."""
    rewards: dict[str, Any] = Field(default_factory=dict)
    """Fields of `g1jax.rl.RewardWeights`: the weights `game`, `format` and `perception`, `game_shape` and so on."""

    @field_validator("rewards")
    @classmethod
    def _are_weights(cls, rewards: dict[str, Any]) -> dict[str, Any]:
        RewardWeights(**rewards)
        return rewards


class GameEnv(vf.Env[GameEnvConfig]):
    """Plays a task with one player, and rewards it with the mean of the steps' rewards.

    A trace has the rewards `game`, `format` and `perception`, and the metrics `score` (the sum of the game's own
    rewards), `steps` and `legal` (the share of steps).
    """

    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        """One episode."""
        config, data = self.taskset.config, task.data
        device, weights = _device(config.make()), RewardWeights(**self.config.rewards)
        seen = await asyncio.wrap_future(device.reset(data.seed))
        for number, move in enumerate(data.moves):
            seen = await asyncio.wrap_future(device.step(seen.state, move, seed=data.seed, number=number))
        steps: list[tuple[dict[str, float], Seen]] = []
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated:
                before, response = seen, segment.last_reply
                number = len(data.moves) + len(steps)
                seen = await asyncio.wrap_future(device.step(before.state, response, seed=data.seed, number=number))
                steps.append((parts_of(device.game, response, before, seen, weights), seen))
                if seen.terminated or len(steps) == self.config.max_steps:
                    break
                segment = await interaction.turn(shown(seen, device.game, config))
        if steps:
            _record(interaction.trace, steps, weights)


def load_environment(**settings: Any) -> vf.Env:
    """The environment, from the fields of `GameConfig` and `GameEnvConfig`.

    Raises:
        InputError: a setting is unknown.
        TypeError: `rewards` has an unknown field.
        pydantic.ValidationError: a setting has a wrong value.
    """
    of_env = {key: value for key, value in settings.items() if key in GameEnvConfig.model_fields}
    of_taskset = {key: value for key, value in settings.items() if key not in of_env}
    for key in of_taskset:
        InputError.require(key in GameConfig.model_fields, f"{key}: neither a setting of GameConfig nor GameEnvConfig")
    return vf.load_environment(vf.resolve_env_config({**of_env, "taskset": {"id": NAME, **of_taskset}}))


def shown(seen: Seen, game: Game[Any], config: GameConfig) -> list[vf.UserMessage]:
    """The message that shows a state: a picture as a data URL, the prompt, and the board text if asked for."""
    prompt = game.prompt if config.prompt is None else config.prompt
    if config.observation != "picture":
        prompt += f"\n\n{seen.board}"
    parts: list[Any] = [vf.TextContentPart(text=prompt)]
    if config.observation != "board":
        url = f"data:image/png;base64,{base64.b64encode(seen.png()).decode()}"
        parts.insert(0, vf.ImageUrlContentPart(image_url=vf.ImageUrlSource(url=url)))
    return [vf.UserMessage(content=parts)]


def parts_of(game: Game[Any], response: str, before: Seen, after: Seen, weights: RewardWeights) -> dict[str, float]:
    """The unweighted parts of the reward for a response to the state `before`."""
    terminated, truncated, is_legal = map(jnp.bool_, (after.terminated, False, after.is_legal))
    result = StepResult(jnp.float32(after.reward), terminated, truncated, is_legal)
    parts = jax.device_get(_reward(game, weights, text.encode(response), before.state, result))
    return {name: float(getattr(parts, name)) for name in ("game", "format", "perception")}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reward(
    game: Game[Any], weights: RewardWeights, response: UInt8[Array, "N"], state: Pytree, result: StepResult
) -> Any:
    return reward(game, response, state, result, weights)


def _record(trace: vf.Trace, steps: list[tuple[dict[str, float], Seen]], weights: RewardWeights) -> None:
    for name in ("game", "format", "perception"):
        mean = float(np.mean([parts[name] for parts, _ in steps]))
        trace.record_reward(name, mean, getattr(weights, name))
    trace.record_metric("score", sum(seen.reward for _, seen in steps))
    trace.record_metric("steps", len(steps))
    trace.record_metric("legal", float(np.mean([seen.is_legal for _, seen in steps])))


@functools.cache
def _device(game: Game[Any]) -> Device:
    """One device a game for all episodes of this process, so that those which run at once are computed together."""
    return Device(game)
