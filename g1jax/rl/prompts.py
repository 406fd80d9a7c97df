"""Prompts belong to the player: a template for each game, which the game fills in for its level."""

from collections.abc import Mapping
from typing import Any

from g1jax import envs
from g1jax.envs.core import Game
from g1jax.errors import ConfigError, unknown
from g1jax.rl.observation import PICTURE, Observation
from g1jax.untrusted import read_text

Templates = tuple[tuple[str, str], ...]
"""(game id, template) pairs: a value, as part of a policy."""
_MAX_BYTES = 2**16


def read_templates(templates: Mapping[str, str]) -> Templates:
    """Prompt templates by game id; the text of a file for `@path`.

    Raises:
        ConfigError: there is no such game; or a file cannot be read, is empty, or starts with @.
    """
    known = envs.game_ids()
    for game_id in templates:
        ConfigError.require(game_id in known, f"prompts: {unknown('game', game_id, known)}")
    return tuple((game_id, _read(template)) for game_id, template in sorted(templates.items()))


def override(templates: Templates, by: Templates) -> Templates:
    """Templates, replaced by others where these name a game."""
    return tuple(sorted({**dict(templates), **dict(by)}.items()))


def prompt_of(templates: Templates, game: Game[Any], observation: Observation = PICTURE) -> str:
    """A player's prompt for a game: its own template filled in, or else the game's default; without a caption.

    Raises:
        LevelError: the template has an unknown `{placeholder}`, or lacks a part that the observation leaves out.
    """
    return game.fill_prompt(envs.setting_of(dict(templates), game.id, game.default_prompt), observation.without)


def _read(template: str) -> str:
    if not template.startswith("@"):
        return template
    text = read_text(template[1:], max_bytes=_MAX_BYTES, error=ConfigError)
    is_valid = text != "" and not text.startswith("@")
    ConfigError.require(is_valid, f"{template[1:]}: a prompt must not be empty or start with @")
    return text
