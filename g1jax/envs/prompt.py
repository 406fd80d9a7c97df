"""Prompt templates: `{name}` is a value of the game; `{rules}…{/rules}` and `{goal}…{/goal}` can be left out."""

import re
from collections.abc import Collection, Mapping

from g1jax.errors import LevelError, unknown

PARTS = ("rules", "goal")
_PART = re.compile(r"\{(" + "|".join(PARTS) + r")\}(.*?)\{/\1\}", re.DOTALL)
_CLOSING = re.compile(r"\{/(?:" + "|".join(PARTS) + r")\}")


def fill(template: str, fields: Mapping[str, str], game_id: str, without: Collection[str] = ()) -> str:
    """A prompt from a template, without some of its parts.

    >>> fill("Swap{rules} two of {rows} rows{/rules}.", {"rows": "8"}, "swap")
    'Swap two of 8 rows.'
    >>> fill("Swap{rules} two of {rows} rows{/rules}.", {"rows": "8"}, "swap", without=["rules"])
    'Swap.'

    Raises:
        LevelError: the template has an unknown `{name}`, a part without its opening, or lacks a part to leave out.
    """
    found = {match[1] for match in _PART.finditer(template)}
    for part in without:
        LevelError.require(
            part in found,
            f"{game_id}: the prompt has no {part} to leave out: mark them in its template, {{{part}}}…{{/{part}}}",
        )
    text = _PART.sub(lambda match: "" if match[1] in without else match[2], template)
    stray = _CLOSING.search(text)
    LevelError.require(stray is None, f"{game_id}: prompt: {stray and stray[0]} closes nothing")

    def value(match: re.Match[str]) -> str:
        LevelError.require(match[1] in fields, f"{game_id}: prompt: {unknown('placeholder', match[1], fields)}")
        return fields[match[1]]

    return re.sub(r"\{(\w+)\}", value, text)
