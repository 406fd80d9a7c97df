"""gymnax's interface: spaces, automatic reset, levels as parameters, and wrappers written for it."""

import dataclasses
import importlib.metadata
from collections.abc import Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.adapters import gymnax, spaces
from g1jax.adapters.gymnax import make
from tests.adapters import purejaxrl_style

SMALL: dict[str, dict[str, Any]] = {
    "game_2048": {"rows": 3, "cols": 3},
    "shisen_sho_cifar10": {"rows": 4, "cols": 4},
    "swap": {"rows": 4, "cols": 4},
}


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize(("game_id", "obs"), [*zip(SMALL, ("board", "pixels", "board"), strict=True)])
def test_step_is_the_step_of_the_game_and_resets_what_is_over(game_id: str, obs: Any) -> None:
    """Against the game stepped by hand: legal moves, until truncated after three."""
    env, params = make(game_id, obs=obs, max_steps=3, cell_size=8, **SMALL[game_id])
    legal_actions = jax.jit(env.legal_actions)
    assert (env.name, env.num_actions) == (game_id, env.game.num_actions)
    seen, state = env.reset(jax.random.key(0), params)
    for time in (1, 2, 3):
        action = jnp.argmax(legal_actions(state)).astype(jnp.int32)
        key = jax.random.key(time)
        game, result = jax.jit(env.game.step)(state.game, action, jax.random.split(key)[0])
        seen, state, reward, done, info = env.step(key, state, action, params)
        assert bool(reward == result.reward)
        assert bool(info["is_legal"])
        assert bool(info["truncated"]) == (time == 3 and not result.terminated)
        assert bool(done) == bool(info["truncated"] | info["terminated"])
        assert bool(info["discount"] == 0) == bool(result.terminated)
        assert int(state.time) == (0 if done else time)
        is_kept = all(jax.tree.leaves(jax.tree.map(np.array_equal, state.game, game)))
        assert is_kept == (not done)
        assert np.array_equal(info["legal_actions"], legal_actions(state))
        space = env.observation_space(params)
        assert (seen.shape, seen.dtype) == (space.shape, space.dtype)
        assert bool(space.contains(seen))
        if obs == "pixels":
            assert np.array_equal(seen, jax.jit(env.render)(state))
        else:
            assert np.array_equal(jnp.argmax(seen, axis=-1), env.game.cells(state.game))
    assert bool(done)


def test_an_episode_that_the_rules_end_is_terminated_even_at_the_time_limit() -> None:
    env, params = make("shisen_sho", rows=2, cols=2, colors=1, shapes=1, max_steps=2)
    _, state = env.reset(jax.random.key(0), params)
    for _ in range(2):
        action = jnp.argmax(env.legal_actions(state)).astype(jnp.int32)
        _, state, _, done, info = env.step(jax.random.key(1), state, action, params)
    assert (bool(done), bool(info["terminated"]), bool(info["truncated"])) == (True, True, False)
    assert float(info["discount"]) == 0
    assert not bool(state.game.terminated)


def test_six_values_have_the_observation_before_the_reset() -> None:
    env, params = make("game_2048", max_steps=1, step_api="terminated_truncated", rows=2, cols=2)
    state = gymnax.EnvState(game=env.game.from_text("2 | -\n- | -"), time=jnp.int32(0))
    seen, after, _, terminated, truncated, info = env.step(jax.random.key(1), state, 0, params)
    assert (bool(terminated), bool(truncated)) == (False, True)
    assert np.array_equal(info["final_observation"], env.get_obs(state))  # up is illegal and moves nothing
    assert np.array_equal(seen, env.get_obs(after))
    assert np.argmax(seen, axis=-1).astype(bool).sum() == 2
    last, raw, _, is_over, _ = env.step_env(jax.random.key(1), state, 0, params)
    assert (int(raw.time), bool(is_over)) == (1, False)
    assert np.array_equal(last, info["final_observation"])


def test_levels_change_without_recompiling_and_may_differ_within_a_batch() -> None:
    """A level holds from the next reset on, here after a step."""
    env, params = make("game_2048", max_steps=1, rows=2, cols=2)
    traces = 0

    @jax.jit
    def largest_tiles(params: gymnax.EnvParams) -> Any:
        nonlocal traces
        traces += 1
        keys = jax.random.split(jax.random.key(0), 8)
        _, state = jax.vmap(env.reset)(keys)
        _, state, *_ = jax.vmap(env.step, (0, 0, None, 0))(keys, state, jnp.int32(0), params)
        return 2 ** jnp.max(state.game.board, axis=(1, 2)).astype(jnp.int32)

    def stacked(*spawn_four: float) -> gymnax.EnvParams:
        level = jax.tree.map(lambda *x: jnp.stack(x), *(env.game.traced_level(spawn_four=p) for p in spawn_four))
        return dataclasses.replace(params, level=level, max_steps_in_episode=jnp.full(8, 1))

    assert largest_tiles(stacked(*[1.0] * 8)).tolist() == [4] * 8
    assert largest_tiles(stacked(*[0.0, 1.0] * 4)).tolist() == [2, 4] * 4
    assert traces == 1


def test_environments_are_values_and_params_are_optional() -> None:
    env, other = make("game_2048")[0], make("game_2048")[0]
    assert env == other
    assert hash(env) == hash(other)
    assert env != make("game_2048", obs="pixels")[0]
    key = jax.random.PRNGKey(0)  # a raw key, as PureJaxRL has
    seen, state = env.reset(key)
    assert np.array_equal(env.step(key, state, 1)[0], other.step(key, state, 1, other.default_params)[0])
    assert seen.shape == (4, 4, len(env.game.cell_names()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"obs": "pixel"}, "unknown obs 'pixel'; did you mean 'pixels'? Available: board, pixels"),
        ({"step_api": "old"}, "unknown step_api 'old'. Available: done, terminated_truncated"),
        ({"max_steps": 0}, "max_steps=0: an episode has at least one step"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(envs.InputError) as error:
        make("swap", **arguments)
    assert str(error.value) == message


def test_own_spaces() -> None:
    """What stands in for gymnax's where it is not installed."""
    actions, boards = spaces.Discrete(5), spaces.Box(0, 255, (2, 3), jnp.uint8)
    drawn = jax.vmap(actions.sample)(jax.random.split(jax.random.key(0), 100))
    assert set(drawn.tolist()) == set(range(5))
    assert [bool(actions.contains(jnp.int32(n))) for n in (-1, 0, 4, 5)] == [False, True, True, False]
    sample = boards.sample(jax.random.key(0))
    assert (sample.shape, sample.dtype) == ((2, 3), jnp.uint8)
    assert [bool(boards.contains(jnp.full((2, 3), n))) for n in (-1, 255, 256)] == [False, True, False]


def random_play(env: Any, params: Any, num_steps: int = 40) -> dict[str, np.ndarray[Any, Any]]:
    """The info of random steps in 4 environments, [T, 4]; `env` returns five values."""

    def step(state: Any, key: Any) -> Any:
        actions = jax.random.randint(key, (4,), 0, env.num_actions)
        _, state, reward, done, info = jax.vmap(env.step, (0, 0, 0, None))(
            jax.random.split(key, 4), state, actions, params
        )
        return state, {**info, "reward": reward, "done": done}

    with jax.numpy_dtype_promotion("standard"):  # gymnax's wrappers mix dtypes
        _, state = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 4), params)
        info = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), num_steps))[1]
    return {name: np.asarray(values) for name, values in info.items()}


def check_statistics(info: dict[str, np.ndarray[Any, Any]]) -> None:
    """Of each finished episode, the logged return is the sum of its rewards, and the length their number."""
    num_checked = 0
    for e in range(4):
        ends = np.flatnonzero(info["done"][:, e])
        for start, end in zip([0, *(ends[:-1] + 1)], ends, strict=True):
            assert info["returned_episode_returns"][end, e] == info["reward"][start : end + 1, e].sum()
            assert info["returned_episode_lengths"][end, e] == end + 1 - start
            num_checked += 1
    assert num_checked >= 8
    assert np.array_equal(info["returned_episode"], info["done"])


def test_episode_statistics_in_the_manner_of_purejaxrl() -> None:
    env, params = make("game_2048", max_steps=15, **SMALL["game_2048"])
    check_statistics(random_play(purejaxrl_style.LogWrapper(env), params))


@pytest.mark.parametrize("obs", get_args(gymnax.Observation))
def test_gymnaxs_own_wrappers(obs: Any) -> None:
    env, params = wrapped_by_gymnax("game_2048", obs=obs, max_steps=15, cell_size=8, **SMALL["game_2048"])
    assert env.observation_space(params).shape == (int(np.prod(env.reset(jax.random.key(0), params)[0].shape)),)
    check_statistics(random_play(env, params))


@pytest.mark.slow
def test_ppo_in_the_manner_of_purejaxrl_learns_through_gymnaxs_wrappers() -> None:
    """From -15 at random to about 2 in 300,000 steps; an illegal action costs 1 of 20, and 8 is the most."""
    env, params = wrapped_by_gymnax("shisen_sho", max_steps=20, rows=4, cols=4, colors=2, shapes=1)
    jax.config.update("jax_disable_most_optimizations", False)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        returns = purejaxrl_style.train(env, params, jax.random.PRNGKey(0), num_updates=150)
    assert returns[0] < -12
    assert returns[-10:].mean() > -2


def wrapped_by_gymnax(game_id: str, **settings: Any) -> tuple[Any, gymnax.EnvParams]:
    """The environment behind the installed gymnax's own wrappers, which PureJaxRL's are; returns five values."""
    wrappers = pytest.importorskip("gymnax.wrappers")
    has_six_values = int(importlib.metadata.version("gymnax").split(".")[0]) >= 1
    env, params = make(game_id, step_api="terminated_truncated" if has_six_values else "done", **settings)
    env = wrappers.LogWrapper(wrappers.FlattenObservationWrapper(env))
    if has_six_values:
        from gymnax.wrappers.compat import LegacyStepAPIWrapper

        env = LegacyStepAPIWrapper(env)
    return env, params
