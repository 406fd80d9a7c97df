"""Appearance and transfer tests: variants equal games made at that level."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.analysis.appearance import AXES, check_axes, variants_along
from g1jax.analysis.transfer import game_of, kinship, transfer_tests
from g1jax.envs import LevelError
from g1jax.envs.core import Game
from g1jax.evaluation import play, policy_player
from g1jax.rl.policy import Responses
from g1jax.training.config import Experiment

SMALL: dict[str, Any] = {"rows": 2, "cols": 2}


@dataclasses.dataclass(frozen=True, eq=False)
class Watcher:
    """A policy whose response identifies the frame: a sum of its pixels with a weight for each."""

    def boards(self, game: Game[Any], states: Any) -> None:
        """It has no captions."""

    def respond(
        self, params: Any, table: Any, game: Game[Any], frames: Any, keys: Any, *, starts: Any, boards: None
    ) -> Responses:
        pixels = frames.reshape(frames.shape[0], -1).astype(jnp.uint32)
        weights = jnp.arange(pixels.shape[1], dtype=jnp.uint32) * jnp.uint32(2654435761)
        total = jnp.sum(pixels * weights[None], axis=1, dtype=jnp.uint32)
        digits = (total[:, None] // (10 ** jnp.arange(9, dtype=jnp.uint32))[None]) % 10
        none = jnp.zeros((frames.shape[0], 1))
        return Responses(none.astype(jnp.int32), none > 0, none, (digits + 48).astype(jnp.uint8))


WATCHER: Any = Watcher()
NO_TABLE: Any = ()


def seen(game: Game[Any], appearance: Any = None) -> list[list[str]]:
    played = play(game, policy_player(WATCHER, {}, NO_TABLE, appearance=appearance), 3, 2, num_recorded=3)
    assert played.recorded is not None
    assert played.recorded.responses is not None
    return played.recorded.responses


@pytest.mark.parametrize(
    "axis", [axis if axis == "palette" else pytest.param(axis, marks=pytest.mark.slow) for axis in AXES]
)
def test_variants_equal_the_level(axis: str) -> None:
    game = envs.make("game_2048", **SMALL)
    found = variants_along(game, axis)
    assert [variant.value for variant in found if variant.is_own] == [getattr(game.level.appearance, axis)]
    shown = [seen(game)]
    for variant in [variant for variant in found if not variant.is_own][:: 2 if axis != "cell_size" else 1]:
        shown.append(seen(game, variant.appearance))
        assert shown[-1] == seen(envs.make("game_2048", **SMALL, **{axis: variant.value}))
    assert len({str(one) for one in shown}) == len(shown) > 1


def test_axes_of_a_game() -> None:
    digits = envs.make("shisen_sho_cifar10", images="digits")
    assert variants_along(digits, "palette") == []
    assert [variant.value for variant in variants_along(envs.make("swap", cell_size=14), "jitter")] == [0, 1, 3]
    noisy = variants_along(envs.make("swap", noise=10), "noise")
    assert [(variant.value, variant.is_own) for variant in noisy][:3] == [(0.0, False), (8.0, False), (10.0, True)]
    framed = variants_along(envs.make("game_2048", frame_size=(112, 112)), "cell_size")
    assert "the board alone is 224×224" in framed[-1].why_not
    with pytest.raises(LevelError, match="unknown looks axis 'palete'; did you mean 'palette'"):
        check_axes(["noise", "palete"])


def test_boards_and_random_keys_stay_the_same() -> None:
    game = envs.make("game_2048", **SMALL)
    (variant,) = [variant for variant in variants_along(game, "noise") if variant.value == 64]
    plain, noisy = (
        play(game, policy_player(WATCHER, {}, NO_TABLE, appearance=of), 2, 2, num_recorded=2)
        for of in (None, variant.appearance)
    )
    assert plain.recorded is not None
    assert noisy.recorded is not None
    for a, b in zip(*(jax.tree.leaves(of.recorded.states) for of in (plain, noisy) if of.recorded), strict=True):
        np.testing.assert_array_equal(a, b)


def experiment(*games: str, **changes: Any) -> Experiment:
    return Experiment(name="x", games=games, **changes)


def test_transfer_tests() -> None:
    def labels(*names: str) -> list[str]:
        return [test.label for test in transfer_tests(names, ["swap", "game_2048"])]

    assert labels("noisy") == ["swap:noisy", "game_2048:noisy"]
    assert labels("wide+noisy", "swap") == ["game_2048:wide+noisy", "swap"]
    assert labels("all") == envs.game_ids()
    assert labels("shisen_sho:tiny", "shisen_sho:tiny") == ["shisen_sho:tiny"]
    with pytest.raises(LevelError, match="unknown preset or game 'wid'; did you mean 'wide'"):
        labels("wid")


def test_levels_of_transfer_tests() -> None:
    (noisy,), (plain,) = transfer_tests(["swap:noisy"], []), transfer_tests(["swap"], [])
    own = experiment("swap", preset="dark", levels={"swap": {"cols": 9, "noise": 4}})
    assert game_of(noisy, own) == envs.make("swap", cols=9, noise=16)
    assert game_of(plain, own) == envs.make("swap", cols=9, noise=4)
    other = experiment("game_2048", levels={"game_2048": {"cols": 5}})
    assert game_of(noisy, other) == envs.make("swap", preset="noisy")
    assert game_of(noisy, other, [own]) == game_of(noisy, own)
    trained = [envs.make("swap", cols=9, noise=4)]
    assert [kinship(game, trained) for game in (trained[0], envs.make("swap"), envs.make("game_2048"))] == [
        "trained",
        "other level",
        "other game",
    ]
