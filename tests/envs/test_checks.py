"""Invalid actions, texts, states and seeds are rejected in one line before tracing; integers never wrap."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs.checks import as_int32
from tests.envs import toy

KEY = jax.random.key(0)
GAME = toy.make(luck=0.0)
VEC = envs.make_vec([GAME, toy.make(most=2)], 6)
STATE = jax.eval_shape(VEC.reset, KEY)
OTHER = jax.eval_shape(envs.make_vec([GAME, toy.make(most=2)], 7).reset, KEY)
ONE = jax.eval_shape(GAME.reset, KEY)
POOLED = envs.make_vec([GAME, toy.make(most=2)], 6, autoreset="pool")


def step(actions: Any) -> Any:
    return lambda: jax.eval_shape(lambda state: VEC.step(state, actions, KEY), STATE)


def one(action: Any) -> Any:
    return lambda: jax.eval_shape(lambda state: GAME.step(state, action, KEY), ONE)


def of_state(function: Callable[[Any], Any], state: Any = STATE) -> Any:
    return lambda: jax.eval_shape(function, state)


NAN: Any = float("nan")
ZERO: Any = 0
NONE: Any = None
ZEROS = jnp.zeros(6, jnp.int32)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "too few actions": (step(np.zeros(5, np.int32)), r"actions: int32\[5\]; give integers, int32\[6\]"),
    "too many actions": (step(np.zeros(7, np.int32)), r"actions: int32\[7\]; give integers, int32\[6\]"),
    "one action": (step(0), r"actions: int64\[\]; give integers, int32\[6\]"),
    "a column of actions": (step(np.zeros((6, 1), np.int32)), r"actions: int32\[6, 1\]"),
    "a number for a key": (lambda: VEC.reset(ZERO), r"key: int; give one random key, such as jax.random.key\(0\)"),
    "no key": (of_state(lambda s: VEC.step(s, ZEROS, NONE)), r"key: NoneType; give one random key"),
    "several keys": (of_state(lambda s: VEC.step(s, ZEROS, jax.random.split(KEY, 6))), r"key: key<fry>\[6\]; give one"),
    "NaN actions": (step(jnp.full(6, NAN)), r"actions: float32\[6\]; give integers"),
    "float actions": (step([0.0] * 6), r"actions: float64\[6\]; give integers"),
    "true actions": (step(jnp.ones(6, bool)), r"actions: bool\[6\]; give integers"),
    "an action NaN": (one(NAN), r"action: float64\[\]; give integers, int32\[\]"),
    "an action True": (one(True), r"action: bool\[\]"),
    "an action in text": (one("1"), r"action: <U1\[\]"),
    "no action": (one(None), r"action: object\[\]"),
    "two actions": (one([1, 2]), r"action: int64\[2\]"),
    "a written NaN": (lambda: GAME.format_action(NAN), r"action: float64\[\]"),
    "branches of a float": (of_state(lambda s: VEC.branch(s, jnp.zeros((6, 2)), KEY)), r"float32\[6, 2\]; .*\[6, K\]"),
    "branches of few": (of_state(lambda s: VEC.branch(s, jnp.zeros((5, 2), jnp.int32), KEY)), r"int32\[5, 2\]"),
    "one game's branches": (of_state(lambda s: GAME.branch(s, jnp.int32(1), KEY), ONE), r"int32\[\]; .*int32\[K\]"),
    "a walk of NaN steps": (of_state(lambda s: VEC.random_walk(s, KEY, NAN)), r"float64\[\]; .*\[\] or int32\[6\]"),
    "walks of few": (of_state(lambda s: VEC.random_walk(s, KEY, ZEROS[:5])), r"num_steps: int32\[5\]"),
    "responses of few": (lambda: VEC.parse(np.zeros((5, 9), np.uint8)), r"uint8\[5, 9\]; give bytes, uint8\[6, N\]"),
    "responses of integers": (lambda: VEC.parse(np.zeros((6, 9), np.int32)), r"responses: int32\[6, 9\]; give bytes"),
    "a text of integers": (lambda: GAME.parse(np.full(9, 300)), r"text: int64\[9\]; give bytes, uint8\[N\]"),
    "written actions of few": (lambda: VEC.write_actions(ZEROS[:5]), r"actions: int32\[5\]"),
    "another batch's state": (of_state(lambda s: VEC.step(s, ZEROS, KEY), OTHER), r"state: .*4.* has .*3"),
    "another batch's frames": (of_state(VEC.render, OTHER), r"state: environments by game"),
    "another batch's texts": (of_state(VEC.describe, OTHER), r"state: environments by game"),
    "a state without pools": (of_state(lambda s: POOLED.step(s, ZEROS, KEY)), "state: no pool"),
    "levels of three games": (lambda: VEC.reset(KEY, [GAME.traced_level()] * 3), "levels: 3 for 2 games"),
    "a seed of 33 bits": (lambda: GAME.from_text("1 | -", seed=2**32), r"seed=4294967296: .* 0 to 2\^32 - 1"),
    "a seed below 0": (lambda: GAME.from_text("1 | -", seed=-1), "seed=-1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_input_is_rejected_in_one_line(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(envs.InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_levels_of_another_batch_are_refused() -> None:
    level = jax.tree.map(lambda value: jnp.broadcast_to(value, (5,)), GAME.traced_level())
    with pytest.raises(envs.InputError, match=r"levels: \w+ has shape \(5,\); give \(\) or \(3,\)"):
        VEC.reset(KEY, level)


THREES: tuple[Any, ...] = (3, np.int8(3), np.uint8(3), np.int64(3), np.uint64(3))
ACTIONS_IF_WRAPPED: tuple[Any, ...] = (2**32, 2**32 + 1, np.int64(2**32))
WIDE: tuple[Any, ...] = (
    *(2**31, 2**63 - 1, -(2**31) - 1, -(2**32), -(2**32) + 1),
    *(np.uint64(2**64 - 1), np.uint32(2**31 + 1), *ACTIONS_IF_WRAPPED),
)


def test_no_integer_wraps_into_an_action() -> None:
    for number in WIDE:
        assert not 0 <= int(as_int32("action", number, ())) < 2**31 - 1
    assert [int(as_int32("action", number, ())) for number in THREES] == [3] * 5
    state = GAME.from_text("9 | -")
    for number in ACTIONS_IF_WRAPPED:
        after, result = GAME.step(state, number, KEY)
        assert not bool(result.is_legal)
        assert int(after.board[0, 0]) == 9
        assert GAME.format_action(number) == "<answer></answer>"


def test_wide_actions_of_a_batch_are_invalid() -> None:
    state = VEC.reset(KEY)
    _, result = VEC.step(state, np.zeros(6, np.int64) + 2**32, KEY)
    assert not np.asarray(result.is_legal).any()
    _, result = VEC.step(state, np.zeros(6, np.uint8), KEY)
    assert np.asarray(result.is_legal).all()
