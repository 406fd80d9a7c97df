"""`check_game` passes every game, and fails a broken one for the right reason."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from g1jax import envs
from g1jax.envs import registry, testing
from g1jax.envs.games.game_2048 import Game2048
from g1jax.envs.testing import check_game

_DOCS = Path(__file__).parents[2] / "docs"


SMALL: dict[str, dict[str, Any]] = {
    "game_2048": {},
    "shisen_sho": {"rows": 4, "cols": 4},
    "shisen_sho_cifar10": {"rows": 4, "cols": 4, "images": "digits"},
    "swap": {"rows": 5, "cols": 5},
}


@pytest.mark.parametrize(
    "game_id", ["game_2048", "shisen_sho", "swap", pytest.param("shisen_sho_cifar10", marks=pytest.mark.slow)]
)
def test_shipped_game(game_id: str) -> None:
    check_game(envs.make(game_id, **SMALL[game_id]), num_games=8, num_steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("game_id", SMALL)
def test_shipped_game_at_the_papers_level(game_id: str) -> None:
    check_game(envs.make(game_id, **({"images": "digits"} if game_id == "shisen_sho_cifar10" else {})))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("game_id", "keys"),
    [
        ("game_2048", {"rows": 3, "cols": 5, "spawn_four": 1.0, "cell_size": 16, "background": ("dark", "sand")}),
        ("shisen_sho", {"rows": 4, "cols": 3, "colors": 2, "shapes": 2, "jitter": 2, "distractors": 0.5}),
        ("swap", {"rows": 4, "cols": 5, "colors": 2, "shapes": 2, "frame_size": (200, 150)}),
    ],
)
def test_other_levels(game_id: str, keys: dict[str, Any]) -> None:
    check_game(envs.make(game_id, **keys), num_games=8, num_steps=30)


def test_the_game_of_the_docs() -> None:
    page = (_DOCS / "adding_a_game.md").read_text("utf-8")
    scope: dict[str, Any] = {"__name__": "adding_a_game"}
    known = dict(registry._GAMES)
    try:
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(compile(block, "adding_a_game.md", "exec"), scope)
    finally:
        registry._GAMES.clear()
        registry._GAMES.update(known)
    assert scope["frames"].shape == (1024, 140, 140, 3)


@pytest.mark.slow
def test_the_page_about_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (_DOCS / "batches.md").read_text("utf-8")
    printed: list[Any] = []
    scope: dict[str, Any] = {"__name__": "batches", "print": lambda *values: printed.extend(values)}
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(compile(block, "batches.md", "exec"), scope)
    assert repr(printed[0]).startswith(
        "VecEnv(4 of make('game_2048'), 4 of make('shisen_sho'); frames uint8[8, 168, 168"
    )
    assert printed[1].count("\n") == 3
    assert printed[2] == envs.make("game_2048").prompt
    assert scope["actions"].tolist() == [1] * 4 + [1296] * 4
    assert scope["cells"].shape == (8, 6, 6)
    assert scope["learned"].shape == (8,)
    assert scope["final_frames"].shape == (8, 168, 168, 3)


class _NeverEnds(Game2048):
    """Moves after its end."""

    def step(self, state: Any, action: Any, key: Any) -> Any:
        return super().step(dataclasses.replace(state, terminated=jnp.bool_(False)), action, key)


class _AlwaysLegal(Game2048):
    """Reports every move as legal."""

    def move(self, state: Any, action: Any, key: Any) -> Any:
        after, reward, _ = super().move(state, action, key)
        return after, reward, action != self.invalid_action


class _Blind(Game2048):
    """Draws 2 and 4 the same."""

    def tiles(self, state: Any) -> Any:
        return jnp.where(state.board == 2, 1, state.board.astype(jnp.int32))


class _Secretive(Game2048):
    """Its text omits the values of tiles."""

    def cells(self, state: Any) -> Any:
        return jnp.minimum(state.board.astype(jnp.int32), 1)


class _Callback(Game2048):
    """Computes its legal moves on the host."""

    def legal_actions(self, state: Any) -> Any:
        shape = jax.ShapeDtypeStruct((4,), jnp.bool_)
        return jax.pure_callback(lambda mask: mask, shape, super().legal_actions(state), vmap_method="expand_dims")


@pytest.mark.parametrize(
    ("game_type", "check", "complaint"),
    [
        (_NeverEnds, testing._check_endings, "a finished game"),
        (_AlwaysLegal, testing._check_legal_actions, "is_legal differs"),
        (_Blind, testing._check_frames, "different frames"),
        (_Secretive, testing._check_board_text, "other legal actions"),
        (_Callback, testing._check_runs_on_accelerators, "calls back"),
    ],
)
def test_a_broken_game_is_found(game_type: type[Game2048], check: Any, complaint: str) -> None:
    sample = testing._play(game_type(game_type.Level(rows=3, cols=3)), num_games=8, num_steps=20, seed=0)
    with pytest.raises(AssertionError, match=complaint):
        check(sample)
