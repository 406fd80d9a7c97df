"""Players on the device: chance, the experts, and policies."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax.envs import text
from g1jax.envs.core import Game
from g1jax.envs.response import PERCEPTION, tagged
from g1jax.envs.text import CELL_SEPARATOR
from g1jax.evaluation.protocol import Answers, Player
from g1jax.rl.policy import Policy
from g1jax.teachers import token_budgets
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params, TokenBytes


def random_player() -> Player:
    """Draws evenly from all actions, legal or not, as the paper's random player does."""
    return Player("random", _respond_randomly, batch_size=2500)


def expert_player() -> Player:
    """The scripted player that every game brings."""
    return Player("expert", _respond_as_expert, batch_size=500, steps_per_call=10)


def policy_player(
    policy: Policy,
    params: Params,
    table: TokenBytes | None = None,
    *,
    name: str = "policy",
    batch_size: int = 64,
    steps_per_call: int = 1,
    sees: bool = False,
    looks: "Appearance | None" = None,
) -> Player:
    """A policy with these weights. Calls for the same policy share compiled programs: made for use while it learns.

    If it `sees`, its responses begin with the true perception, and it goes on from there: what would it do if it saw
    everything rightly? With `looks`, it is shown the boards as these have them.
    """
    if table is None:
        table = policy.table()
    shown, traced = (None, {}) if looks is None else (looks.shown, dict(looks.traced))
    return Player(name, _PolicyRespond(policy, sees, shown), (params, table, traced), batch_size, steps_per_call)


def prepared(policy: Policy, temperature: float, games: Sequence[Game[Any]]) -> Policy:
    """The policy as it is evaluated: at a temperature, and with a token budget for each of these games too."""
    sampling = dataclasses.replace(policy.sampling, temperature=temperature)
    missing = [game for game in games if not policy.budget and game not in dict(policy.budgets)]
    budgets = policy.budgets + token_budgets(policy.tokenizer, missing)
    return dataclasses.replace(policy, sampling=sampling, budgets=budgets)


@dataclass(frozen=True, eq=False)
class Appearance:
    """Other looks for the boards of a game: they mean the same, and go on as they would."""

    shown: Game[Any]
    """The game at a level that differs in looks alone; it shows the boards."""
    traced: Mapping[str, Array]
    """Traced keys of its level, so that one compiled program shows them all."""


def _respond_randomly(params: Pytree, game: Game[Any], states: Pytree, keys: Key, /) -> Answers:
    return Answers(jax.vmap(lambda state, key: game.sample_action(state, key, legal=False))(states, keys))


def _respond_as_expert(params: Pytree, game: Game[Any], states: Pytree, keys: Key, /) -> Answers:
    return Answers(jax.vmap(game.expert)(states, keys))


@dataclass(frozen=True)
class _PolicyRespond:
    policy: Policy
    sees: bool
    shown: Game[Any] | None  # that shows the boards, if another than the one played

    def __call__(self, params: Pytree, game: Game[Any], states: Pytree, keys: Key, /) -> Answers:
        weights, table, traced = params
        shown = self.shown or game
        frames = jax.vmap(lambda state: shown.render(_relooked(state, traced)))(states)
        starts = _true_perceptions(self.policy, game, states) if self.sees else None
        said = self.policy.respond(weights, table, shown, frames, keys, starts=starts)
        num_tokens = jnp.sum(said.mask.astype(jnp.int32), axis=-1)
        return Answers(jax.vmap(game.parse)(said.bytes), said.bytes, num_tokens)


def _relooked(state: Any, traced: Mapping[str, Array]) -> Any:
    return dataclasses.replace(state, level={**state.level, **traced})


def _true_perceptions(policy: Policy, game: Game[Any], states: Pytree) -> tuple[Array, Array]:
    """The tokens of the true perceptions: int32[B, S], bool[B, S]. They are made on the host, step by step."""
    room = _most_tokens(policy, game)

    def encode(boards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        texts = [_perception(text.decode(board)) for board in np.asarray(boards)]
        tokens = np.zeros((len(texts), room), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for i, said in enumerate(policy.tokenizer.encode_batch(texts)):
            if len(said) > room:
                raise ValueError(f"a board of {game.id} takes {len(said)} tokens, more than the {room} foreseen")
            tokens[i, : len(said)], mask[i, : len(said)] = said, True
        return tokens, mask

    boards = jax.vmap(game.describe)(states)
    shape = (boards.shape[0], room)
    shapes = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)
    out: tuple[Array, Array] = jax.pure_callback(encode, shapes, boards)
    return out


def _perception(board: str) -> str:
    return tagged(PERCEPTION, board)


def _most_tokens(policy: Policy, game: Game[Any]) -> int:
    """Room for the perception of any board: what the longest takes that is all of one kind, and a quarter more."""
    rows = [CELL_SEPARATOR.join([name] * game.cols) for name in game.cell_names()]
    boards = [_perception("\n".join([row] * game.rows)) for row in rows]
    return math.ceil(1.25 * max(map(len, policy.tokenizer.encode_batch(boards))))
