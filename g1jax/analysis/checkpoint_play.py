"""Short evaluations of checkpoints, each played once: what was played under the same settings is read from its file."""

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
from g1jax.vlm import Params

FOLDER = "points"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a point is played."""

    episodes: int
    steps: int
    seed: int
    temperature: float


class CheckpointPlay:
    """The points that were played, in a folder. Runs of one architecture share compiled programs."""

    def __init__(self, folder: Path, setting: Setting, tell: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder / FOLDER
        self.setting = setting
        self.num_played = 0
        self._tell = tell
        self._weights = functools.lru_cache(maxsize=1)(_weights)

    def play(
        self, run: SavedRun, step: int, game: Game[Any], *, sees: bool = False, look: Variant | None = None
    ) -> GameResult:
        """What a checkpoint does in a game: played, unless it was before.

        Raises:
            ExperimentError: the checkpoint cannot be read.
            ConfigError: the model cannot take the game's frames or prompt.
        """
        about: dict[str, Any] = {"kind": "run", "step": step, "checkpoint": run.mark(step), "sees": sees}
        about |= {"temperature": self.setting.temperature, "looks": {look.axis: look.value} if look else {}}
        protocol = {key: getattr(self.setting, key) for key in ("episodes", "steps", "seed")}
        level = describe_level(game)
        what = json.dumps([about, protocol, game.id, level], sort_keys=True)
        told = "-".join([game.id, *(f"{axis}-{value}" for axis, value in about["looks"].items()), *["sees"] * sees])
        name = f"{re.sub(r'[^a-z0-9_.-]', '_', told)}-{step:06d}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
        known = self._known(self.folder / name, game.id)
        if known is not None:
            return known
        looks = look.looks if look else None
        policy = prepared(run.setup.policy, self.setting.temperature, [game, looks.shown if looks else game])
        policy.prompt_tokens(looks.shown if looks else game)  # before the weights are read: it may not fit
        self._tell(f"{run.folder.name} at step {step}: {told}")
        player = policy_player(policy, self._weights(run, step), name=run.folder.name, sees=sees, looks=looks)
        episodes = play(game, player, self.setting.episodes, self.setting.steps, self.setting.seed)
        result = results.result_of({"name": run.folder.name, **about}, {game.id: episodes})
        results.save(result, self.folder / name)
        self.num_played += 1
        return result.games[game.id]

    def result(self, name: str, games: dict[str, GameResult]) -> Result:
        """CheckpointPlay as one player's result."""
        protocol = {key: getattr(self.setting, key) for key in ("episodes", "steps", "seed")}
        return Result({"name": name}, protocol, games)

    def _known(self, folder: Path, label: str) -> GameResult | None:
        try:
            return results.load(folder).games[label]
        except (EvaluationError, OSError, KeyError):  # none, or its writing was cut short
            return None


def _weights(run: SavedRun, step: int) -> Params:
    return run.params(step)
