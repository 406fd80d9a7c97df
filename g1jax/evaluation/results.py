"""What an evaluation found, as a file to compute with; `tables` has it to read.

The file holds nothing that differs from run to run, such as times: the same player, protocol and seed give the same
bytes. It also holds every figure's sums by episode, which is what paired differences are made of.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from g1jax.envs.core import Game
from g1jax.evaluation.protocol import Episodes, EvaluationError, counts_score
from g1jax.evaluation.statistics import Interval, Sums, curves_of, differences, intervals, sums_of
from g1jax.terminal import printable

FORMAT = 1
FILE = "results.json"


@dataclass(frozen=True, eq=False)
class GameResult:
    """One player on one game."""

    game_id: str
    level: Mapping[str, Any]
    """What was played: the level's keys, and of image games the set of pictures."""
    counts: str
    """What the score is."""
    figures: Mapping[str, Interval]
    curves: Mapping[str, list[float | None]]
    sums: Mapping[str, Sums]


@dataclass(frozen=True, eq=False)
class Result:
    """One player under one protocol."""

    player: Mapping[str, Any]
    """Its `name`, and what else there is to know of it."""
    protocol: Mapping[str, int]
    games: Mapping[str, GameResult]
    """By game id, or `id:preset`."""

    @property
    def name(self) -> str:
        """The player's."""
        return printable(str(self.player["name"]))


def result_of(player: Mapping[str, Any], episodes: Mapping[str, Episodes]) -> Result:
    """The figures of the episodes of each game, all played under one protocol."""
    shapes = {(*np.shape(played.steps.reward), played.seed) for played in episodes.values()}
    if len(shapes) != 1:
        raise EvaluationError("the games were not played under one protocol")
    num_episodes, num_steps, seed = shapes.pop()
    protocol = {"episodes": num_episodes, "steps": num_steps, "seed": seed}
    return Result(dict(player), protocol, {label: _game_result(played) for label, played in episodes.items()})


def _game_result(played: Episodes) -> GameResult:
    sums = sums_of(played)
    counts = "score" if counts_score(played.game) else "steps with reward > 0"
    level = describe_level(played.game)
    return GameResult(played.game.id, level, counts, intervals(sums), curves_of(played), sums)


def describe_level(game: Game[Any]) -> dict[str, Any]:
    """The keys of a game's level, as JSON has them; what `auto` pictures turned out to be."""
    level = json.loads(json.dumps(dataclasses.asdict(game.level)))
    pictures = getattr(game, "pictures", None)
    if pictures is not None:
        level["images"] = pictures.name
    return dict(level)


# Files


def save(result: Result, folder: Path) -> None:
    """Writes results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(as_json(result), indent=1, allow_nan=False) + "\n", "utf-8")


def as_json(result: Result) -> dict[str, Any]:
    """A result as JSON has it."""
    games = {
        label: {
            "game_id": game.game_id,
            "level": game.level,
            "counts": game.counts,
            "figures": {key: _without_nan(dataclasses.asdict(figure)) for key, figure in game.figures.items()},
            "curves": game.curves,
            "sums": {key: [_pack(sums.above), _pack(sums.below)] for key, sums in game.sums.items()},
        }
        for label, game in result.games.items()
    }
    return {"g1jax_evaluation": FORMAT, "player": result.player, "protocol": result.protocol, "games": games}


def load(path: Path) -> Result:
    """A result from its file, or the folder that has it.

    Raises:
        EvaluationError: there is none, or it is something else.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise EvaluationError(f"no results at {path}: neither a {FILE} nor a folder with one")
    try:
        data = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise EvaluationError(f"{file}: not JSON ({error})") from None
    version = data.get("g1jax_evaluation") if isinstance(data, dict) else None
    if version != FORMAT:
        raise EvaluationError(f"{file}: not a result of train/evaluate.py of this version")
    try:
        count = data["protocol"]["episodes"]
        games = {label: _game_from_json(game, count) for label, game in data["games"].items()}
        return Result(data["player"], data["protocol"], games)
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f"{file}: a damaged result ({type(error).__name__}: {error})") from None


def _game_from_json(data: dict[str, Any], count: int) -> GameResult:
    figures = {
        key: Interval(*(math.nan if figure[part] is None else figure[part] for part in ("mean", "low", "high")))
        for key, figure in data["figures"].items()
    }
    sums = {key: Sums(_unpack(above, count), _unpack(below, count)) for key, (above, below) in data["sums"].items()}
    return GameResult(data["game_id"], data["level"], data["counts"], figures, data["curves"], sums)


def _without_nan(figure: dict[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in figure.items()}


def _pack(values: np.ndarray) -> int | list[int]:
    """Whole numbers; one where all are the same."""
    whole = [int(value) for value in values]
    return whole[0] if len(set(whole)) == 1 else whole


def _unpack(values: int | list[int], count: int) -> np.ndarray:
    unpacked = np.broadcast_to(np.array(values, np.float64), (count,))
    return np.array(unpacked)


# Comparing


def compare(ours: Result, theirs: Result) -> dict[str, dict[str, Interval]]:
    """By game, each figure of ours minus theirs, paired by episode, with intervals.

    Raises:
        EvaluationError: they were not played under one protocol, or have no game in common.
    """
    for key, value in ours.protocol.items():
        if theirs.protocol.get(key) != value:
            raise EvaluationError(
                f"not comparable: {ours.name} was played with {key}={value}, "
                f"{theirs.name} with {key}={theirs.protocol.get(key)}"
            )
    common = [label for label in ours.games if label in theirs.games]
    if not common:
        raise EvaluationError(
            f"not comparable: {ours.name} played {', '.join(ours.games)}, {theirs.name} {', '.join(theirs.games)}"
        )
    out = {}
    for label in common:
        a, b = ours.games[label], theirs.games[label]
        _check_same_level(label, a.level, b.level)
        out[label] = differences(dict(a.sums), dict(b.sums))
    return out


def _check_same_level(label: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            raise EvaluationError(
                f"not comparable: {label} was played with {key}={ours.get(key)!r} and with {key}={theirs.get(key)!r}"
            )
