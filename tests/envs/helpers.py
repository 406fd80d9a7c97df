"""Helpers for the tests of g1jax.envs."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from g1jax import envs
from g1jax.typing import Array, ArrayLike, Pytree

Board = list[list[int]]


def keys(num: int, seed: int = 0) -> Array:
    return jax.random.split(jax.random.key(seed), num)


def to_lists(boards: ArrayLike) -> list[Board]:
    """int[n, R, C] -> n boards."""
    return [[[int(cell) for cell in row] for row in board] for board in np.asarray(boards)]


def row(tree: Pytree, *index: Any) -> Pytree:
    """One row of a batched tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def stack(trees: Sequence[Pytree]) -> Pytree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def assert_trees_equal(actual: Pytree, expected: Pytree) -> None:
    assert str(jax.tree.structure(actual)) == str(jax.tree.structure(expected))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


def assert_fits(counts: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    """Chi-square test: fails at five standard deviations above the mean."""
    observed, wanted = np.asarray(counts, np.float64).reshape(-1), np.asarray(expected, np.float64).reshape(-1)
    assert observed.shape == wanted.shape
    assert (observed[wanted == 0] == 0).all(), "an impossible outcome occurred"
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert wanted.min() >= 5, "too few draws for a chi-square"
    statistic, degrees = ((observed - wanted) ** 2 / wanted).sum(), len(wanted) - 1
    assert statistic < degrees + 5 * np.sqrt(2 * degrees) + 5, (observed, wanted)


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which fails if it is traced a second time: its callers must compile only once."""
    traces = itertools.count()

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        assert next(traces) == 0, f"{function.__name__} is recompiled"
        return function(*args)

    return run


@functools.cache
def make(game_id: str, **keys: Any) -> Any:
    """A game, with the shipped digits as its pictures."""
    if game_id == "shisen_sho_cifar10":
        keys = {"images": "digits"} | keys
    return envs.make(game_id, **keys)


# Playing

POLICIES = ("any", "legal", "random", "expert")
"""`any`: half of the moves are legal, the others any number from -1 to `num_actions + 1`."""


@dataclasses.dataclass(frozen=True)
class Played:
    """Every move of some games; leaves [games, steps, …]."""

    states: Any
    actions: Any  # int32
    keys: Any
    after: Any
    results: Any

    def by(self, policy: str, most: int | None = None) -> "Played":
        """The games of a policy, or the first `most` of these."""
        chosen = np.flatnonzero(np.asarray(self.states.seed)[:, 0] % len(POLICIES) == POLICIES.index(policy))[:most]
        assert len(chosen) >= 4
        return self._map(lambda leaf: leaf[chosen])

    def flat(self) -> "Played":
        """All moves; leaves [games · steps, …]."""
        return self._map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]))

    def _map(self, function: Callable[[Any], Any]) -> "Played":
        fields = (getattr(self, f.name) for f in dataclasses.fields(self))
        return Played(*(jax.tree.map(function, field) for field in fields))


@functools.cache
def play(game: envs.Game[Any], num_games: int, num_steps: int) -> Played:
    """Plays games, with all policies in one program; the seed of a game determines its policy."""

    def choose(state: Any, key: Array) -> Array:
        legal_key, any_key, coin_key = jax.random.split(key, 3)
        legal = game.sample_action(state, legal_key)
        wild = jax.random.randint(any_key, (), -1, game.num_actions + 2, jnp.int32)
        half = jnp.where(jax.random.bernoulli(coin_key), legal, wild)
        chosen = [half, legal, game.sample_action(state, any_key, legal=False), game.expert(state, key)]
        return jnp.stack(chosen)[state.seed % len(chosen)]

    def move(state: Any, key: Array) -> tuple[Any, Any]:
        action_key, step_key = jax.random.split(key)
        action = choose(state, action_key)
        after, result = game.step(state, action, step_key)
        return after, (state, action, step_key, after, result)

    def one_game(key: Array) -> Any:
        reset_key, move_key = jax.random.split(key)
        return jax.lax.scan(move, game.reset(reset_key), jax.random.split(move_key, num_steps))[1]

    # It computes more than it compiles, unlike most of what tests run: see `tests/__init__.py`.
    options = {"xla_backend_optimization_level": 1}
    return Played(*jax.jit(jax.vmap(one_game), compiler_options=options)(keys(num_games)))
