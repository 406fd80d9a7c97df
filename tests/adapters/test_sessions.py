"""Sessions computed together against the game played alone."""

import concurrent.futures
import io
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from g1jax import envs
from g1jax.adapters import sessions
from g1jax.adapters.sessions import Device
from g1jax.envs import text
from g1jax.errors import InputError
from tests.envs import helpers

GAME = envs.make("game_2048")
RESET, STEP = jax.jit(GAME.reset), jax.jit(GAME.step)
NUM_STEPS = 6


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    device = Device(GAME)
    yield device
    device.close()


def alone(seed: int, actions: list[int]) -> tuple[Any, list[float]]:
    """The last state and the rewards of an episode played by itself."""
    state, rewards = RESET(jax.random.key(seed)), []
    for number, action in enumerate(actions):
        state, result = STEP(state, action, jax.random.fold_in(jax.random.key(seed), number))
        rewards.append(float(result.reward))
    return state, rewards


def test_many_sessions_at_once_play_as_each_alone(device: Device) -> None:
    seeds = list(range(24))
    moves = {seed: np.random.default_rng(seed).integers(0, 4, NUM_STEPS).tolist() for seed in seeds}

    def play(seed: int) -> tuple[sessions.Seen, list[float]]:
        seen, rewards = device.reset(seed).result(), []
        for number, action in enumerate(moves[seed]):
            move = action if number % 2 else f"<think>…</think><answer> {action} </answer>"
            seen = device.step(seen.state, move, seed=seed, number=number).result()
            rewards.append(seen.reward)
        return seen, rewards

    with concurrent.futures.ThreadPoolExecutor(len(seeds)) as pool:
        played = dict(zip(seeds, pool.map(play, seeds), strict=True))
    for seed in seeds:
        seen, rewards = played[seed]
        state, expected = alone(seed, moves[seed])
        assert rewards == expected
        helpers.assert_trees_equal(seen.state, jax.device_get(state))
        assert seen.board == text.decode(GAME.describe(state))
        assert seen.legal_actions == tuple(np.flatnonzero(GAME.legal_actions(state)))
        np.testing.assert_array_equal(Image.open(io.BytesIO(seen.png())), GAME.render(state))


def test_actions_from_one_state_leave_it_as_it_is_and_share_what_is_random(device: Device) -> None:
    first = device.reset(3).result()
    before = jax.tree.map(np.copy, first.state)
    results = [device.step(first.state, action, seed=3, number=0) for action in (0, 1, 0)]
    left, _, again = (result.result() for result in results)
    helpers.assert_trees_equal(left.state, again.state)
    helpers.assert_trees_equal(first.state, before)


def test_more_requests_than_a_batch_holds(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_SIZES", (1, 8))
    boards = [future.result().board for future in [device.reset(seed % 7) for seed in range(50)]]
    assert boards == [boards[seed % 7] for seed in range(50)]
    assert len(set(boards[:7])) > 4


@pytest.mark.parametrize("action", [-1, 4, 2**40, -(2**70), "no answer", "<answer>4</answer>", "<answer>", ""])
def test_an_invalid_action_is_a_move_not_an_error(device: Device, action: int | str) -> None:
    first = device.reset(1).result()
    seen = device.step(first.state, action, seed=1, number=0).result()
    assert not seen.is_legal
    assert seen.board == first.board


@given(
    st.lists(st.sampled_from(["<answer>", "</answer>", "<think>", "1", "(0, 1)", " ", "\n", "x" * 300, "é", "\ud800"]))
)
def test_the_part_that_is_cut_out_is_parsed_as_the_whole_response(pieces: list[str]) -> None:
    game = envs.make("swap")
    response = "".join(pieces)
    part = sessions._answer_of(game, response)
    assert (part if isinstance(part, int) else int(game.parse(part))) == int(game.parse(response))


def test_an_error_reaches_its_own_batch_only(device: Device) -> None:
    first = device.reset(1).result()
    broken = device.step({"no": "state"}, 0, seed=1, number=0)
    with pytest.raises(Exception, match=r"dict|state"):
        broken.result()
    assert device.step(first.state, 0, seed=1, number=0).result().board


def test_seeds_out_of_range_and_closed_devices_are_refused() -> None:
    device = Device(GAME)
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match=f"seed={seed}: 0 to"):
            device.reset(seed)
    device.close()
    with pytest.raises(InputError, match="closed"):
        device.reset(0)
    assert not any(thread.name == "g1jax game_2048" and not thread.daemon for thread in threading.enumerate())
