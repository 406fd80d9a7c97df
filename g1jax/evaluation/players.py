"""Players on the device: random, the experts, and policies."""

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
from g1jax.rl.observation import PICTURE, Observation
from g1jax.rl.policy import Policy
from g1jax.teachers import token_budgets
from g1jax.typing import Array, Key, Pytree
from g1jax.vlm import Params, TokenBytes, count_params

_MAX_WIDE = 50_000_000  # parameters of a model whose caches of 1024 episodes fit any accelerator


def random_player() -> Player:
    """Samples uniformly from all actions, legal or not, like the paper's random player."""
    return Player("random", _respond_randomly, batch_size=2500)


def expert_player() -> Player:
    """Each game's scripted expert."""
    return Player("expert", _respond_as_expert, batch_size=500, steps_per_call=10)


def policy_player(
    policy: Policy,
    params: Params,
    table: TokenBytes | None = None,
    *,
    name: str = "policy",
    batch_size: int | None = None,
    steps_per_call: int | None = None,
    given_perception: bool = False,
    appearance: "Appearance | None" = None,
) -> Player:
    """A policy with these weights. Calls with an equal policy share compiled programs, also during training.

    Args:
        policy: The static part of the policy.
        params: Its weights.
        table: The bytes of its tokens; computed if None.
        name: The player's name in results.
        batch_size: Episodes in a batch, at most. Default: 64; 1024 on an accelerator for a model of up to 50M params.
        steps_per_call: Steps of one compiled call, at most. Default: 1; 10 where a batch has 1024 episodes.
        given_perception: Whether each response starts with the true perception, which the policy continues. This
            measures its reasoning without errors of perception.
        appearance: Renders the boards at another appearance.
    """
    if table is None:
        table = policy.table()
    shown, traced = (None, {}) if appearance is None else (appearance.shown, dict(appearance.traced))
    respond = _PolicyRespond(policy, given_perception, shown)
    is_wide = jax.default_backend() != "cpu" and count_params(policy.config) <= _MAX_WIDE
    batch_size = batch_size or (1024 if is_wide else 64)
    steps_per_call = steps_per_call or (10 if is_wide else 1)
    return Player(name, respond, (params, table, traced), batch_size, steps_per_call)


def prepared(policy: Policy, temperature: float, games: Sequence[Game[Any]]) -> Policy:
    """The policy for evaluation: at this temperature, with a token budget for each of these games."""
    sampling = dataclasses.replace(policy.sampling, temperature=temperature)
    budgets = policy.budgets if policy.budget else token_budgets(policy.tokenizer, games, policy.budgets)
    return dataclasses.replace(policy, sampling=sampling, budgets=budgets)


def observation_of(player: Player) -> Observation:
    """What a player is shown; the default for players that are not policies."""
    return player.respond.policy.observation if isinstance(player.respond, _PolicyRespond) else PICTURE


@dataclass(frozen=True, eq=False)
class Appearance:
    """Another appearance of a game's boards; the rules and the states stay the same."""

    shown: Game[Any]
    """Renders the boards: the game at a level that differs only in appearance."""
    traced: Mapping[str, Array]
    """Traced keys of its level, so that one compiled program covers all values."""


def _respond_randomly(params: Pytree, game: Game[Any], states: Pytree, keys: Key, /) -> Answers:
    return Answers(jax.vmap(lambda state, key: game.sample_action(state, key, legal=False))(states, keys))


def _respond_as_expert(params: Pytree, game: Game[Any], states: Pytree, keys: Key, /) -> Answers:
    return Answers(jax.vmap(game.expert)(states, keys))


@dataclass(frozen=True)
class _PolicyRespond:
    policy: Policy
    given_perception: bool
    shown: Game[Any] | None  # renders the boards, if not the game that is played

    def __call__(self, params: Pytree, game: Game[Any], states: Pytree, keys: Key, /) -> Answers:
        weights, table, traced = params
        shown = self.shown or game

        def render(state: Any) -> Array:
            level = dataclasses.replace(state.level, appearance=dataclasses.replace(state.level.appearance, **traced))
            return shown.render(dataclasses.replace(state, level=level))

        frames = jax.vmap(render)(states)
        starts = _true_perceptions(self.policy, game, states) if self.given_perception else None
        boards = self.policy.boards(game, states)
        responses = self.policy.respond(weights, table, shown, frames, keys, starts=starts, boards=boards)
        num_tokens = jnp.sum(responses.mask.astype(jnp.int32), axis=-1)
        return Answers(jax.vmap(game.parse)(responses.bytes), responses.bytes, num_tokens)


def _true_perceptions(policy: Policy, game: Game[Any], states: Pytree) -> tuple[Array, Array]:
    """The tokens of the true perceptions and their mask: int32[B, S], bool[B, S]. Encoded on the host at every step."""
    max_tokens = _max_perception_tokens(policy, game)

    def encode(boards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        texts = [_perception(text.decode(board)) for board in np.asarray(boards)]
        tokens = np.zeros((len(texts), max_tokens), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for i, ids in enumerate(policy.tokenizer.encode_batch(texts)):
            if len(ids) > max_tokens:
                raise ValueError(f"a board of {game.id} takes {len(ids)} tokens; the estimated limit is {max_tokens}")
            tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
        return tokens, mask

    boards = jax.vmap(game.describe)(states)
    shape = (boards.shape[0], max_tokens)
    shapes = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)
    out: tuple[Array, Array] = jax.pure_callback(encode, shapes, boards)
    return out


def _perception(board: str) -> str:
    return tagged(PERCEPTION, board)


def _max_perception_tokens(policy: Policy, game: Game[Any]) -> int:
    """A bound for the perception of any board: the longest board of a single kind, plus a quarter."""
    rows = [CELL_SEPARATOR.join([name] * game.cols) for name in game.cell_names()]
    boards = [_perception("\n".join([row] * game.rows)) for row in rows]
    return math.ceil(1.25 * max(map(len, policy.tokenizer.encode_batch(boards))))
