"""Settings: frozen dataclasses whose annotations give the valid values, and one function that checks them all.

    @dataclass(frozen=True, kw_only=True)
    class Play:
        steps: Count = 100
        temperature: Annotated[float, Range(1e-6, 1000, also=0)] = 1.0

    check(play, EvaluationError)  # EvaluationError: steps=0: expected a whole number from 1 to 1000000000

A number without a range is a bug in the dataclass; `check` raises TypeError for it whatever the values.
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
"""The largest seed, which fits JAX's 32-bit integers."""


@dataclass(frozen=True)
class Range:
    """The valid values of a number; never NaN or infinite."""

    low: float
    high: float
    is_above: bool = False
    """Whether `low` itself is excluded."""
    also: float | None = None
    """A valid value outside the range, with a special meaning."""

    def __contains__(self, value: Any) -> bool:
        is_within = self.low < value <= self.high if self.is_above else self.low <= value <= self.high
        return bool(is_within or (self.also is not None and value == self.also))

    def describe(self, what: str) -> str:
        """`0, or a number from 1 to 9`."""
        also = "" if self.also is None else f"{_format(self.also)}, or "
        low, high = _format(self.low), _format(self.high)
        return f"{also}{what} above {low}, up to {high}" if self.is_above else f"{also}{what} from {low} to {high}"


Count = Annotated[int, Range(1, 10**9)]
"""A count of at least 1."""
CountOrNone = Annotated[int, Range(0, 10**9)]
"""A count; 0 for none."""
Size = Annotated[int, Range(1, 2**20)]
"""The size of an array dimension."""
Episodes = Annotated[int, Range(1, 10**7)]
EpisodesOrNone = Annotated[int, Range(0, 10**7)]
Steps = Annotated[int, Range(1, 10**6)]
"""The steps of an episode."""
Share = Annotated[float, Range(0, 1)]
Seed = Annotated[int, Range(0, SEEDS)]
Temperature = Annotated[float, Range(1e-6, 1000, also=0)]
"""0: greedy."""


SECRET = "secret"
"""`Annotated[str, SECRET]`: a string that may contain a password. It is never quoted; its user validates it."""


def check(settings: Any, error: type[G1Error], prefix: str = "") -> None:
    """Checks every value of the settings against its annotation.

    Raises:
        error: A value is invalid; the message names the setting and what is expected.
        TypeError: The dataclass has an annotation that cannot be checked, such as a number without a range.
    """
    if reason := _fields_reason(prefix, settings, type(settings)):
        raise error(reason)


def why_invalid(name: str, value: Any, hint: Any, valid: Range | None = None) -> str:
    """Why a value is invalid; empty if it is valid. `valid` is the range of a number."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and SECRET in args[1:]:
        return "" if type(value) is str else f"{name}: expected a string"
    if origin is Annotated:
        return why_invalid(name, value, args[0], next((part for part in args[1:] if isinstance(part, Range)), valid))
    if hint is Any or (hint is type(None) and value is None):
        return ""
    if hint in (int, float):
        return _number_reason(name, value, hint, valid)
    if hint is bool:
        return _unless(type(value) is bool, name, value, "True or False")
    if hint is str:
        return _unless(type(value) is str and _is_plain(value), name, value, "a single-line string")
    if origin is Literal:
        near = difflib.get_close_matches(value, args, n=1, cutoff=0.5) if type(value) is str else []
        suggestion = f"; did you mean {near[0]!r}?" if near else ""
        return _unless(type(value) is str and value in args, name, value, f"one of {', '.join(args)}{suggestion}")
    if origin in (typing.Union, types.UnionType):
        reasons = [why_invalid(name, value, arg, valid) for arg in args if arg is not type(None)]
        return "" if "" in reasons or (value is None and type(None) in args) else reasons[0]
    if dataclasses.is_dataclass(hint):
        kind = typing.cast(type, hint)
        is_kind = isinstance(value, kind)
        return (
            _fields_reason(f"{name}.", value, kind)
            if is_kind
            else _unless(False, name, value, f"settings of type {kind.__name__}")
        )
    if origin in (tuple, Mapping):
        return _items_reason(name, value, origin, args)
    if isinstance(hint, type) and issubclass(hint, Path):
        return _unless(isinstance(value, Path) and _is_plain(str(value)), name, value, "a path")
    raise TypeError(f"{name}: settings of type {hint} cannot be checked")


def _number_reason(name: str, value: Any, kind: type, valid: Range | None) -> str:
    if valid is None:
        raise TypeError(f"{name}: a number without a range")
    is_number = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
    expected = valid.describe("a number" if kind is float else "a whole number")
    return _unless(is_number and value in valid, name, value, expected)


def _fields_reason(prefix: str, value: Any, kind: Any) -> str:
    hints = typing.get_type_hints(kind, include_extras=True)
    parts = ((f"{prefix}{f.name}", getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(kind))
    return next((reason for part in parts if (reason := why_invalid(*part))), "")


def _items_reason(name: str, value: Any, origin: Any, args: tuple[Any, ...]) -> str:
    """For a tuple (of any length, or with a type for each item) or a mapping with string keys."""
    if origin is not tuple:
        if not isinstance(value, Mapping) or any(type(key) is not str for key in value):
            return _unless(False, name, value, "a dict with string keys")
        parts = [(f"{name}[{key!r}]", item, args[1]) for key, item in value.items()]
    else:
        is_any_length = len(args) == 2 and args[1] is Ellipsis
        if not isinstance(value, tuple | list) or not (is_any_length or len(value) == len(args)):
            return _unless(False, name, value, f"a tuple{'' if is_any_length else f' of {len(args)}'}")
        kinds = (args[0],) * len(value) if is_any_length else args
        parts = [(f"{name}[{i}]", item, kind) for i, (item, kind) in enumerate(zip(value, kinds, strict=True))]
    return next((reason for part in parts if (reason := why_invalid(*part))), "")


def _unless(is_valid: bool, name: str, value: Any, expected: str) -> str:
    return "" if is_valid else f"{name}={show(value)}: expected {expected}"


def show(value: Any) -> str:
    """A value for use in a message: on one line, at most 80 characters."""
    try:
        shown = " ".join(ascii(value).split())
    except ValueError:  # Python refuses to format integers of thousands of digits
        shown = "a number of thousands of digits"
    return shown if len(shown) <= 80 else f"{shown[:79]}…"


def _format(number: float) -> str:
    return str(number) if isinstance(number, int) and abs(number) < 10**10 else f"{number:g}"


def _is_plain(text: str) -> bool:
    return not any(char < " " or "\ud800" <= char <= "\udfff" for char in text)
