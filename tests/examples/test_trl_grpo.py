"""The example with TRL: its rewards against single ones, and a whole run of the policy that ships."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs, rl
from g1jax.envs import Game, text
from g1jax.envs.response import compose
from g1jax.training.saved_model import PROMPTS, prompts_of

pytest.importorskip("trl", reason="extras: trl")
pytest.importorskip("torch", reason="extras: trl")
from transformers import AutoModelForImageTextToText

from examples import trl_grpo

pytestmark = pytest.mark.filterwarnings("ignore")  # of TRL and its libraries
PARTS = ("game", "format", "perception")


@functools.partial(jax.jit, static_argnums=0)
def reward_of(game: Game[Any], response: Any, state: Any) -> rl.Reward:
    _, result = game.step(state, game.parse(response), jax.random.key(9))
    return rl.reward(game, response, state, result)


def alone(game: Game[Any], response: str, state: Any) -> list[float]:
    """The parts of the reward of one response, computed by itself."""
    whole = reward_of(game, jnp.asarray(text.encode(response, 2048)), state)
    return [float(getattr(whole, name)) for name in PARTS]


def test_the_rewards_of_a_batch_are_those_of_single_responses() -> None:
    game = envs.make("swap", rows=5, cols=5, colors=2)
    states = trl_grpo.draw_states(game, 4, 5, jax.random.key(1))
    rows, responses = [], []
    for i in (3, 0, 1):
        state = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        board = text.decode(jax.jit(game.describe)(state))
        good = game.format_action(jax.jit(game.expert)(state, jax.random.key(0)))
        responses += [compose(board, "So.", good), f"{good} é", "", compose("?", "x" * 700, "<answer>no</answer>")]
        rows += [i] * 4
    completions = [[{"role": "assistant", "content": response}] for response in responses]
    funcs = trl_grpo.make_reward_funcs(game, states)
    assert [func.__name__ for func in funcs] == list(PARTS)
    found = np.array([func(completions=completions, state=rows, prompts=None) for func in funcs]).T
    picked = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in rows]
    expected = [alone(game, response, state) for response, state in zip(responses, picked, strict=True)]
    np.testing.assert_array_equal(found, expected)
    assert found[0].tolist() == [1, 1, 1]
    assert found[3].tolist() == [-1, 1, 0]


def run(folder: Path, temperature: float, responses: int = 4) -> tuple[Any, list[tuple[str, int, float]]]:
    """A trainer after one step, and the completions that it rewarded: text, state, the game's reward."""
    trainer = trl_grpo.make_trainer(
        trl_grpo.Settings(
            states=4,
            steps=1,
            states_per_step=1,
            responses=responses,
            max_tokens=64,
            out=str(folder),
            temperature=temperature,
        )
    )
    seen: list[tuple[str, int, float]] = []
    of_game = trainer.reward_funcs[0]

    def record(completions: list[Any], state: list[int], **rest: Any) -> list[float]:
        rewards: list[float] = of_game(completions=completions, state=state, **rest)
        seen.extend(zip((completion[0]["content"] for completion in completions), state, rewards, strict=True))
        return rewards

    trainer.reward_funcs[0] = record
    trainer.train()
    return trainer, seen


def test_the_policy_that_ships_reads_its_pictures_and_has_the_games_rewards(tmp_path: Path) -> None:
    settings, game = trl_grpo.Settings(), envs.make("game_2048")
    trainer, seen = run(tmp_path, 1.0)
    states = trl_grpo.draw_states(game, 4, settings.random_moves, jax.random.key(settings.seed))
    assert len(seen) == 4
    for response, i, reward in seen:
        assert reward == alone(game, response, jax.tree.map(lambda leaf, i=i: leaf[i], states))[0]
    (logged,) = [line for line in trainer.state.log_history if "reward" in line]
    assert logged["rewards/game/mean"] == pytest.approx(np.mean([reward for *_, reward in seen]))
    assert logged["rewards/format/mean"] == logged["rewards/perception/mean"] == 1


def test_a_step_changes_the_weights_where_rewards_differ(tmp_path: Path) -> None:
    before = AutoModelForImageTextToText.from_pretrained(str(trl_grpo.folder_of("g1-nano")))
    trainer, _ = run(tmp_path, 1.6, responses=8)
    (logged,) = [line for line in trainer.state.log_history if "reward" in line]
    assert logged["frac_reward_zero_std"] == 0
    after = dict(trainer.model.named_parameters())
    assert any((value.detach() != after[name].detach()).any() for name, value in before.named_parameters())


def test_prompts_are_the_models_own_or_the_games(tmp_path: Path) -> None:
    prompts = prompts_of(trl_grpo.folder_of("g1-nano"))
    assert dict(prompts)["game_2048"] == "2048"
    (tmp_path / PROMPTS).write_text(json.dumps({"swap": "Swap!"}))
    assert prompts_of(trl_grpo.folder_of(str(tmp_path))) == (("swap", "Swap!"),)
