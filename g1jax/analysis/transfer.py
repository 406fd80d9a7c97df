"""Transfer tests: levels and games that a run was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from g1jax import envs
from g1jax.envs.core import Game
from g1jax.envs.level import base_id_of
from g1jax.errors import LevelError, unknown
from g1jax.training.config import Experiment


@dataclass(frozen=True)
class TransferTest:
    """A game, optionally at presets joined by `+`."""

    label: str
    game_id: str
    preset: str


def transfer_tests(names: Sequence[str], trained: Sequence[str]) -> list[TransferTest]:
    """The tests named `swap`, `swap:noisy`, `all`, or `noisy`: each of the `trained` games that has this preset.

    Raises:
        LevelError: There is no such game or preset.
    """
    tests: list[TransferTest] = []
    for name in names:
        game_id, colon, preset = name.partition(":")
        if colon or game_id in envs.game_ids():
            tests.append(TransferTest(name, game_id, preset))
            envs.make(game_id, preset or None)
        elif name == "all":
            tests += [TransferTest(game_id, game_id, "") for game_id in envs.game_ids()]
        else:
            tests += _tests_of_preset(name, trained)
    return list(dict.fromkeys(tests))


def _tests_of_preset(preset: str, trained: Sequence[str]) -> list[TransferTest]:
    known = {game_id: envs.presets(game_id) for game_id in trained}
    matching = [game_id for game_id in trained if all(name in known[game_id] for name in preset.split("+"))]
    if not matching:
        available = dict.fromkeys(name for presets in known.values() for name in presets)
        raise LevelError(unknown("preset or game", preset, [*available, *envs.game_ids()]))
    return [TransferTest(f"{game_id}:{preset}", game_id, preset) for game_id in matching]


def game_of(test: TransferTest, own: Experiment, others: Sequence[Experiment] = ()) -> Game[Any]:
    """The game of a test for a run: the run's level keys without its training preset, overridden by the test's presets.

    For a game that the run was not trained on, the level keys come from the first of the other runs that was; if none
    was, there are no level keys.

    Raises:
        LevelError: The level is invalid.
    """
    LevelError.require(test.game_id in envs.game_ids(), unknown("game", test.game_id, envs.game_ids()))
    experiments = [e for e in (own, *others) if test.game_id in map(base_id_of, e.games)]
    keys = dict(experiments[0].levels.get(test.game_id, {})) if experiments else {}
    known = envs.presets(test.game_id) if test.preset else {}
    for name in test.preset.split("+") if test.preset else []:
        LevelError.require(name in known, f"{test.game_id}: {unknown('preset', name, known)}")
        keys |= known[name]
    return envs.make(test.game_id, **keys)


def kinship(game: Game[Any], trained: Sequence[Game[Any]]) -> str:
    """The relation of a test's game to the games of training: `trained`, `other level` or `other game`."""
    if game in trained:
        return "trained"
    return "other level" if game.base_id in [known.base_id for known in trained] else "other game"
