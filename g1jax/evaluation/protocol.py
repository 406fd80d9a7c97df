"""Playing for the record: the paper's protocol, on the device, for any player.

An episode is a fixed number of steps; a board that ends within them is followed by a fresh one. Every episode draws
from words of its own, made of the seed and its index alone, and these say what its n-th board is and what chance does
at its t-th step. So all players meet the same boards and the same chance, and neither the batch size nor the number of
steps a call changes a figure.

Under `jax.set_mesh` the episodes of a batch are split over the mesh, over several processes too: all of them call
`play` alike, and each gets all that happened.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from g1jax import settings
from g1jax.envs import prng, text
from g1jax.envs.batch import EPISODE_STEPS, renewed
from g1jax.envs.core import Game, StepResult
from g1jax.errors import EvaluationError
from g1jax.rl.rewards import has_format
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm.sharding import BATCH, constrain

_FIRST_BOARD = np.uint32(1 << 31)  # draws from here on make boards, those below are steps
_RAW_SCORE = ("game_2048",)
_ONE_BOARD = ("shisen_sho", "shisen_sho_cifar10")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """What a player says to each state. Who writes nothing, as the random player, gives actions alone."""

    actions: Array  # int32[B]
    responses: Array | None = None  # uint8[B, L], zero-padded
    num_tokens: Array | None = None  # int32[B]


class Respond(Protocol):
    """How a player answers: a pure function, traced once a game, so its arrays come as arguments."""

    def __call__(self, params: Pytree, game: Game[Any], states: Pytree, keys: Key, /) -> Answers:
        """Answers to states, leaves [B, …], with a key for each: key<fry>[B]."""


@dataclass(frozen=True)
class Player:
    """A player on the device. Two players with an equal `respond` share compiled programs, whatever their params."""

    name: str
    respond: Respond
    params: Pytree = ()
    batch_size: int = 2048
    """Episodes at a time, at most."""
    steps_per_call: int = EPISODE_STEPS
    """Steps of one compiled program, at most; progress is told after each."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Boards:
    """Episodes under way. A board that has ended stands until the next step begins, and is then replaced."""

    states: Pytree  # leaves [B, …]
    is_over: Array  # bool[B]
    words: Array  # uint32[B, 2], what an episode's chance is drawn from
    number: Array  # uint32[B], boards of the episode so far


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Judged:
    """What is known of a step. Of the last five, what a player does not write is None."""

    reward: Array  # float32[]
    is_legal: Array  # bool[]
    is_invalid: Array  # bool[], the answer is unreadable
    is_end: Array  # bool[], the step ended the board
    is_exact: Array | None = None  # bool[], the perception is the true board text
    num_right: Array | None = None  # int32[], cells that the perception names rightly
    is_formatted: Array | None = None  # bool[], all six tags
    num_bytes: Array | None = None  # int32[], of the response
    num_tokens: Array | None = None  # int32[]


@dataclass(frozen=True, eq=False)
class Recorded:
    """All that happened in some episodes: the first n. On the host."""

    states: Pytree  # leaves [n, T, …], as shown to the player
    actions: np.ndarray  # int32[n, T]
    responses: list[list[str]] | None  # [n][T]


@dataclass(frozen=True, eq=False)
class Episodes:
    """What a player did in E episodes of T steps of one game. On the host."""

    game: Game[Any]
    seed: int
    steps: Judged  # leaves np.ndarray[E, T]
    recorded: Recorded | None = None

    @property
    def score(self) -> np.ndarray:
        """What the paper counts, by step: float64[E, T]."""
        return step_score(self.game, self.steps)


Progress = Callable[[int, int], None]
"""Called with the steps played so far and those there will be, all episodes together."""


def counts_score(game: Game[Any]) -> bool:
    """Whether the paper counts this game's raw score; of the others it counts the steps with a reward above 0."""
    return game.id in _RAW_SCORE


def ends_by_itself(game: Game[Any]) -> bool:
    """Whether the paper's score of this game is that of one board: the pairs found before it ends."""
    return game.id in _ONE_BOARD


def step_score(game: Game[Any], steps: Judged) -> np.ndarray:
    """What the steps count: float64, of the shape of the steps. The penalty of an unreadable answer is no score."""
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
    """Plays `num_episodes` episodes, and keeps all of the first `num_recorded` to be looked at.

    Raises:
        EvaluationError: fewer than one episode or step, or a seed that is none.
    """
    check_protocol(num_episodes, num_steps, seed)
    num_batches = -(-num_episodes // (batch_size or player.batch_size))
    parts = _num_parts()
    size = -(-num_episodes // (num_batches * parts)) * parts  # even batches; what the last has too many is dropped
    num_recorded = min(num_recorded, num_episodes)
    judged, shown = [], []
    for first in range(0, num_episodes, size):
        index = np.arange(first, first + size, dtype=np.uint32)

        def tell(step: int, first: int = first) -> None:
            if on_progress:
                done = first * num_steps + min(size, num_episodes - first) * step
                on_progress(done, num_episodes * num_steps)

        batch = _play_batch(game, player, index, num_steps, seed, min(num_recorded, size), tell)
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
    """Raises EvaluationError for what cannot be played."""
    settings.check(_Protocol(num_episodes, num_steps, seed), EvaluationError)


def _play_batch(
    game: Game[Any],
    player: Player,
    index: np.ndarray,
    num_steps: int,
    seed: int,
    num_recorded: int,
    tell: Callable[[int], None],
) -> tuple[Judged, tuple[Pytree, Answers]]:
    """The episodes of some indices: what was judged, leaves [B, T], and what was shown and said, leaves [n, T, …]."""
    boards = _begin(game, seed, index)
    fits = range(1, max(1, min(num_steps, player.steps_per_call)) + 1)
    per_call = max(n for n in fits if num_steps % n == 0)  # one length of call, so one program
    parts = []
    for step in range(0, num_steps, per_call):
        boards, part = _advance(player.respond, game, per_call, num_recorded, player.params, boards, np.uint32(step))
        parts.append(jax.device_get(part))
        tell(step + per_call)
    joined: tuple[Judged, tuple[Pytree, Answers]] = jax.tree.map(
        lambda *leaves: np.concatenate(leaves).swapaxes(0, 1), *parts
    )
    return joined


def _join(batches: list[Pytree], count: int) -> Pytree:
    """One batch after another, and of them the first `count`."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *batches)


def as_recorded(states: Pytree, answers: Answers) -> Recorded:
    """What is kept of episodes, of leaves [n, T, …]."""
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
    """Some steps of a batch of episodes; leaves [T, B, …], and [T, n, …] of what is recorded."""

    def advance(boards: Boards, step: Array) -> tuple[Boards, Any]:
        boards = renew(game, boards)
        answers = respond(params, game, boards.states, step_keys(boards.words, step)[1])
        shown = jax.tree.map(lambda leaf: leaf[:num_recorded], (boards.states, answers))
        boards, judged = take_step(game, boards, answers, step)
        return boards, (judged, shown)

    boards, part = lax.scan(advance, boards, first_step + jnp.arange(num_steps, dtype=jnp.uint32))
    return _over_devices(boards), jax.tree.map(lambda leaf: constrain(leaf, *[None] * leaf.ndim), part)


@functools.partial(jax.jit, static_argnums=0)
def _begin(game: Game[Any], seed: Array | int, index: np.ndarray) -> Boards:
    """As `no_boards`, on the mesh: arrays made outside of a program would be each process's own."""
    return _over_devices(no_boards(game, seed, index))


def _over_devices(boards: Boards) -> Boards:
    """Within a jit: each device has its part of the episodes, the same before and after a call."""
    return jax.tree.map(lambda leaf: constrain(leaf, BATCH, *[None] * (leaf.ndim - 1)), boards)


def _num_parts() -> int:
    """How many devices, or groups of them, the episodes of a batch are split over."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH)


def take_step(game: Game[Any], boards: Boards, answers: Answers, step: Array) -> tuple[Boards, Judged]:
    """What the answers to the boards, none of them over, lead to, and what is known of the step: leaves [B]."""
    keys, _ = step_keys(boards.words, step)
    states, results = jax.vmap(game.step)(boards.states, answers.actions, keys)
    judged = jax.vmap(functools.partial(judge, game))(boards.states, answers, results)
    return Boards(states, results.terminated, boards.words, boards.number), judged


def judge(game: Game[Any], state: Any, answer: Answers, result: StepResult) -> Judged:
    """One step: the state that was shown, what was answered, and what came of it."""
    is_invalid = (answer.actions < 0) | (answer.actions >= game.num_actions)
    judged = Judged(result.reward, result.is_legal, is_invalid, result.terminated, num_tokens=answer.num_tokens)
    if answer.responses is None:
        return judged
    response = answer.responses
    num_right = jnp.round(game.perception_cells(response, state) * (game.rows * game.cols)).astype(jnp.int32)
    num_bytes = jnp.max(jnp.where(response != 0, jnp.arange(1, response.shape[0] + 1, dtype=jnp.int32), 0))
    return Judged(
        result.reward,
        result.is_legal,
        is_invalid,
        result.terminated,
        game.perception_exact(response, state),
        num_right,
        has_format(response),
        num_bytes,
        answer.num_tokens,
    )


# Where chance comes from


def no_boards(game: Game[Any], seed: Array | int, index: np.ndarray) -> Boards:
    """The episodes of these indices, uint32[B], before their first step: their boards are yet to be made by `renew`."""
    size = len(index)
    shape = jax.eval_shape(game.reset, jax.random.key(0))
    states = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), shape)
    return Boards(states, jnp.ones(size, bool), _words(seed, index), jnp.zeros(size, jnp.uint32))


@jax.jit
def _words(seed: Array | int, index: Array | np.ndarray) -> Array:
    root = prng.seed_of(jax.random.key(seed))
    return jax.vmap(lambda episode: prng.words(root, episode, 2))(index)


def step_keys(words: Array, step: Array) -> tuple[Key, Key]:
    """For the game and for the player at a step, of every episode's words uint32[B, 2]: key<fry>[B] each."""
    drawn = jax.vmap(lambda words: prng.words(words, step, 4))(words)
    return _as_keys(drawn[:, :2]), _as_keys(drawn[:, 2:])


def renew(game: Game[Any], boards: Boards) -> Boards:
    """Fresh boards in place of those that are over; only these are computed."""
    states = renewed(game, boards.states, boards.is_over, boards.words, _FIRST_BOARD + boards.number)
    number = boards.number + boards.is_over.astype(jnp.uint32)
    return Boards(states, jnp.zeros_like(boards.is_over), boards.words, number)


def _as_keys(words: Array) -> Key:
    return jax.random.wrap_key_data(words, impl="threefry2x32")
