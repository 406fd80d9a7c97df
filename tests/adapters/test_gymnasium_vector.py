"""The vector environment: the same interface as `SyncVectorEnv`, and one program a step."""

import pickle
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from g1jax.adapters.gymnasium import vector_env
from g1jax.errors import InputError
from tests.adapters.helpers import STAY, TINY, assert_equal, make_vec

ALL_STAY = np.full(4, STAY)


def form_of(value: Any) -> Any:
    """What two values of one form have in common: types, dtypes and shapes, and which entries there are."""
    if isinstance(value, dict):
        return {key: form_of(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [form_of(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return value.dtype.kind, value.shape
    return type(value)


def masks_of(info: dict[str, Any]) -> dict[str, Any]:
    masks = {key: value.tolist() for key, value in info.items() if key.startswith("_")}
    return masks | {key: masks_of(value) for key, value in info.items() if isinstance(value, dict)}


def legal(info: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.argmax(info["action_mask"], axis=1)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_its_interface_is_that_of_sync_vector_env(mode: AutoresetMode) -> None:
    """Episodes end by their length, at different steps after a reset of some."""
    ours = make_vec(mode)
    theirs = gymnasium.make_vec(
        "g1jax/Game2048-v0", num_envs=4, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode},
        **TINY["Game2048"], observation="both", max_steps=3,
    )  # fmt: skip
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == mode
    for space in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, space) == getattr(theirs, space)
    both, num_ended = [env.reset(seed=0) for env in (ours, theirs)], 0
    assert form_of(both[0]) == form_of(both[1])
    for i in range(9):
        both = [env.step(ALL_STAY) for env in (ours, theirs)]
        assert form_of(both[0]) == form_of(both[1])
        assert_equal(both[0][1:4], both[1][1:4])
        assert masks_of(both[0][4]) == masks_of(both[1][4])
        assert both[0][0] in ours.observation_space
        ended = both[0][2] | both[0][3]
        num_ended += int(ended.sum())
        mask = np.array([True, False, True, False]) if i == 0 else ended
        if i == 0 or (mode == AutoresetMode.DISABLED and mask.any()):
            both = [env.reset(options={"reset_mask": mask.copy()}) for env in (ours, theirs)]
            assert masks_of(both[0][1]) == masks_of(both[1][1])
    assert num_ended > 4


def test_next_step_resets_in_the_step_after_the_end() -> None:
    env = make_vec()
    first, _ = env.reset(seed=0)
    for _ in range(3):
        last, reward, _, truncated, _ = env.step(ALL_STAY)
        assert (reward == -1).all()
    assert truncated.all()
    assert_equal(last, first)
    fresh, reward, terminated, truncated, info = env.step(ALL_STAY)
    assert (fresh["board"] != first["board"]).any()
    assert not reward.any()
    assert not (terminated | truncated | info["_is_legal"]).any()


def test_same_step_has_the_end_and_the_beginning() -> None:
    env = make_vec("SameStep")
    env.reset(seed=0)
    env.step(ALL_STAY)
    mask = np.array([True, False, False, True])
    first, texts = env.reset(seed=1, options={"reset_mask": mask})
    env.step(ALL_STAY)
    observation, reward, _, truncated, info = env.step(ALL_STAY)
    assert truncated.tolist() == info["_final_obs"].tolist() == info["_final_info"].tolist() == (~mask).tolist()
    assert (reward == -1).all()
    final = info["final_info"]
    for i in range(4):
        if mask[i]:
            assert info["final_obs"][i] is None
            assert final["board_text"][i] is None
        else:
            assert_equal(info["final_obs"][i], {key: value[i] for key, value in first.items()})
            assert final["board_text"][i] == texts["board_text"][i]
            assert_equal(final["action_mask"][i], texts["action_mask"][i])
    assert (observation["board"][mask] == first["board"][mask]).all()
    assert (observation["board"] != first["board"]).any()
    assert final["_is_legal"].tolist() == (~mask).tolist()


def test_disabled_waits_for_a_reset() -> None:
    env = make_vec("Disabled")
    first, info = env.reset(seed=0)
    for _ in range(3):
        env.step(ALL_STAY)
    frozen, reward, _, truncated, after = env.step(legal(info))
    assert truncated.all()
    assert not (reward.any())
    assert not (after["is_legal"].any())
    assert_equal(frozen, first)
    mask = np.array([False, True, False, True])
    fresh, info = env.reset(options={"reset_mask": mask})
    assert_equal(fresh["frame"][~mask], first["frame"][~mask])
    assert (fresh["board"][mask] != first["board"][mask]).any()
    *_, truncated, info = env.step(legal(info))
    assert_equal(truncated, ~mask)
    assert_equal(info["is_legal"], mask)


def test_a_seed_makes_all_episodes() -> None:
    env, other = make_vec(), make_vec()

    def play(env: Any, seed: int | None) -> list[Any]:
        return [env.reset(seed=seed), *(env.step(np.full(4, i % 4)) for i in range(8))]

    first = play(env, 7)
    assert_equal(first, play(other, 7))
    assert_equal(play(env, None), play(other, None))
    assert len({tuple(step[-1]["board_text"][i] for step in first) for i in range(4)}) == 4
    assert (play(env, 8)[0][1]["board_text"] != first[0][1]["board_text"]).any()
    copied = pickle.loads(pickle.dumps(env))
    assert_equal([env.step(ALL_STAY), env.reset()], [copied.step(ALL_STAY), copied.reset()])


def test_frames_are_not_copied_and_the_rest_is() -> None:
    env = make_vec(render_mode="rgb_array")
    _, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(legal(info))
    assert all(x.flags.writeable for x in (observation["board"], reward, terminated, truncated, info["action_mask"]))
    assert not (observation["frame"].flags.owndata)
    assert not (observation["frame"].flags.writeable)
    assert_equal(tuple(observation["frame"]), env.render())
    before = observation["frame"].copy()
    env.step(legal(info))
    assert_equal(observation["frame"], before)
    assert make_vec().render() is None


def test_arrays_stay_on_the_device_if_asked_to() -> None:
    env, other = make_vec("SameStep", arrays="jax"), make_vec("SameStep")
    assert_equal(env.reset(seed=0), other.reset(seed=0))
    for _ in range(3):
        there, here = env.step(ALL_STAY), other.step(ALL_STAY)
    finals = [list(info.pop("final_obs")) for info in (there[4], here[4])]
    assert_equal(*finals)
    assert_equal(there, here)
    leaves = jax.tree.leaves((there[:4], there[4]["action_mask"], finals[0]))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert_equal(np.from_dlpack(there[0]["frame"]), here[0]["frame"])


def test_equal_environments_share_one_program() -> None:
    sizes = []
    programs: list[Any] = [vector_env._reset, vector_env._step]
    for _ in range(2):
        env = make_vec()
        env.reset(seed=0)
        for action in (0, np.int64(1), np.uint8(2)):
            env.step(np.full(4, action))
        sizes.append([program._cache_size() for program in programs])
    assert sizes[0] == sizes[1]


def test_masks_are_those_of_the_action_space() -> None:
    env = make_vec()
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(3):
        *_, info = env.step(env.action_space.sample(mask=tuple(info["action_mask"])))
        assert info["is_legal"].all()


def test_gymnasiums_wrappers_take_it() -> None:
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(make_vec())
    env.reset(seed=0)
    for _ in range(3):
        *_, info = env.step(ALL_STAY)
    assert info["episode"]["l"].tolist() == [3] * 4
    assert info["episode"]["r"].tolist() == [-3] * 4


def test_wrong_calls_are_named() -> None:
    env = make_vec()
    with pytest.raises(InputError, match=r"call reset\(\) first"):
        env.step(ALL_STAY)
    with pytest.raises(InputError, match=r"call reset\(\) first"):
        env.reset(options={"reset_mask": np.ones(4, bool)})
    env.reset(seed=0)
    for mask in (np.ones(3, bool), np.ones(4, int), [True] * 4):
        with pytest.raises(InputError, match=r"reset_mask.*bool\[4\]"):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(InputError, match=r"actions: int64\[3\]"):
        env.step(np.zeros(3, int))
    with pytest.raises(InputError, match="use max_steps"):
        make_vec(max_episode_steps=5)
    with pytest.raises(ValueError, match="'Never' is not a valid AutoresetMode"):
        make_vec("Never")
    env.close()
    env.close()
    with pytest.raises(InputError, match=r"call reset\(\) first"):
        env.step(ALL_STAY)
