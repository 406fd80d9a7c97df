"""Prompt templates: parts to leave out, and what is wrong with a template."""

import itertools

import pytest

from g1jax import envs
from g1jax.envs.prompt import PARTS, fill
from g1jax.errors import LevelError


@pytest.mark.parametrize("game_id", envs.game_ids())
def test_every_game_has_rules_and_a_goal_to_leave_out(game_id: str) -> None:
    game = envs.make(game_id)
    prompts = {game.fill_prompt(game.default_prompt, without) for without in ((), ("rules",), ("goal",), PARTS)}
    assert len(prompts) == 4
    assert game.prompt == max(prompts, key=len)
    for prompt in prompts:
        assert not any(wrong in prompt for wrong in ("{", "}", "  ", " .", ".."))
        assert prompt.startswith("This is a game of ")
        assert prompt.split("\n")[0].endswith(".")


@pytest.mark.parametrize(("rules", "goal"), [*itertools.product([True, False], repeat=2)])
def test_parts_are_left_out(rules: bool, goal: bool) -> None:
    template = "Play{rules} by\n{n} rules{/rules}{goal} to win{/goal}{rules}, too{/rules}."
    without = [part for part, is_kept in zip(PARTS, (rules, goal), strict=True) if not is_kept]
    middle = (" by\n2 rules" if rules else "") + (" to win" if goal else "")
    assert fill(template, {"n": "2"}, "toy", without) == f"Play{middle}{', too' if rules else ''}."


@pytest.mark.parametrize(
    ("template", "without", "message"),
    [
        ("Swap", ["rules"], r"toy: the prompt has no rules to leave out: mark them .* \{rules\}…\{/rules\}"),
        ("{rules}Swap{/rules}", ["goal"], "toy: the prompt has no goal to leave out"),
        ("Swap{/goal}", [], r"toy: prompt: \{/goal\} closes nothing"),
        ("{goal}Swap", [], "toy: prompt: .*placeholder 'goal'"),
        ("{rules}{m}{/rules}", [], "toy: prompt: .*placeholder 'm'"),
    ],
)
def test_a_template_that_is_wrong(template: str, without: list[str], message: str) -> None:
    with pytest.raises(LevelError, match=message):
        fill(template, {"n": "2"}, "toy", without)
