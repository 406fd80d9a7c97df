"""Pictures of boards: labels, the chosen move and a caption, beside unchanged pixels of the frame."""

from typing import Any

import jax
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs.core import Game
from g1jax.evaluation.drawing import MARK, answer_of, draw_board, move_of

SWAP, SUMS = envs.make("swap"), envs.make("game_2048")


def picture(game: Game[Any], action: int, caption: str = "") -> np.ndarray:
    return np.asarray(draw_board(game, np.asarray(game.render(game.reset(jax.random.key(0)))), action, caption))


def marked(page: np.ndarray) -> np.ndarray:
    """The rows and columns, min and max, of the mark's color."""
    places = np.argwhere((page == MARK).all(axis=-1))
    return np.concatenate([places.min(axis=0), places.max(axis=0)])


def test_moves_in_words() -> None:
    action = int(SWAP.parse("<answer>(3, 6) (3, 7)</answer>"))
    assert (move_of(SWAP, action), answer_of(SWAP, action)) == (([[3, 6], [3, 7]], ""), "(3, 6) (3, 7)")
    assert (move_of(SUMS, 3), answer_of(SUMS, 3)) == (([], "left"), "left")
    assert (move_of(SUMS, SUMS.invalid_action), answer_of(SUMS, SUMS.invalid_action)) == (([], ""), "")


def test_chosen_cells_are_outlined() -> None:
    plain, page = (picture(SWAP, n) for n in (SWAP.invalid_action, int(SWAP.parse("<answer>(3, 6) (3, 7)</answer>"))))
    assert page.shape == (16 + 224, 16 + 224, 3)
    side = 224 // 8
    top, left, bottom, right = marked(page)
    assert (top, left, bottom, right) == (16 + 3 * side + 1, 16 + 6 * side + 1, 16 + 4 * side - 2, 16 + 8 * side - 2)
    differs = (plain != page).any(axis=-1)
    assert not differs[: 16 + 3 * side].any()
    assert not differs[:, : 16 + 6 * side].any()
    assert not differs[16 + 3 * side + 8 : 16 + 4 * side - 8, 16 + 6 * side + 8 : 16 + 7 * side - 8].any()


@pytest.mark.parametrize(("action", "axis", "sign"), [(0, 0, -1), (1, 1, 1), (2, 0, 1), (3, 1, -1)])
def test_arrows_point_where_tiles_slide(action: int, axis: int, sign: int) -> None:
    corners = marked(picture(SUMS, action)).reshape(2, 2) - (16 + 112)
    center = corners.mean(axis=0)
    assert center[axis] * sign > 2
    assert abs(center[1 - axis]) < 2


def test_labels_and_caption() -> None:
    page = picture(SUMS, 0, "step 1: up, score 0")
    assert page.shape == (16 + 224 + 20, 16 + 224, 3)
    for strip in (page[:16], page[:, :16], page[-20:]):
        assert (strip != 255).any()
    assert (page[:16, :16] == 255).all()
