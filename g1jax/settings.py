"""Settings: frozen dataclasses whose fields say beside them what they may be, and one check of all of them.

    @dataclass(frozen=True, kw_only=True)
    class Play:
        steps: Count = 100
        temperature: Annotated[float, Range(1e-6, 1000, also=0)] = 1.0

    check(play, EvaluationError)      # EvaluationError: steps=0: a whole number from 1 to 1000000000

A number without a range is a fault of the dataclass, which `check` reports for any values: none can be forgotten.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from g1jax.errors import G1Error

SEEDS = 2**31 - 1
"""The largest seed: what fits JAX's 32-bit integers."""


@dataclass(frozen=True)
class Range:
    """What a number may be; never NaN or infinite."""

    low: float
    high: float
    is_above: bool = False
    """`low` itself is not meant."""
    also: float | None = None
    """A number apart from the others, with a meaning of its own."""

    def __contains__(self, value: Any) -> bool:
        is_within = self.low < value <= self.high if self.is_above else self.low <= value <= self.high
        return bool(is_within or (self.also is not None and value == self.also))

    def spell(self, what: str) -> str:
        """`0, or a number from 1 to 9`."""
        also = "" if self.also is None else f"{_spell(self.also)}, or "
        low, high = _spell(self.low), _spell(self.high)
        return f"{also}{what} above {low}, up to {high}" if self.is_above else f"{also}{what} from {low} to {high}"


Count = Annotated[int, Range(1, 10**9)]
"""How many, at least one."""
CountOrNone = Annotated[int, Range(0, 10**9)]
"""How many, 0 for none."""
Size = Annotated[int, Range(1, 2**20)]
"""A number of rows or parts that shapes an array."""
Episodes = Annotated[int, Range(1, 10**7)]
EpisodesOrNone = Annotated[int, Range(0, 10**7)]
Steps = Annotated[int, Range(1, 10**6)]
"""Of an episode."""
Share = Annotated[float, Range(0, 1)]
Seed = Annotated[int, Range(0, SEEDS)]
Temperature = Annotated[float, Range(1e-6, 1000, also=0)]
"""0: always the likeliest token."""


SECRET = "secret"
"""`Annotated[str, SECRET]`: a text that may hold a password. No message has it; what it must be, its user checks."""


def check(settings: Any, error: type[G1Error], prefix: str = "") -> None:
    """Refuses settings of which one is not what its annotation says, and names it with what it may be.

    Raises:
        error: such a value, in one line.
        TypeError: the dataclass has an annotation that cannot be checked, such as a number without a range.
    """
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        name = f"{prefix}{field.name}"
        reason = _reason(name, getattr(settings, field.name), hints[field.name], None)
        if reason:
            raise error(reason)


def _reason(name: str, value: Any, hint: Any, span: Range | None) -> str:
    """Why a value cannot be, empty if it can."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and SECRET in args[1:]:
        return "" if type(value) is str else f"{name}: expected a text"
    if origin is Annotated:
        return _reason(name, value, args[0], next((part for part in args[1:] if isinstance(part, Range)), span))
    if hint is Any or (hint is type(None) and value is None):
        return ""
    if hint in (int, float):
        return _number_reason(name, value, hint, span)
    if hint is bool:
        return _unless(type(value) is bool, name, value, "True or False")
    if hint is str:
        return _unless(type(value) is str and _is_plain(value), name, value, "a text of one line")
    if origin is Literal:
        near = difflib.get_close_matches(value, args, n=1, cutoff=0.5) if type(value) is str else []
        hint_of = f"; did you mean {near[0]!r}?" if near else ""
        return _unless(type(value) is str and value in args, name, value, f"one of {', '.join(args)}{hint_of}")
    if origin in (typing.Union, types.UnionType):
        reasons = [_reason(name, value, arg, span) for arg in args if arg is not type(None)]
        return "" if "" in reasons or (value is None and type(None) in args) else reasons[0]
    if dataclasses.is_dataclass(hint):
        return _parts_reason(name, value, hint)
    if origin in (tuple, Mapping):
        return _members_reason(name, value, origin, args)
    if isinstance(hint, type) and issubclass(hint, Path):
        return _unless(isinstance(value, Path) and _is_plain(str(value)), name, value, "a path")
    raise TypeError(f"{name}: settings of type {hint} cannot be checked")


def _number_reason(name: str, value: Any, kind: type, span: Range | None) -> str:
    if span is None:
        raise TypeError(f"{name}: a number without a range")
    is_number = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
    expected = span.spell("a number" if kind is float else "a whole number")
    return _unless(is_number and value in span, name, value, expected)


def _parts_reason(name: str, value: Any, kind: Any) -> str:
    if not isinstance(value, kind):
        return _unless(False, name, value, f"settings of type {kind.__name__}")
    hints = typing.get_type_hints(kind, include_extras=True)
    parts = ((f"{name}.{f.name}", getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(kind))
    return next((reason for part in parts if (reason := _reason(*part, None))), "")


def _members_reason(name: str, value: Any, origin: Any, args: tuple[Any, ...]) -> str:
    """Of a tuple (of any length, or one of each type) or a mapping from texts."""
    if origin is not tuple:
        if not isinstance(value, Mapping) or any(type(key) is not str for key in value):
            return _unless(False, name, value, "a dict whose keys are texts")
        parts = [(f"{name}[{key!r}]", item, args[1]) for key, item in value.items()]
    else:
        is_any = len(args) == 2 and args[1] is Ellipsis
        if not isinstance(value, tuple | list) or not (is_any or len(value) == len(args)):
            return _unless(False, name, value, f"a tuple{'' if is_any else f' of {len(args)}'}")
        kinds = (args[0],) * len(value) if is_any else args
        parts = [(f"{name}[{i}]", item, kind) for i, (item, kind) in enumerate(zip(value, kinds, strict=True))]
    return next((reason for part in parts if (reason := _reason(*part, None))), "")


def _unless(holds: bool, name: str, value: Any, expected: str) -> str:
    return "" if holds else f"{name}={show(value)}: expected {expected}"


def show(value: Any) -> str:
    """A value as it may stand in a message: on one line, and not long."""
    try:
        shown = " ".join(ascii(value).split())
    except ValueError:  # Python refuses to spell integers of thousands of digits
        shown = "a number of thousands of digits"
    return shown if len(shown) <= 80 else f"{shown[:79]}…"


def _spell(number: float) -> str:
    return str(number) if isinstance(number, int) and abs(number) < 10**10 else f"{number:g}"


def _is_plain(text: str) -> bool:
    return not any(letter < " " or "\ud800" <= letter <= "\udfff" for letter in text)
