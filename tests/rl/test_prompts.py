"""Prompts of a player: templates by game, from strings or files."""

import re
from pathlib import Path

import numpy as np
import pytest

from g1jax import envs
from g1jax.errors import ConfigError, LevelError
from g1jax.rl.policy import Policy
from g1jax.rl.prompts import prompt_of, read_templates
from tests.training import tiny


def test_templates_are_strings_or_files(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("{rows} rows 😀", "utf-8")
    templates = read_templates({"swap": f"@{file}", "game_2048": "Move."})
    game = envs.make("swap", rows=6)
    assert prompt_of(templates, game) == "6 rows 😀"
    assert prompt_of(templates, envs.make("game_2048")) == "Move."
    assert prompt_of(templates, envs.make("shisen_sho")) == envs.make("shisen_sho").prompt


@pytest.mark.parametrize("content", [b"", b"@home", b"\xff\xfe\x00", None])
def test_a_file_that_is_no_prompt_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        read_templates({"swap": f"@{file}"})


def test_unknown_games_are_refused() -> None:
    with pytest.raises(ConfigError, match="prompts: unknown game 'swop'; did you mean 'swap'"):
        read_templates({"swop": "Swap"})


def test_a_policy_reads_its_own_prompts_at_any_level() -> None:
    own = Policy(tiny.CONFIG, tiny.TOKENIZER, budget=48, templates=(("game_2048", "On {rows} rows"),))
    plain = Policy(tiny.CONFIG, tiny.TOKENIZER, budget=48)
    for rows in (2, 3):
        game = envs.make("game_2048", rows=rows, cell_size=28)
        image = int(game.frame_shape[0] * game.frame_shape[1] / 28**2)
        np.testing.assert_array_equal(own.prompt_tokens(game), tiny.TOKENIZER.prompt(f"On {rows} rows", image))
        assert own.prompt_tokens(game).tolist() != plain.prompt_tokens(game).tolist()
    assert own != plain
    with pytest.raises(LevelError, match="unknown placeholder 'row'"):
        Policy(tiny.CONFIG, tiny.TOKENIZER, budget=48, templates=(("game_2048", "{row}"),)).prompt_tokens(game)
