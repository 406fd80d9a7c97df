"""The results of an evaluation as a JSON file; `tables` formats them for reading.

The file has no timestamps or other varying values: the same player, protocol and seed give the same bytes. It includes
the sums of every metric by episode, from which paired differences are computed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from g1jax.envs.core import describe_level
from g1jax.errors import EvaluationError
from g1jax.evaluation.protocol import Episodes, counts_score
from g1jax.evaluation.statistics import Interval, Sums, curves_of, differences, intervals, sums_of
from g1jax.terminal import printable
from g1jax.untrusted import excerpt, read_json

FORMAT = 1
FILE = "results.json"
_MAX_EPISODES = 10_000_000
_MAX_VALUES = 16_000_000  # 100,000 episodes have eight million, of two to four bytes each
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}


@dataclass(frozen=True, eq=False)
class GameResult:
    """One player on one game."""

    game_id: str
    level: Mapping[str, Any]
    """The level's keys, and for image games the image set."""
    counts: str
    """The definition of the score."""
    metrics: Mapping[str, Interval]
    curves: Mapping[str, list[float | None]]
    sums: Mapping[str, Sums]


@dataclass(frozen=True, eq=False)
class Result:
    """One player under one protocol."""

    player: Mapping[str, Any]
    """Its `name` and other information."""
    protocol: Mapping[str, int]
    games: Mapping[str, GameResult]
    """By game id, or `id:preset`."""

    @property
    def name(self) -> str:
        """The player's name, printable."""
        return printable(str(self.player["name"]))

    @property
    def observation(self) -> tuple[str, ...]:
        """What the player was shown, printable; empty for the default: the picture, and a whole prompt."""
        shown = self.player.get("observation")
        return tuple(printable(str(name)) for name in shown) if isinstance(shown, list) else ()

    @property
    def title(self) -> str:
        """The name, and the observation if it is not the default: `g1-nano (picture, caption)`."""
        return f"{self.name} ({', '.join(self.observation)})" if self.observation else self.name


def result_of(player: Mapping[str, Any], episodes: Mapping[str, Episodes]) -> Result:
    """The metrics of the episodes of each game, all played under one protocol."""
    shapes = {(*np.shape(played.steps.reward), played.seed) for played in episodes.values()}
    EvaluationError.require(len(shapes) == 1, "the games were not played under one protocol")
    num_episodes, num_steps, seed = shapes.pop()
    protocol = {"episodes": num_episodes, "steps": num_steps, "seed": seed}
    return Result(dict(player), protocol, {label: _game_result(played) for label, played in episodes.items()})


def _game_result(played: Episodes) -> GameResult:
    sums = sums_of(played)
    counts = "score" if counts_score(played.game) else "steps with reward > 0"
    level = describe_level(played.game)
    return GameResult(played.game.id, level, counts, intervals(sums), curves_of(played), sums)


# Files


def save(result: Result, folder: Path) -> None:
    """Writes results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(result), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (folder / FILE).write_bytes(text.encode("utf-8", "replace"))  # a name may have lone surrogates


def as_json(result: Result) -> dict[str, Any]:
    """A result as JSON data."""
    games = {
        label: {
            "game_id": game.game_id,
            "level": game.level,
            "counts": game.counts,
            "figures": {key: metric.as_json() for key, metric in game.metrics.items()},
            "curves": game.curves,
            "sums": {key: [_pack(sums.above), _pack(sums.below)] for key, sums in game.sums.items()},
        }
        for label, game in result.games.items()
    }
    return {"g1jax_evaluation": FORMAT, "player": result.player, "protocol": result.protocol, "games": games}


def load(path: Path) -> Result:
    """A result from its file or its folder.

    Raises:
        EvaluationError: There is no such file, or it is not a valid result.
    """
    file = path / FILE if path.is_dir() else path
    EvaluationError.require(file.is_file(), f"no results at {path}: neither a {FILE} nor a folder with one")
    data = read_json(file, max_values=_MAX_VALUES, error=EvaluationError)
    version = data.get("g1jax_evaluation") if isinstance(data, dict) else None
    if type(version) is not int or version != FORMAT:
        raise EvaluationError(f"{file}: not a result of train/evaluate.py of this version")
    return _Reader(file).result(data)


@dataclass(frozen=True)
class _Reader:
    """Checks the type and range of every value in a file; an error names the key of an invalid one."""

    file: Path

    def result(self, data: dict[str, Any]) -> Result:
        player, protocol = self.get(data, "player", dict), self.get(data, "protocol", dict)
        self.get(player, "name", str, "player.")
        for key in ("episodes", "steps", "seed"):
            self.get(protocol, key, int, "protocol.")
        count = protocol["episodes"]
        if not 0 < count <= _MAX_EPISODES:
            raise self.wrong("protocol.episodes", count, f"1 to {_MAX_EPISODES}")
        games = self.get(data, "games", dict)
        return Result(player, protocol, {label: self.game(games, label, count) for label in games})

    def game(self, games: dict[str, Any], label: str, count: int) -> GameResult:
        data, at = self.get(games, label, dict, "games."), f"games.{label}."
        metrics = {
            key: Interval(*(self.number(metric, part, f"{at}figures.{key}.") for part in ("mean", "low", "high")))
            for key, metric in self.get(data, "figures", dict, at).items()
        }
        curves = self.get(data, "curves", dict, at)
        for key in curves:
            curve = self.get(curves, key, list, f"{at}curves.")
            if not all(value is None or type(value) in (int, float) for value in curve):
                raise self.wrong(f"{at}curves.{key}", curve, "numbers and nulls")
        sums = {
            key: self.sums(parts, f"{at}sums.{key}", count) for key, parts in self.get(data, "sums", dict, at).items()
        }
        level, counts = self.get(data, "level", dict, at), self.get(data, "counts", str, at)
        return GameResult(self.get(data, "game_id", str, at), level, counts, metrics, curves, sums)

    def sums(self, parts: Any, key: str, count: int) -> Sums:
        if not isinstance(parts, list) or len(parts) != 2:
            raise self.wrong(key, parts, "two lists")
        above, below = (self.unpacked(part, key, count) for part in parts)
        return Sums(above, below)

    def unpacked(self, values: Any, key: str, count: int) -> np.ndarray:
        whole = values if isinstance(values, list) else [values]
        are_whole = all(type(value) is int and abs(value) < 2**53 for value in whole)
        if not are_whole or len(whole) not in (1, count) or (isinstance(values, list) and len(whole) != count):
            raise self.wrong(key, values, f"a whole number or a list of {count}")
        return np.broadcast_to(np.array(whole, np.float64), (count,))

    def number(self, metric: Any, part: str, at: str) -> float:
        value = metric.get(part, "") if isinstance(metric, dict) else ""
        if value is None:
            return math.nan
        if type(value) not in (int, float):
            raise self.wrong(f"{at}{part}", value, "a number or null")
        return float(value)

    def get(self, data: dict[str, Any], key: str, kind: type, at: str = "") -> Any:
        value = data.get(key)
        if type(value) is not kind:
            raise self.wrong(f"{at}{key}", value, _KINDS[kind])
        return value

    def wrong(self, key: str, value: object, expected: str) -> EvaluationError:
        return EvaluationError(f"{self.file}: damaged result: {excerpt(key)} is {excerpt(value)}, not {expected}")


def _pack(values: np.ndarray) -> int | list[int]:
    """The values as integers; a single one if all are equal."""
    whole = [int(value) for value in values]
    return whole[0] if len(set(whole)) == 1 else whole


# Comparing


def compare(ours: Result, theirs: Result) -> dict[str, dict[str, Interval]]:
    """By game, the difference of each metric, ours minus theirs, paired by episode, with intervals.

    Results with different numbers of episodes are paired over the first ones, `num_paired`: an episode depends on the
    seed and its index alone.

    Raises:
        EvaluationError: The steps, seeds or levels differ, or there is no common game or metric.
    """
    for key, value in ours.protocol.items():
        if key != "episodes" and theirs.protocol.get(key) != value:
            raise EvaluationError(
                f"not comparable: {ours.title} was played with {key}={value}, "
                f"{theirs.title} with {key}={theirs.protocol.get(key)}"
            )
    common = [label for label in ours.games if label in theirs.games]
    if not common:
        raise EvaluationError(
            f"not comparable: {ours.title} played {', '.join(ours.games)}, {theirs.title} {', '.join(theirs.games)}"
        )
    out, count = {}, num_paired(ours, theirs)
    for label in common:
        a, b = ours.games[label], theirs.games[label]
        _check_same_level(label, a.level, b.level)
        if not set(a.sums) & set(b.sums):
            raise EvaluationError(f"not comparable: {ours.title} and {theirs.title} have no common metric for {label}")
        out[label] = differences(_first(a.sums, count), _first(b.sums, count))
    return out


def num_paired(ours: Result, theirs: Result) -> int:
    """The number of episodes that both have."""
    return min(ours.protocol["episodes"], theirs.protocol["episodes"])


def _first(sums: Mapping[str, Sums], count: int) -> dict[str, Sums]:
    return {key: Sums(of.above[:count], of.below[:count]) for key, of in sums.items()}


def _check_same_level(label: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    for key in {**ours, **theirs}:
        if key == "prompt":  # the player's; an earlier version had it in the level
            continue
        if ours.get(key) != theirs.get(key):
            raise EvaluationError(
                f"not comparable: {label} was played with {key}={ours.get(key)!r} and with {key}={theirs.get(key)!r}"
            )
