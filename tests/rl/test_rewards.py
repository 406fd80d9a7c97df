"""Rewards of responses in bytes, computed by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs, rl
from g1jax.envs import text
from g1jax.envs.response import TAGS
from g1jax.rl.rewards import has_format
from g1jax.typing import Array

GAME = envs.make("game_2048")
BOARD = "2 | 2 | - | -\n4 | - | - | -\n- | - | - | -\n- | - | - | 8"
WRONG_CELL = BOARD.replace("8", "16")
FULL = "<perception>{}</perception><think>join the twos</think><answer>{}</answer>"
LEFT, DOWN = 3, 2


def to_bytes(response: str) -> Array:
    return jnp.asarray(text.encode(response, 256))


@jax.jit
def play(response: Array) -> tuple[rl.Reward, rl.Reward, rl.Reward, Array]:
    """The reward with the release's weights, with others, and with the other shapes."""
    state = GAME.from_text(text.encode(BOARD))
    _, result = GAME.step(state, GAME.parse(response), jax.random.key(0))
    others = rl.RewardWeights(game=2.0, format=0.5, perception=0.1)
    shapes = rl.RewardWeights(game_shape="raw", format_shape="ordered", perception_shape="cells")
    plain, other, shaped = (rl.reward(GAME, response, state, result, each) for each in (None, others, shapes))
    return plain, other, shaped, result.reward


# Left merges 2 and 2 for 4; an unreadable answer is a move without effect, for −1.
@pytest.mark.parametrize(
    ("response", "game", "form", "perception", "cells", "raw"),
    [
        (FULL.format(BOARD, LEFT), 1, 1, 1, 1, 4),
        (FULL.format(WRONG_CELL, LEFT), 1, 1, 0, 15 / 16, 4),
        (FULL.format(BOARD, "nowhere"), -1, 1, 1, 1, -1),
        (f"<answer>{LEFT}</answer>", 1, 0, 0, 0, 4),
        (f"<perception>{BOARD}</perception><answer>{LEFT}</answer>", 1, 0, 1, 1, 4),
        (FULL.format(BOARD, LEFT).replace("</think>", "<think>"), 1, 0, 1, 1, 4),
        ("", -1, 0, 0, 0, -1),
    ],
)
def test_the_parts_of_a_reward(
    response: str, game: float, form: float, perception: float, cells: float, raw: float
) -> None:
    plain, others, shapes, step_reward = play(to_bytes(response))
    assert step_reward == raw
    assert (plain.game, plain.format, plain.perception) == (game, form, perception)
    assert plain.total == game + form + perception
    assert (bool(plain.is_success), bool(plain.is_seen)) == (raw > 0, perception == 1)
    np.testing.assert_allclose(others.total, 2 * game + 0.5 * form + 0.1 * perception, rtol=1e-6)
    np.testing.assert_allclose([shapes.game, shapes.perception], [raw, cells])
    np.testing.assert_allclose(shapes.total, raw + form + cells)


def test_a_reward_of_zero_is_no_success() -> None:
    # Down moves tiles on this board but merges none: reward 0, which the release counts as -1.
    plain, _, shapes, step_reward = play(to_bytes(FULL.format(BOARD, DOWN)))
    assert step_reward == 0
    assert (plain.game, shapes.game, bool(plain.is_success)) == (-1, 0, False)


@jax.jit
def play_for_worth(response: Array) -> tuple[rl.Reward, Array]:
    state, action = GAME.from_text(text.encode(BOARD)), GAME.parse(response)
    _, result = GAME.step(state, action, jax.random.key(0))
    weights = rl.RewardWeights(game_shape="worth")
    return rl.reward(GAME, response, state, result, weights), GAME.worth(state, action, result)


@pytest.mark.parametrize(("answer", "worth"), [(LEFT, 1.0), ("nowhere", -1.0), (4, -1.0)])
def test_the_worth_of_a_move_as_its_reward(answer: object, worth: float) -> None:
    found, own = play_for_worth(to_bytes(FULL.format(BOARD, answer)))
    assert found.game == worth == own
    assert found.total == worth + 2


@pytest.mark.parametrize("ordered", [False, True])
def test_format(ordered: bool) -> None:
    whole = to_bytes(FULL.format("a", "b"))
    assert has_format(whole, ordered=ordered)
    for tag in TAGS:
        assert not has_format(to_bytes(FULL.format("a", "b").replace(tag, "")), ordered=ordered)
    swapped = "<think></think><perception></perception><answer></answer>"
    assert bool(has_format(to_bytes(swapped), ordered=ordered)) is not ordered
    closed_first = "</perception><perception><think></think><answer></answer>"
    assert bool(has_format(to_bytes(closed_first), ordered=ordered)) is not ordered
    assert not has_format(jnp.zeros(3, jnp.uint8), ordered=ordered)
    # A response truncated in its last tag, at the end of the array and before it.
    cut = FULL.format("a", "b")[:-1]
    assert not has_format(to_bytes(cut), ordered=ordered)
    assert not has_format(jnp.asarray(text.encode(cut, len(cut))), ordered=ordered)
    assert has_format(jnp.asarray(text.encode(cut + ">", len(cut) + 1)), ordered=ordered)


def test_format_agrees_with_strings() -> None:
    draw = np.random.default_rng(0)
    pieces = [*TAGS, "x", "<answer", "/think>"]
    is_ordered = re.compile(".*".join(TAGS), re.DOTALL)
    both = jax.jit(jax.vmap(lambda x: (has_format(x), has_format(x, ordered=True))))
    # Mostly complete responses with a piece or two changed, so that all outcomes occur.
    texts = []
    for _ in range(500):
        parts = list(TAGS)
        for _ in range(draw.integers(0, 5)):
            parts.insert(draw.integers(len(parts) + 1), pieces[draw.integers(len(pieces))])
            if draw.random() < 0.5:
                parts.pop(draw.integers(len(parts)))
        texts.append("".join(parts))
    present, ordered = both(jnp.stack([jnp.asarray(text.encode(each, 128)) for each in texts]))
    assert present.tolist() == [all(tag in each for tag in TAGS) for each in texts]
    assert ordered.tolist() == [is_ordered.search(each) is not None for each in texts]
    assert 50 < int(present.sum()) < 450
    assert int((present & ~ordered).sum()) > 20


def test_a_batch_of_responses() -> None:
    responses = jnp.stack([to_bytes(FULL.format(BOARD, LEFT)), to_bytes("")])
    state = GAME.from_text(BOARD)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)

    @jax.jit
    def rewards_of(responses: Array) -> rl.Reward:
        _, results = GAME.branch(state, jax.vmap(GAME.parse)(responses), jax.random.key(0))
        return jax.vmap(lambda r, s, x: rl.reward(GAME, r, s, x))(responses, states, results)

    rewards = rewards_of(responses)
    assert rewards.total.tolist() == [3.0, -1.0]
    assert rewards.total.dtype == jnp.float32


@pytest.mark.parametrize("key", ["game_shape", "format_shape", "perception_shape"])
def test_unknown_shapes(key: str) -> None:
    with pytest.raises(rl.AlgorithmError, match=f"{key}='round': expected one of"):
        rl.RewardWeights(**{key: "round"})  # type: ignore[arg-type]
