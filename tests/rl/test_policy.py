"""A policy that plays: responses, their scores, and episodes of one and several steps."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs, vlm
from g1jax.envs import text
from g1jax.envs.core import Game
from g1jax.envs.response import compose
from g1jax.errors import ConfigError
from g1jax.rl.policy import Policy
from g1jax.rl.rewards import RewardWeights
from g1jax.rl.rollout import play_on, respond_and_branch, respond_and_branch_jointly, rollout_metrics
from g1jax.sft.batch import tokenize
from g1jax.teachers import token_budgets
from g1jax.teachers.budget import sample_responses
from g1jax.vlm.sampling import fold_temperature
from tests.rl import tiny

STATES, SAMPLES = 3, 2
TABLE = tiny.POLICY.table()
WEIGHTS = RewardWeights()
ONE_AND_SLOWLY_BOTH = [tiny.GAMES[0], pytest.param(tiny.GAMES[1], marks=pytest.mark.slow)]


@pytest.fixture(scope="module", autouse=True)
def quick_programs() -> Iterator[None]:
    """Halves compile time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def params() -> vlm.Params:
    return tiny.make_params()


def states_of(game: Game[Any], count: int = STATES) -> Any:
    return jax.vmap(game.reset)(jax.random.split(jax.random.key(3), count))


def test_a_temperature_as_part_of_the_weights() -> None:
    game = tiny.GAMES[0]
    frames = jax.vmap(game.render)(states_of(game))
    cold = dataclasses.replace(tiny.POLICY, sampling=vlm.Sampling(temperature=0.6))
    responses = jax.jit(cold.respond, static_argnums=2)(params(), TABLE, game, frames, jax.random.key(0))
    score = jax.jit(tiny.POLICY.score, static_argnums=1)
    folded = fold_temperature(params(), 0.6)
    found = score(folded, game, frames, responses.tokens, responses.mask).logprobs
    np.testing.assert_allclose(found, responses.logprobs, atol=1e-4)
    plain = score(params(), game, frames, responses.tokens, responses.mask).logprobs
    assert float(jnp.max(jnp.abs(plain - responses.logprobs))) > 0.1
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"temperature={wrong}: it must be above 0, and finite"):
            fold_temperature(params(), wrong)


@pytest.mark.parametrize("game", ONE_AND_SLOWLY_BOTH, ids=lambda game: game.id)
def test_responses_are_scored_as_they_were_sampled(game: Game[Any]) -> None:
    frames = jax.vmap(game.render)(states_of(game))
    respond = jax.jit(functools.partial(tiny.POLICY.respond, num_samples=SAMPLES), static_argnums=2)
    responses = respond(params(), TABLE, game, frames, jax.random.key(0))
    score = jax.jit(tiny.POLICY.score, static_argnums=1)(params(), game, frames, responses.tokens, responses.mask)
    assert responses.tokens.shape == (STATES * SAMPLES, tiny.LENGTHS[game.id])
    np.testing.assert_allclose(score.logprobs, responses.logprobs, atol=1e-4)
    assert float(jnp.min(jnp.where(responses.mask, responses.logprobs, -1.0))) < -1.0
    assert len({tuple(row) for row in np.asarray(responses.tokens).tolist()}) == STATES * SAMPLES
    for row in range(STATES * SAMPLES):
        tokens = np.asarray(responses.tokens[row])[np.asarray(responses.mask[row])]
        assert text.decode(responses.bytes[row]) == tiny.TOKENIZER.decode(tokens).rstrip("\0")


@pytest.mark.parametrize("game", ONE_AND_SLOWLY_BOTH, ids=lambda game: game.id)
def test_responses_are_tokens_and_back(game: Game[Any]) -> None:
    policy = Policy(tiny.CONFIG, tiny.TOKENIZER, budgets=token_budgets(tiny.TOKENIZER, [game]))
    responses = sample_responses(game, 8)
    assert len(set(responses)) > 1
    tokens, mask, is_perception = tokenize(policy, game, responses)
    assert tokens.shape[1] == policy.max_new_tokens(game) > 1.2 * (mask.sum(axis=1).max() - 1)
    for response, row, row_mask, row_perception in zip(responses, tokens, mask, is_perception, strict=True):
        assert row[row_mask][-1] == tiny.TOKENIZER.end_token
        assert tiny.TOKENIZER.decode(row[row_mask]) == response
        perception = tiny.TOKENIZER.decode(row[row_perception])
        assert perception + "</perception>" == response[: response.index("</perception>") + len("</perception>")]
        assert int(game.parse(response)) != game.invalid_action


def test_a_response_that_does_not_fit() -> None:
    with pytest.raises(vlm.ConfigError, match=r"a sequence of \d+ tokens does not fit in 12"):
        tokenize(tiny.POLICY, tiny.GAMES[0], sample_responses(tiny.GAMES[0], 2))


@pytest.mark.parametrize("game", ONE_AND_SLOWLY_BOTH, ids=lambda game: game.id)
def test_given_perception(game: Game[Any]) -> None:
    """A response that starts with the true board has an exact perception, whatever follows."""
    states = states_of(game)
    frames = jax.vmap(game.render)(states)
    boards = [text.decode(row) for row in np.asarray(jax.vmap(game.describe)(states))]
    lines = tiny.TOKENIZER.encode_batch([f"<perception>{board}</perception>" for board in boards])
    start_tokens, start_mask = tiny.TOKENIZER.pad_batch(lines, side="right", length=40)
    starts = jnp.asarray(start_tokens), jnp.asarray(start_mask)

    @jax.jit
    def play(params: vlm.Params, table: vlm.TokenBytes, states: Any, key: jax.Array) -> Any:
        responses = tiny.POLICY.respond(params, table, game, frames, key, num_samples=SAMPLES, starts=starts)
        each = jax.tree.map(lambda leaf: jnp.repeat(leaf, SAMPLES, axis=0), states)
        return responses, jax.vmap(game.perception_exact)(responses.bytes, each)

    responses, is_exact = play(params(), TABLE, states, jax.random.key(0))
    assert bool(jnp.all(is_exact))
    assert responses.tokens.shape[1] == tiny.LENGTHS[game.id]
    for row in range(STATES * SAMPLES):
        own = tiny.TOKENIZER.decode(np.asarray(responses.tokens[row])[np.asarray(responses.mask[row])])
        assert text.decode(responses.bytes[row]) == f"<perception>{boards[row // SAMPLES]}</perception>{own}".rstrip(
            "\0"
        )


def test_a_budget_by_game_and_its_bytes() -> None:
    game = tiny.GAMES[1]
    assert tiny.POLICY.max_new_tokens(game) == 16
    assert Policy(tiny.CONFIG, tiny.TOKENIZER, budget=99).max_new_tokens(game) == 99
    assert tiny.POLICY.max_bytes(game) >= 16
    longest = max(len(response.encode()) for response in sample_responses(game))
    policy = Policy(tiny.CONFIG, tiny.TOKENIZER, budgets=token_budgets(tiny.TOKENIZER, tiny.GAMES))
    assert policy.max_bytes(game) >= longest
    with pytest.raises(vlm.ConfigError, match=r"no token budget for make\('shisen_sho'"):
        Policy(tiny.CONFIG, tiny.TOKENIZER).max_new_tokens(game)


def test_frames_that_are_not_whole_tokens() -> None:
    """They are resized to the nearest size that is, so the prompt has as many image tokens."""
    whole, odd = (envs.make("game_2048", rows=2, cols=2, cell_size=size) for size in (28, 30))
    np.testing.assert_array_equal(tiny.POLICY.prompt_tokens(odd), tiny.POLICY.prompt_tokens(whole))


def test_one_step_from_each_state() -> None:
    game, (states, key) = tiny.GAMES[0], (states_of(tiny.GAMES[0]), jax.random.key(1))
    play = jax.jit(
        lambda p, t, s: respond_and_branch(tiny.POLICY, p, t, game, s, key, num_samples=SAMPLES, weights=WEIGHTS)
    )
    rollout, actions = play(params(), TABLE, states)
    assert actions.shape == (STATES, SAMPLES)
    assert rollout.frames.shape[0] == STATES
    assert rollout.returns.shape == (STATES * SAMPLES,)
    np.testing.assert_array_equal(actions.reshape(-1), jax.vmap(game.parse)(rollout.responses.bytes))
    np.testing.assert_array_equal(rollout.is_readable, actions.reshape(-1) != game.invalid_action)
    assert bool(jnp.all(rollout.is_running))
    np.testing.assert_array_equal(rollout.returns, rollout.reward.total)
    metrics = rollout_metrics(rollout)
    assert {"reward", "perception", "reasoning", "format", "length"} <= set(metrics)
    assert float(metrics["length"]) == pytest.approx(float(rollout.responses.mask.sum(axis=1).mean()), rel=1e-6)


@pytest.mark.parametrize("num_parts", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_games_decoded_jointly_equal_each_alone(num_parts: int) -> None:
    """Prompts, frames and budgets of different sizes; the shorter budget ends its responses."""
    games = (envs.make("game_2048", rows=2, cols=3), tiny.GAMES[1])
    budgets = ((games[0], 7), (games[1], 12))
    policy = dataclasses.replace(tiny.POLICY, budgets=budgets, compact_every=4)  # keys for each response
    keys = list(jax.random.split(jax.random.key(1), 2))
    states = [states_of(game, 4) for game in games]
    settings: dict[str, Any] = {"num_samples": SAMPLES, "num_parts": num_parts}
    alone = [
        jax.jit(functools.partial(respond_and_branch, policy, weights=WEIGHTS, **settings), static_argnums=2)(
            params(), TABLE, *of_game
        )
        for of_game in zip(games, states, keys, strict=True)
    ]
    jointly = functools.partial(respond_and_branch_jointly, policy, weights=(WEIGHTS, WEIGHTS), **settings)
    together = jax.jit(jointly, static_argnums=2)(params(), TABLE, games, states, keys)
    assert not bool(jnp.all(jnp.any(alone[0][0].responses.tokens == tiny.TOKENIZER.stop_tokens[0], axis=1))), "all stop"
    for (_, budget), (expected, actions), (found, found_actions) in zip(budgets, alone, together, strict=True):
        assert found.responses.tokens.shape == (4 * SAMPLES, budget)
        np.testing.assert_array_equal(found_actions, actions)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_episodes_of_several_steps() -> None:
    """Rows are ordered by step, state, sample; returns are discounted sums of rewards."""
    game, steps, discount = tiny.GAMES[0], 3, 0.5
    play = jax.jit(
        lambda p, t, s, k: play_on(
            tiny.POLICY, p, t, game, s, k, num_samples=SAMPLES, weights=WEIGHTS, num_steps=steps, discount=discount
        )
    )
    states = states_of(game)
    rollout = play(params(), TABLE, states, jax.random.key(2))
    shape = (steps, STATES, SAMPLES)
    frames = rollout.frames.reshape(*shape, *game.frame_shape)
    np.testing.assert_array_equal(frames[0, :, 0], jax.vmap(game.render)(states))
    np.testing.assert_array_equal(frames[0, :, 1], frames[0, :, 0])
    reward, returns = (np.asarray(x).reshape(shape) for x in (rollout.reward.total, rollout.returns))
    running = np.asarray(rollout.is_running).reshape(shape)
    assert running[0].all()
    expected = np.zeros(shape)
    for step in reversed(range(steps)):
        later = expected[step + 1] * running[step + 1] if step + 1 < steps else 0.0
        expected[step] = reward[step] + discount * later
    np.testing.assert_allclose(returns[running], expected[running], atol=1e-6)


def test_a_whole_response() -> None:
    response = compose("2 | -\n- | 4", "why", "<answer>3</answer>")
    assert response == "<perception>2 | -\n- | 4</perception><think>why</think><answer>3</answer>"
