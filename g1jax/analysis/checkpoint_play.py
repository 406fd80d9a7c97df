"""Short evaluations of checkpoints, cached in files: the same settings are played only once."""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g1jax.analysis.appearance import Variant
from g1jax.envs.core import Game, describe_level
from g1jax.errors import EvaluationError
from g1jax.evaluation import results
from g1jax.evaluation.players import policy_player, prepared
from g1jax.evaluation.protocol import play
from g1jax.evaluation.results import GameResult, Result
from g1jax.training.saved_run import SavedRun

FOLDER = "points"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The protocol and temperature of all points of an analysis."""

    episodes: int
    steps: int
    seed: int
    temperature: float

    @property
    def protocol(self) -> dict[str, int]:
        """The protocol, as in results."""
        return {"episodes": self.episodes, "steps": self.steps, "seed": self.seed}


class CheckpointPlay:
    """Plays points and caches them in a folder. Runs of one architecture share compiled programs."""

    def __init__(self, folder: Path, setting: Setting, report: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder / FOLDER
        self.setting = setting
        self._report = report
        self._params = functools.lru_cache(maxsize=1)(SavedRun.params)

    def play(
        self,
        run: SavedRun,
        step: int,
        game: Game[Any],
        *,
        given_perception: bool = False,
        variant: Variant | None = None,
    ) -> GameResult:
        """The result of a checkpoint in a game, from the cache if it was played before.

        Raises:
            ExperimentError: The checkpoint cannot be read.
            ConfigError: The game's frames or prompt do not fit the model.
        """
        about: dict[str, Any] = {"kind": "run", "step": step, "checkpoint": run.mark(step), "sees": given_perception}
        about |= {"temperature": self.setting.temperature, "looks": {variant.axis: variant.value} if variant else {}}
        key = json.dumps([about, self.setting.protocol, game.id, describe_level(game)], sort_keys=True)
        title = "-".join(
            [game.id, *(f"{axis}-{value}" for axis, value in about["looks"].items()), *["sees"] * given_perception]
        )
        name = f"{re.sub(r'[^a-z0-9_.-]', '_', title)}-{step:06d}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        with contextlib.suppress(EvaluationError, OSError, KeyError):  # not played, or not completely written
            return results.load(self.folder / name).games[game.id]
        appearance = variant.appearance if variant else None
        shown = appearance.shown if appearance else game
        policy = prepared(run.setup.policy, self.setting.temperature, [game, shown])
        policy.prompt_tokens(shown)  # raises ConfigError before the weights are read
        self._report(f"{run.folder.name} at step {step}: {title}")
        params = self._params(run, step)
        player = policy_player(
            policy, params, name=run.folder.name, given_perception=given_perception, appearance=appearance
        )
        episodes = play(game, player, self.setting.episodes, self.setting.steps, self.setting.seed)
        result = results.result_of({"name": run.folder.name, **about}, {game.id: episodes})
        results.save(result, self.folder / name)
        return result.games[game.id]

    def result(self, name: str, games: dict[str, GameResult]) -> Result:
        """A result of points that were played, under a player's name."""
        return Result({"name": name}, self.setting.protocol, games)
