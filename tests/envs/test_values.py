"""States and games are values: the same under jax_enable_x64, and after pickle and deepcopy."""

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.teachers import teach
from tests.envs import helpers, toy

KEYS: dict[str, dict[str, Any]] = {
    "game_2048": {"rows": 3, "cols": 3},
    "shisen_sho": {"rows": 4, "cols": 4},
    "shisen_sho_cifar10": {"rows": 4, "cols": 4, "images": "digits"},
    "swap": {"rows": 4, "cols": 4, "colors": 3, "shapes": 2},
}
MODES: tuple[envs.AutoReset, ...] = ("none", "same_step", "next_step", "pool")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Compiles in half the time, and restores the settings."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_x64", False)


def played(game: envs.Game[Any], key: Any) -> Any:
    """All outputs of a game for a few moves of its teacher; to be traced."""

    def move(state: Any, key: Any) -> Any:
        action, rationale = teach(game, state, key)
        after, result = game.step(state, action, key)
        response = game.write_action(action)
        shown = (
            state,
            action,
            rationale,
            response,
            game.parse(response),
            game.describe(state),
            game.legal_actions(state),
        )
        drawn = game.expert(state, key), game.sample_action(state, key), game.sample_action(state, key, legal=False)
        seen = game.perception_exact(response, state), game.perception_cells(response, state), game.render(state)
        return after, (shown, drawn, seen, result, game.from_text(game.describe(state)))

    return jax.lax.scan(move, game.reset(key), jax.random.split(key, 4))[1]


def batched(vec: envs.VecEnv, key: Any) -> Any:
    state = vec.random_walk(vec.reset(key), key, 2)
    actions = vec.sample_actions(state, key)
    return state, actions, vec.step(state, actions, key), vec.branch(state, jnp.stack([actions] * 2, 1), key)


def in_both(function: Callable[[], Any]) -> tuple[Any, Any]:
    """Results of the function without and with 64-bit types."""
    plain = function()
    jax.config.update("jax_enable_x64", True)
    wide = function()
    jax.config.update("jax_enable_x64", False)
    return plain, wide


@pytest.mark.parametrize(
    "game_id", ["game_2048", *(pytest.param(name, marks=pytest.mark.slow) for name in KEYS if name != "game_2048")]
)
def test_a_game_plays_the_same_with_64_bit_types(game_id: str) -> None:
    game = envs.make(game_id, **KEYS[game_id])

    def play() -> Any:
        return jax.device_get(jax.jit(functools.partial(played, game))(jax.random.key(5)))

    helpers.assert_trees_equal(*in_both(play))


@pytest.mark.parametrize(
    ("game_id", "mode"),
    [
        *(("game_2048", mode) for mode in MODES),
        *(pytest.param(game_id, "pool", marks=pytest.mark.slow) for game_id in KEYS if game_id != "game_2048"),
    ],
)
def test_a_batch_has_the_same_types_with_64_bit_types(game_id: str, mode: envs.AutoReset) -> None:
    vec = envs.make_vec(envs.make(game_id, **KEYS[game_id]), 4, autoreset=mode, max_steps=3, pool_size=4)

    def types() -> Any:
        out = jax.eval_shape(functools.partial(batched, vec), jax.random.key(5))
        return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(out)]

    plain, wide = in_both(types)
    assert plain == wide
    assert not {np.dtype(dtype) for _, dtype, _ in wide} & {np.dtype("int64"), np.dtype("float64")}


COPIES: dict[str, Callable[[Any], Any]] = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("how", COPIES)
def test_states_and_keys_are_equal_after_a_copy(how: str) -> None:
    vec = envs.make_vec([toy.make(), toy.make(most=2)], 6, autoreset="pool", max_steps=3, pool_size=4)
    state = jax.jit(vec.reset)(jax.random.key(0))
    both = state, jax.random.split(jax.random.key(1), 3)
    again = COPIES[how](both)
    helpers.assert_trees_equal(jax.tree.map(_plain, again), jax.tree.map(_plain, both))


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("game_id", KEYS)
def test_used_games_and_batches_are_equal_after_a_copy(how: str, game_id: str) -> None:
    game = envs.make(game_id, **KEYS[game_id])
    jax.eval_shape(lambda key: game.render(game.reset(key)), jax.random.key(0))  # draws and caches its sprites
    vec = envs.make_vec(game, 4, autoreset="pool", max_steps=3)
    for value in (game, game.level, vec):
        again = COPIES[how](value)
        assert again == value
        assert hash(again) == hash(value)
    assert vec != envs.make_vec(game, 5, autoreset="pool", max_steps=3)
    assert vec != envs.make_vec(game, 4, max_steps=3)
