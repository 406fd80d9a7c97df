"""Responses as actions, one by one and in batches."""

import pickle

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from g1jax.adapters.gymnasium import TextActions, VectorTextActions
from g1jax.errors import InputError, LevelError
from tests.adapters.helpers import assert_equal, make, make_vec


def test_gymnasium_has_no_complaints() -> None:
    env = TextActions(make(), board_text=True)
    with pytest.warns(UserWarning, match="different from the unwrapped version"):
        check_env(env, skip_render_check=True)


@pytest.mark.parametrize("observation", ["frame", "board", "both"])
def test_the_observation_is_a_dict(observation: str) -> None:
    env = TextActions(make(observation=observation))
    names = {"frame", "board"} if observation == "both" else {observation}
    assert set(env.reset(seed=0)[0]) == set(env.observation_space) == names | {"prompt"}


def test_a_response_is_the_action_in_it() -> None:
    env, plain = TextActions(make(), board_text=True), make()
    observation, info = env.reset(seed=0)
    own, expected = plain.reset(seed=0)
    game = plain.unwrapped.game
    assert (observation["prompt"], observation["board_text"]) == (game.prompt, expected["board_text"])
    assert_equal(observation["frame"], own["frame"])
    action = int(np.flatnonzero(expected["action_mask"])[0])
    observation, reward, *_, info = env.step(f"Two of a kind – good. {game.format_action(action)}")
    _, expected_reward, *_, expected = plain.step(action)
    assert (reward, info["action"], info["is_legal"]) == (expected_reward, action, True)
    assert observation["board_text"] == expected["board_text"]
    for unreadable in ("No idea.", ""):
        _, reward, *_, info = env.step(unreadable)
        assert (reward, info["action"], info["is_legal"]) == (-1.0, game.invalid_action, False)


def test_a_prompt_may_be_given() -> None:
    env = TextActions(make(), prompt="A board of {rows} rows.")
    for same in (env, pickle.loads(pickle.dumps(env)), env.spec.make()):
        assert same.reset(seed=0)[0]["prompt"] == "A board of 2 rows."
    with pytest.raises(LevelError, match="unknown placeholder 'row'"):
        TextActions(make(), prompt="{row}")


def test_responses_of_a_batch_are_read_at_once() -> None:
    env, plain = VectorTextActions(make_vec(), board_text=True), make_vec()
    observation, info = env.reset(seed=0)
    own, expected = plain.reset(seed=0)
    assert observation in env.observation_space
    assert observation["prompt"] == (plain.game.prompt,) * 4
    assert observation["board_text"] == tuple(expected["board_text"])
    responses = ["<answer>3</answer>", "", "up, I think", "Because it merges: <answer> 1 </answer>" + " " * 50]
    observation, *rest, info = env.step(responses)
    assert info["action"].tolist() == [3, 4, 4, 1]
    own, *expected_rest, expected = plain.step(np.array([3, 4, 4, 1]))
    assert_equal(rest, expected_rest)
    assert_equal({key: observation[key] for key in own}, own)
    with pytest.raises(InputError, match="3 responses; give 4"):
        env.step(responses[:3])


def test_a_board_text_has_to_be_in_info() -> None:
    with pytest.raises(InputError, match="board_text=True"):
        VectorTextActions(make_vec(board_text=False), board_text=True).reset(seed=0)
