"""The paper's evaluation protocol, on the device, for any player.

An episode is a fixed number of steps; when a board ends before, a fresh one follows. Every episode has its own seed,
derived from the evaluation's seed and the episode's index, which decides its n-th board and the random keys of its t-th
step. So all players get the same boards and keys, and neither the batch size nor the number of steps per call changes a
result.

Under `jax.set_mesh` the episodes of a batch are sharded over the mesh, also over several processes: all processes make
the same call to `play`, and each gets the whole result.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float32, Int32, UInt8, UInt32

from g1jax import settings
from g1jax.envs import prng, text
from g1jax.envs.batch import EPISODE_STEPS, renewed
from g1jax.envs.core import Game, StepResult
from g1jax.errors import EvaluationError
from g1jax.rl.rewards import has_format
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm.sharding import BATCH, constrain

_FIRST_BOARD = np.uint32(1 << 31)  # draws from here on are boards, those below are steps
_RAW_SCORE = ("game_2048",)
_ONE_BOARD = ("shisen_sho", "shisen_sho_cifar10")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """A player's answers to a batch of states. Players that write no text, such as the random one, only act."""

    actions: Int32[Array, "B"]
    responses: UInt8[Array, "B L"] | None = None  # zero-padded
    num_tokens: Int32[Array, "B"] | None = None


class Respond(Protocol):
    """A player's answer function. It is pure and traced once per game, so arrays must be arguments."""

    def __call__(self, params: Pytree, game: Game[Any], states: Pytree, keys: Key, /) -> Answers:
        """The answers to states, leaves [B, …], with keys key<fry>[B]."""


@dataclass(frozen=True)
class Player:
    """A player on the device. Players with an equal `respond` share compiled programs, whatever their params."""

    name: str
    respond: Respond
    params: Pytree = ()
    batch_size: int = 2048
    """Episodes in a batch, at most."""
    steps_per_call: int = EPISODE_STEPS
    """Steps of one compiled call, at most; progress is reported after each."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Boards:
    """The current boards of a batch of episodes. A board that has ended is replaced at the start of the next step."""

    states: Pytree  # leaves [B, …]
    is_over: Bool[Array, "B"]
    seeds: UInt32[Array, "B 2"]  # one for each episode
    number: UInt32[Array, "B"]  # boards of the episode so far


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Judged:
    """The metrics of a step. The last five are None where the player writes no text."""

    reward: Float32[Array, "*B"]
    is_legal: Bool[Array, "*B"]
    is_invalid: Bool[Array, "*B"]  # the answer cannot be parsed
    is_end: Bool[Array, "*B"]  # the step ended the board
    is_exact: Bool[Array, "*B"] | None = None  # the perception is the true board text
    num_right: Int32[Array, "*B"] | None = None  # cells that the perception names correctly
    is_formatted: Bool[Array, "*B"] | None = None  # all six tags
    num_bytes: Int32[Array, "*B"] | None = None  # of the response
    num_tokens: Int32[Array, "*B"] | None = None


@dataclass(frozen=True, eq=False)
class Recorded:
    """Everything that happened in the first n episodes, on the host."""

    states: Pytree  # leaves [n, T, …], as shown to the player
    actions: np.ndarray  # int32[n, T]
    responses: list[list[str]] | None  # [n][T]


@dataclass(frozen=True, eq=False)
class Episodes:
    """A player's E episodes of T steps of one game, on the host."""

    game: Game[Any]
    seed: int
    steps: Judged  # leaves np.ndarray[E, T]
    recorded: Recorded | None = None

    @property
    def score(self) -> np.ndarray:
        """The paper's score of every step: float64[E, T]."""
        return step_score(self.game, self.steps)


Progress = Callable[[int, int], None]
"""Called with the number of steps played so far and the total, over all episodes."""


def counts_score(game: Game[Any]) -> bool:
    """Whether the paper uses this game's raw score; for the others it counts the steps with a reward above 0."""
    return game.base_id in _RAW_SCORE


def scores_one_board(game: Game[Any]) -> bool:
    """Whether the paper scores one board of this game: the pairs found before it ends."""
    return game.base_id in _ONE_BOARD


def step_score(game: Game[Any], steps: Judged) -> np.ndarray:
    """The score of each step: float64, with the shape of the steps. The penalty of an invalid answer is not counted."""
    reward = np.asarray(steps.reward, np.float64)
    return np.where(np.asarray(steps.is_invalid), 0.0, reward) if counts_score(game) else (reward > 0).astype(float)


def play(
    game: Game[Any],
    player: Player,
    num_episodes: int,
    num_steps: int = EPISODE_STEPS,
    seed: int = 0,
    *,
    num_recorded: int = 0,
    batch_size: int | None = None,
    on_progress: Progress | None = None,
) -> Episodes:
    """Plays `num_episodes` episodes, and records the first `num_recorded` for replays.

    Raises:
        EvaluationError: The number of episodes or steps, or the seed, is invalid.
    """
    check_protocol(num_episodes, num_steps, seed)
    num_batches = -(-num_episodes // (batch_size or player.batch_size))
    parts = _num_parts()
    size = -(-num_episodes // (num_batches * parts)) * parts  # equal batches; surplus episodes of the last are dropped
    num_recorded = min(num_recorded, num_episodes)
    judged, shown = [], []
    for first in range(0, num_episodes, size):
        index = np.arange(first, first + size, dtype=np.uint32)

        def report(step: int, first: int = first) -> None:
            if on_progress:
                done = first * num_steps + min(size, num_episodes - first) * step
                on_progress(done, num_episodes * num_steps)

        batch = _play_batch(game, player, index, num_steps, seed, min(num_recorded, size), report)
        judged.append(batch[0])
        shown += [batch[1]] if first < num_recorded else []
    steps = _join(judged, num_episodes)
    return Episodes(game, seed, steps, as_recorded(*_join(shown, num_recorded)) if num_recorded else None)


@dataclass(frozen=True)
class _Protocol:
    episodes: settings.Episodes
    steps: settings.Steps
    seed: settings.Seed


def check_protocol(num_episodes: int, num_steps: int, seed: int) -> None:
    """Raises EvaluationError unless these numbers are valid."""
    settings.check(_Protocol(num_episodes, num_steps, seed), EvaluationError)


def _play_batch(
    game: Game[Any],
    player: Player,
    index: np.ndarray,
    num_steps: int,
    seed: int,
    num_recorded: int,
    report: Callable[[int], None],
) -> tuple[Judged, tuple[Pytree, Answers]]:
    """The episodes of these indices: metrics, leaves [B, T], and recorded states and answers, leaves [n, T, …]."""
    boards = _begin(game, seed, index)
    candidates = range(1, max(1, min(num_steps, player.steps_per_call)) + 1)
    per_call = max(n for n in candidates if num_steps % n == 0)  # a divisor, so that one program is compiled
    parts = []
    for step in range(0, num_steps, per_call):
        boards, part = _advance(player.respond, game, per_call, num_recorded, player.params, boards, np.uint32(step))
        parts.append(jax.device_get(part))
        report(step + per_call)
    joined: tuple[Judged, tuple[Pytree, Answers]] = jax.tree.map(
        lambda *leaves: np.concatenate(leaves).swapaxes(0, 1), *parts
    )
    return joined


def _join(batches: list[Pytree], count: int) -> Pytree:
    """The first `count` rows of the concatenated batches."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *batches)


def as_recorded(states: Pytree, answers: Answers) -> Recorded:
    """A record of states and answers with leaves [n, T, …]."""
    responses = None
    if answers.responses is not None:
        responses = [[text.decode(response) for response in episode] for episode in np.asarray(answers.responses)]
    return Recorded(states, np.asarray(answers.actions), responses)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _advance(
    respond: Respond,
    game: Game[Any],
    num_steps: int,
    num_recorded: int,
    params: Pytree,
    boards: Boards,
    first_step: Array,
) -> tuple[Boards, tuple[Judged, tuple[Pytree, Answers]]]:
    """Some steps of a batch of episodes: metrics, leaves [T, B], and recorded states and answers, leaves [T, n, …]."""

    def advance(boards: Boards, step: Array) -> tuple[Boards, Any]:
        boards = renew(game, boards)
        answers = respond(params, game, boards.states, step_keys(boards.seeds, step)[1])
        shown = jax.tree.map(lambda leaf: leaf[:num_recorded], (boards.states, answers))
        boards, judged = take_step(game, boards, answers, step)
        return boards, (judged, shown)

    boards, part = lax.scan(advance, boards, first_step + jnp.arange(num_steps, dtype=jnp.uint32))
    return _over_devices(boards), jax.tree.map(lambda leaf: constrain(leaf, *[None] * leaf.ndim), part)


@functools.partial(jax.jit, static_argnums=0)
def _begin(game: Game[Any], seed: Array | int, index: np.ndarray) -> Boards:
    """`no_boards`, sharded over the mesh. It must run inside jit: arrays made outside are local to each process."""
    return _over_devices(no_boards(game, seed, index))


def _over_devices(boards: Boards) -> Boards:
    """Inside jit: shards the episodes over the devices, the same before and after a call."""
    return jax.tree.map(lambda leaf: constrain(leaf, BATCH, *[None] * (leaf.ndim - 1)), boards)


def _num_parts() -> int:
    """The number of shards of the batch axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH)


def take_step(game: Game[Any], boards: Boards, answers: Answers, step: Array) -> tuple[Boards, Judged]:
    """Applies the answers to the boards, none of which is over: the next boards and the step's metrics, leaves [B]."""
    keys, _ = step_keys(boards.seeds, step)
    states, results = jax.vmap(game.step)(boards.states, answers.actions, keys)
    judged = jax.vmap(functools.partial(judge, game))(boards.states, answers, results)
    return Boards(states, results.terminated, boards.seeds, boards.number), judged


def judge(game: Game[Any], state: Any, answer: Answers, result: StepResult) -> Judged:
    """The metrics of one step, from the state, the answer to it, and the result of the step."""
    is_invalid = (answer.actions < 0) | (answer.actions >= game.num_actions)
    judged = Judged(result.reward, result.is_legal, is_invalid, result.terminated, num_tokens=answer.num_tokens)
    if answer.responses is None:
        return judged
    response = answer.responses
    num_right = jnp.round(game.perception_cells(response, state) * (game.rows * game.cols)).astype(jnp.int32)
    num_bytes = jnp.max(jnp.where(response != 0, jnp.arange(1, response.shape[0] + 1, dtype=jnp.int32), 0))
    return dataclasses.replace(
        judged,
        is_exact=game.perception_exact(response, state),
        num_right=num_right,
        is_formatted=has_format(response),
        num_bytes=num_bytes,
    )


# Boards and random keys


def no_boards(game: Game[Any], seed: Array | int, index: np.ndarray) -> Boards:
    """The episodes of these indices, uint32[B], before their first step; `renew` makes their first boards."""
    size = len(index)
    shape = jax.eval_shape(game.reset, jax.random.key(0))
    states = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), shape)
    return Boards(states, jnp.ones(size, bool), _episode_seeds(seed, index), jnp.zeros(size, jnp.uint32))


@jax.jit
def _episode_seeds(seed: Array | int, index: Array | np.ndarray) -> Array:
    root = prng.seed_of(jax.random.key(seed))
    return jax.vmap(lambda episode: prng.bits(root, episode, 2))(index)


def step_keys(seeds: Array, step: Array) -> tuple[Key, Key]:
    """The keys of the game and of the player at a step: uint32[B, 2] -> key<fry>[B] each."""
    bits = jax.vmap(lambda seed: prng.bits(seed, step, 4))(seeds)
    return _as_keys(bits[:, :2]), _as_keys(bits[:, 2:])


def renew(game: Game[Any], boards: Boards) -> Boards:
    """Replaces the boards that are over by fresh ones; only these are computed."""
    states = renewed(game, boards.states, boards.is_over, boards.seeds, _FIRST_BOARD + boards.number)
    number = boards.number + boards.is_over.astype(jnp.uint32)
    return Boards(states, jnp.zeros_like(boards.is_over), boards.seeds, number)


def _as_keys(bits: Array) -> Key:
    return jax.random.wrap_key_data(bits, impl="threefry2x32")
