"""Tests that a run was not trained on: other presets, and other games."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from g1jax import envs
from g1jax.envs.core import Game
from g1jax.errors import LevelError, unknown
from g1jax.training.config import Experiment


@dataclass(frozen=True)
class Trial:
    """A game, at presets joined by `+` or at none."""

    label: str
    game_id: str
    preset: str


def trials_of(names: Sequence[str], learnt: Sequence[str]) -> list[Trial]:
    """What to test on: `swap`, `swap:noisy`, `all`, or `noisy` for each of the `learnt` games that has the preset.

    Raises:
        LevelError: there is no such game or preset.
    """
    trials: list[Trial] = []
    for name in names:
        game_id, colon, preset = name.partition(":")
        if colon or game_id in envs.game_ids():
            trials.append(Trial(name, game_id, preset))
            envs.make(game_id, preset or None)
        elif name == "all":
            trials += [Trial(game_id, game_id, "") for game_id in envs.game_ids()]
        else:
            trials += _of_preset(name, learnt)
    return list(dict.fromkeys(trials))


def _of_preset(preset: str, learnt: Sequence[str]) -> list[Trial]:
    known = {game_id: envs.presets(game_id) for game_id in learnt}
    having = [game_id for game_id in learnt if all(name in known[game_id] for name in preset.split("+"))]
    if not having:
        there = dict.fromkeys(name for presets in known.values() for name in presets)
        raise LevelError(unknown("preset or game", preset, [*there, *envs.game_ids()]))
    return [Trial(f"{game_id}:{preset}", game_id, preset) for game_id in having]


def game_of(trial: Trial, own: Experiment, others: Sequence[Experiment] = ()) -> Game[Any]:
    """A trial for a run: the level keys it has for the game, without the preset it was trained on, then the trial's.

    For a game that it did not learn, the keys are those of the first of the other runs that did, so that it is asked
    in the same words; else there are none.

    Raises:
        LevelError: the level cannot be played.
    """
    LevelError.require(trial.game_id in envs.game_ids(), unknown("game", trial.game_id, envs.game_ids()))
    experiments = [e for e in (own, *others) if trial.game_id in e.games]
    keys = dict(experiments[0].levels.get(trial.game_id, {})) if experiments else {}
    known = envs.presets(trial.game_id) if trial.preset else {}
    for name in trial.preset.split("+") if trial.preset else []:
        LevelError.require(name in known, f"{trial.game_id}: {unknown('preset', name, known)}")
        keys |= known[name]
    return envs.make(trial.game_id, **keys)


def kinship(game: Game[Any], learnt: Sequence[Game[Any]]) -> str:
    """How a test stands to what a run learnt: `learnt`, `other level` or `other game`."""
    if game in learnt:
        return "learnt"
    return "other level" if game.id in [known.id for known in learnt] else "other game"
