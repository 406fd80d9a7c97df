"""What a policy is shown: captions and pictures in its prompts, and responses to them."""

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
from g1jax.errors import ConfigError, LevelError
from g1jax.rl.observation import NAMES, PICTURE, Observation, about, board_tokens, num_board_tokens
from g1jax.rl.policy import Policy
from tests.rl import tiny

BOTH, TEXT = Observation.of(("picture", "caption")), Observation.of(("caption",))
GAME = envs.make("game_2048")
BOARDS = tuple(f"{row} | 2 | - | -\n4 | - | - | -\n- | - | - | 2\n- | - | - | -" for row in ("-", "131072"))
SAMPLES = 2


@pytest.fixture(scope="module", autouse=True)
def quick_programs() -> Iterator[None]:
    """Halves compile time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def policy_of(observation: Observation, **changes: Any) -> Policy:
    templates = (("game_2048", "2048{rules} rules{/rules}"),)
    policy = Policy(tiny.CONFIG, tiny.TOKENIZER, budget=8, templates=templates, observation=observation)
    return dataclasses.replace(policy, **changes)


def states() -> Any:
    each = [GAME.from_text(board) for board in BOARDS]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def test_an_observation_is_named() -> None:
    assert Observation.of(()) == PICTURE == Observation.of(("picture",))
    assert Observation.of(("no_rules", "picture")) == Observation(rules=False)
    for observation in (PICTURE, BOTH, TEXT, Observation(rules=False, goal=False)):
        assert Observation.of(observation.shown) == observation
    assert about(PICTURE) == {}
    assert about(TEXT) == {"observation": ["caption"]}
    assert set(NAMES) == {"picture", "caption", "no_rules", "no_goal"}
    with pytest.raises(ConfigError, match="show the picture, the caption, or both"):
        Observation.of(("no_rules",))
    with pytest.raises(ConfigError, match="observation: sound: expected some of picture, caption, no_rules, no_goal"):
        Observation.of(("picture", "sound"))


@pytest.mark.parametrize(
    ("game", "boards"),
    [
        (GAME, BOARDS),  # a number above 4096 has several tokens
        (envs.make("shisen_sho", rows=2, cols=2), ("- | -\nRed circle | Red circle", "Red star | -\n- | Red star")),
        (envs.make("shisen_sho_cifar10", rows=2, cols=1), ("four\nfour", "-\n-")),
    ],
    ids=lambda value: getattr(value, "id", ""),
)
def test_a_board_has_the_tokens_of_its_text(game: Game[Any], boards: tuple[str, ...]) -> None:
    encoded = np.stack([text.encode(board, game.board_text.length) for board in boards])
    tokens, mask = map(np.asarray, jax.jit(lambda boards: board_tokens(tiny.TOKENIZER, game, boards))(encoded))
    assert tokens.shape == (len(boards), num_board_tokens(tiny.TOKENIZER, game))
    for board, row, row_mask in zip(boards, tokens, mask, strict=True):
        assert row[row_mask].tolist() == tiny.TOKENIZER.encode(board)


@pytest.mark.parametrize("observation", [BOTH, TEXT], ids=["both", "text"])
def test_a_prompt_has_its_board(observation: Observation) -> None:
    policy = policy_of(observation)
    tokens, mask = policy.prompts(GAME, 2 * SAMPLES, policy.boards(GAME, states()))
    assert tokens.shape == (2 * SAMPLES, policy.prompt_length(GAME))
    assert len({int(row.sum()) for row in np.asarray(mask)}) == 2
    for i, board in enumerate(np.repeat(BOARDS, SAMPLES)):
        row = np.asarray(tokens[i])[np.asarray(mask[i])]
        assert tiny.TOKENIZER.decode(row) == f"user\n2048 rules\nThe board:\n{board}\nassistant\n"
        assert (row == tiny.TOKENIZER.image_token).sum() == (16 if observation.picture else 0)
    without = dataclasses.replace(policy, observation=dataclasses.replace(observation, rules=False))
    assert " rules" not in tiny.TOKENIZER.decode(without.prompt_tokens(GAME))
    with pytest.raises(LevelError, match="game_2048: the prompt has no goal to leave out"):
        policy_of(Observation(goal=False)).prompt_tokens(GAME)
    with pytest.raises(ConfigError, match="a policy with captions needs the boards"):
        policy.prompts(GAME, 2)


@pytest.mark.parametrize("observation", [BOTH, TEXT], ids=["both", "text"])
def test_responses_to_captions_of_several_lengths_are_scored_as_sampled(observation: Observation) -> None:
    """And as prompts that are written by hand."""
    policy, params, table = policy_of(observation), tiny.make_params(), tiny.POLICY.table()
    boards = jax.vmap(GAME.describe)(states())
    frames = jax.vmap(GAME.render)(states()) if observation.picture else None
    respond = jax.jit(functools.partial(policy.respond, num_samples=SAMPLES), static_argnums=2)
    keys = jax.random.split(jax.random.key(0), 2 * SAMPLES)
    responses = respond(params, table, GAME, frames, keys, boards=boards)
    score = jax.jit(policy.score, static_argnums=1)
    found = score(params, GAME, frames, responses.tokens, responses.mask, boards=boards)
    np.testing.assert_allclose(found.logprobs, responses.logprobs, atol=1e-5)
    assert float(jnp.min(responses.logprobs)) < -1
    swapped = score(params, GAME, frames, responses.tokens, responses.mask, boards=jnp.flip(boards, 0))
    assert float(jnp.max(jnp.abs(swapped.logprobs - found.logprobs))) > 0.1
    start, end = tiny.TOKENIZER.prompt_around("2048 rules\nThe board:\n", 16 if observation.picture else 0)
    rows = [start + tiny.TOKENIZER.encode(board) + end for board in np.repeat(BOARDS, SAMPLES)]
    given = *map(jnp.asarray, tiny.TOKENIZER.pad_batch(rows)), responses.tokens, responses.mask, frames
    by_hand = jax.jit(vlm.score, static_argnums=0)(tiny.CONFIG, params, *given)
    np.testing.assert_allclose(by_hand.logprobs, found.logprobs, atol=1e-5)


def test_the_tower_is_not_run_for_text_alone() -> None:
    """Neither its weights nor the frames decide anything."""
    policy, params = policy_of(TEXT), tiny.make_params()
    boards, frames = policy.boards(GAME, states()), jax.vmap(GAME.render)(states())
    tokens, mask = jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3), bool)

    def loss(params: vlm.Params, frames: Any) -> jax.Array:
        return jnp.sum(policy.score(params, GAME, frames, tokens, mask, boards=boards).logprobs)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params, frames)
    assert not any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(gradient["visual"]))
    assert any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(gradient["model"]))
    assert float(jax.jit(loss)(params, None)) == pytest.approx(float(value), abs=1e-4)
    with pytest.raises(ConfigError, match="shown pictures needs frames"):
        policy_of(BOTH).score(params, GAME, None, tokens, mask, boards=boards)


def test_an_observation_decides_programs() -> None:
    assert policy_of(BOTH) == policy_of(BOTH)
    assert hash(policy_of(BOTH)) == hash(policy_of(BOTH))
    assert policy_of(BOTH) != policy_of(TEXT) != policy_of(PICTURE)
