"""One game as a `gymnasium.Env`: Gymnasium's own checks, and play compared with the game's functions."""

import copy
import pickle
import sys
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from g1jax import envs
from g1jax.adapters.gymnasium import GameEnv, register
from g1jax.envs import registry, text
from g1jax.envs.games.game_2048 import Game2048
from g1jax.errors import InputError, LevelError
from tests.adapters.helpers import STAY, TINY, assert_equal, make


@pytest.mark.parametrize(
    ("name", "observation"), [*((name, "both") for name in TINY), ("Game2048", "frame"), ("Game2048", "board")]
)
def test_gymnasium_has_no_complaints(name: str, observation: str) -> None:
    env = make(name, observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped)  # warnings are errors
    env.close()


def test_it_plays_as_the_game_does() -> None:
    """Shisen-Sho has no chance after the reset, so the game's own functions say what every step gives."""
    env, game = make("ShisenSho", render_mode="rgb_array"), envs.make("shisen_sho", **TINY["ShisenSho"])
    observation, info = env.reset(seed=3)
    state, step = game.from_text(info["board_text"]), jax.jit(game.step)
    generator, num_steps, ended = np.random.default_rng(0), 0, False
    while not ended:
        legal = np.flatnonzero(game.legal_actions(state))
        np.testing.assert_array_equal(np.flatnonzero(info["action_mask"]), legal)
        np.testing.assert_array_equal(observation["board"], game.cells(state))
        assert observation in env.observation_space
        action = generator.choice(legal) if generator.random() < 0.7 else generator.integers(game.num_actions)
        state, result = step(state, np.int32(action), jax.random.key(0))
        observation, reward, ended, truncated, info = env.step(action)
        assert (reward, ended, truncated) == (float(result.reward), bool(result.terminated), False)
        assert (info["is_legal"], info["board_text"]) == (result.is_legal, text.decode(game.describe(state)))
        num_steps += 1
    assert num_steps > 5
    assert not info["action_mask"].any()
    np.testing.assert_array_equal(env.render(), observation["frame"])
    assert env.step(0)[1] == 0.0


@pytest.mark.parametrize(("keys", "length"), [({"max_steps": 3}, 3), ({}, 100), ({"max_steps": None}, 999)])
def test_an_episode_is_cut_at_max_steps(keys: dict[str, Any], length: int) -> None:
    env = make(**keys)
    env.reset(seed=0)
    truncated = [env.step(STAY)[3] for _ in range(102)]
    assert truncated == [step >= length for step in range(1, 103)]


def test_a_seed_makes_an_episode() -> None:
    env, other = make(), make()

    def episode(env: Any, seed: int | None) -> Any:
        return [env.reset(seed=seed), *(env.step(i % 4) for i in range(8))]

    first = episode(env, 5)
    assert_equal(first, episode(other, 5))
    following = episode(env, None)
    assert_equal(following, episode(other, None))
    assert_equal(episode(env, 5), first)
    boards = [[step[-1]["board_text"] for step in steps] for steps in (first, following, episode(env, 6))]
    assert boards[0] != boards[1] != boards[2] != boards[0]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_with_the_episode(duplicate: Any) -> None:
    env = make()
    env.reset(seed=0)
    env.step(0)
    other = duplicate(env)
    assert_equal(
        [env.step(i % 4) for i in range(5)] + [env.reset()], [other.step(i % 4) for i in range(5)] + [other.reset()]
    )


def test_arrays_stay_on_the_device_if_asked_to() -> None:
    env, other = make(arrays="jax"), make()
    here, there = other.reset(seed=0), env.reset(seed=0)
    assert all(isinstance(leaf, jax.Array) for leaf in (*there[0].values(), there[1]["action_mask"]))
    assert all(type(leaf) is np.ndarray and leaf.flags.writeable for leaf in here[0].values())
    assert_equal(here, there)
    assert_equal(other.step(1), env.step(1))
    assert type(env.step(1)[1]) is float


def test_info_has_what_is_asked_for() -> None:
    env = make(action_mask=False, board_text=False)
    assert env.reset(seed=0)[1] == {}
    assert set(env.step(0)[4]) == {"is_legal"}


def test_masks_are_those_of_the_action_space() -> None:
    env = make()
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(5):
        *_, info = env.step(env.action_space.sample(info["action_mask"]))
        assert info["is_legal"]


def test_a_window_needs_pygame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.warns(UserWarning, match="HumanRendering wrapper is being applied"):
        env = make(render_mode="human")
    with pytest.raises(gymnasium.error.DependencyNotInstalled, match="pip install"):
        env.reset(seed=0)


def test_a_window_shows_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    pygame = pytest.importorskip("pygame")
    env = gymnasium.wrappers.HumanRendering(make(render_mode="rgb_array", observation="frame"))
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(pygame.surfarray.array3d(env.window).transpose(1, 0, 2), observation)
    env.close()


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"observation": "pixels"}, InputError, "unknown observation 'pixels'"),
        ({"arrays": "torch"}, InputError, "unknown arrays 'torch'"),
        ({"render_mode": "ansi"}, InputError, "render_mode='ansi'"),
        ({"rows": 4, "colours": 3}, LevelError, "did you mean 'colors'"),
        ({"preset": "bose"}, LevelError, "did you mean 'base'"),
        ({"max_steps": 0}, LevelError, "max_steps=0"),
    ],
)
def test_wrong_options_are_named(keys: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GameEnv("swap", **keys)


def test_wrong_calls_are_named() -> None:
    env = make().unwrapped
    with pytest.raises(InputError, match=r"call reset\(\) first"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(InputError, match="action: float64"):
        env.step(0.5)


def test_own_games_and_presets() -> None:
    class Long(Game2048):
        id = "long_2048"

    envs.register(Long)
    name = register(Long)
    assert name == "g1jax/Long-v0"
    env = gymnasium.make(name, rows=2, cols=8, cell_size=4, observation="board")
    assert env.reset(seed=0)[0].shape == (2, 8)
    del registry._GAMES["long_2048"], gymnasium.registry[name]
    assert gymnasium.make("g1jax/Swap-v0", preset="base+noisy").unwrapped.game.level.appearance.noise > 0
