"""Shisen-Sho with pictures: the pictures of a board, their names, and matching by class."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from g1jax import envs
from g1jax.envs import images
from g1jax.envs.games import shisen_sho_cifar10
from tests.envs import cifar10_files, helpers, test_shisen_sho

FAKE_NAMES = tuple(f"kind {letter}" for letter in "abcdefghij")


@pytest.fixture(autouse=True)
def a_machine_without_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv(images.CIFAR10_VARIABLE, raising=False)
    shisen_sho_cifar10._load.cache_clear()
    yield
    shisen_sho_cifar10._load.cache_clear()


def digits(**keys: Any) -> Any:
    return envs.make("shisen_sho_cifar10", images="digits", **keys)


def write_fake_cifar10(place: Path) -> Path:
    """Twelve pictures a class, in the official binary version, with its own names."""
    files = cifar10_files.binary_files() | {"batches.meta.txt": "\n".join(FAKE_NAMES).encode()}
    return cifar10_files.write_folder(place, files)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"images_per_class": 4},
        {"images_per_class": 5},
        {"images_per_class": 174},
        {"images_per_class": 36, "tile_types": 1},
        {"rows": 4, "cols": 10, "classes": 2, "images_per_class": 20},
    ],
    ids=str,
)
def test_tiles_of_a_class_always_show_different_pictures(keys: dict[str, int]) -> None:
    game = digits(**keys)
    states = jax.jit(jax.vmap(game.reset))(helpers.keys(1500))
    boards, pictures = np.asarray(states.board), np.asarray(states.images)
    assert pictures.min() >= 0
    assert pictures.max() < game.level.images_per_class
    shown = (boards.astype(np.int64) - 1) * 1000 + pictures
    flat = np.sort(shown.reshape(len(shown), -1), axis=1)
    assert (np.diff(flat, axis=1) > 0).all()
    assert not np.asarray(states.terminated).any()
    if not keys:
        counts = test_shisen_sho.counts_of_kinds(boards, 10)
        assert ((counts == 4).sum(axis=1) == 9).all()
        assert (counts[:, 0] == 0).all()


def test_pictures_of_a_class_are_uniform() -> None:
    game = digits(images_per_class=12)
    states = jax.jit(jax.vmap(game.reset))(helpers.keys(4000, seed=1))
    boards, pictures = np.asarray(states.board), np.asarray(states.images)
    counts = np.array([[((boards == 1 + kind) & (pictures == n)).sum() for n in range(12)] for kind in range(10)])
    helpers.assert_fits(counts, np.full((10, 12), 4000 * 36 / 120))
    has_two = (boards == 3).any((1, 2))
    first_two = [shown[board == 3][:2] for board, shown in zip(boards[has_two], pictures[has_two], strict=True)]
    pairs = np.zeros((12, 12))
    np.add.at(pairs, tuple(np.array(first_two).T), 1)
    assert (np.diag(pairs) == 0).all()
    assert ((pairs > 0).sum(axis=1) >= 4).all()  # not always the next one in the set


def test_tiles_match_by_class() -> None:
    game = digits()
    states = jax.jit(jax.vmap(game.reset))(helpers.keys(40))
    masks = np.asarray(jax.jit(jax.vmap(game.legal_actions))(states)).reshape(-1, 36, 36)
    for board, mask in zip(helpers.to_lists(states.board), masks, strict=True):
        np.testing.assert_array_equal(mask, test_shisen_sho.matching_pairs(board))


def test_moves_follow_the_rules_and_keep_the_other_pictures() -> None:
    game = digits()
    played = helpers.play(game, *test_shisen_sho.PLAY).by("any", most=10)
    test_shisen_sho.assert_played_by_the_rules(game, played)
    before, after = np.asarray(played.states.images), np.asarray(played.after.images)
    is_left = np.asarray(played.after.board) > 0
    np.testing.assert_array_equal(after[is_left], before[is_left])


def test_the_expert_clears_boards_of_pictures() -> None:
    game = digits()
    played = helpers.play(game, *test_shisen_sho.PLAY).by("expert")
    is_on = ~np.asarray(played.states.terminated)
    assert np.asarray(played.results.is_legal)[is_on].all()
    assert (np.asarray(played.after.board)[:, -1] == 0).all(axis=(1, 2)).mean() >= 0.9


def test_classes_and_types_are_traced() -> None:
    game = digits()

    @jax.jit
    @helpers.traced_once
    def deal(keys: Any, level: envs.TracedLevel) -> Any:
        return jax.vmap(game.reset, (0, None))(keys, level)

    for classes, tile_types in [(10, 0), (3, 0), (5, 2), (10, 10), (1, 0)]:
        boards = np.asarray(deal(helpers.keys(200), game.traced_level(classes=classes, tile_types=tile_types)).board)
        assert boards.min() == 1
        assert boards.max() == classes
        num_types = tile_types or min(9, classes)
        assert all(len(np.unique(board)) == num_types for board in boards)


def assert_frame_shows_the_pictures(game: Any, state: Any, chosen: np.ndarray) -> None:
    """Every cell is its picture, resized separately, within the grid line."""
    frame = np.asarray(jax.jit(game.render)(state))
    board, pictures = np.asarray(state.board), np.asarray(state.images)
    size = game.level.appearance.cell_size
    edge = max(1, size // 40)
    inside = slice(edge, size - edge)
    for (row, col), kind in np.ndenumerate(board):
        cell = frame[row * size : (row + 1) * size, col * size : (col + 1) * size]
        if kind > 0:
            picture = Image.fromarray(chosen[kind - 1, pictures[row, col]])
            expected = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))
            np.testing.assert_array_equal(cell[inside, inside], expected[inside, inside])
        else:
            assert len(np.unique(cell[inside, inside].reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("size", [28, 80])
def test_every_cell_shows_the_picture_the_state_names(size: int) -> None:
    game = digits(cell_size=size)
    played = helpers.play(digits(), *test_shisen_sho.PLAY).by("legal")
    state = helpers.row(played.after, 1, 8)
    assert 0 < (np.asarray(state.board) == 0).sum() < 36
    assert_frame_shows_the_pictures(game, state, images.load_images("digits", 48).images)


def test_a_users_cifar10_is_shown_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_fake_cifar10(tmp_path / "mine")
    game = envs.make("shisen_sho_cifar10", images=str(folder), images_per_class=12)
    assert game.cell_names() == ["-", *FAKE_NAMES]
    assert all(name in game.prompt for name in FAKE_NAMES)
    state = game.reset(jax.random.key(3))
    chosen = cifar10_files.first_images(12)
    assert_frame_shows_the_pictures(game, state, chosen)
    rows = [" | ".join(FAKE_NAMES[kind - 1] for kind in row) for row in np.asarray(state.board)]
    assert bytes(np.asarray(game.describe(state))).rstrip(b"\0").decode() == "\n".join(rows)
    helpers.assert_trees_equal(game.from_text("\n".join(rows)).board, state.board)
    with pytest.raises(ValueError, match=r"row 0, column 0.*'zero'.*kind a"):
        game.from_text("zero | kind a")
    monkeypatch.setenv(images.CIFAR10_VARIABLE, str(folder))
    for source in ("auto", "cifar10"):
        found = envs.make("shisen_sho_cifar10", images=source, images_per_class=12)
        assert found.cell_names()[1:] == list(FAKE_NAMES)
        np.testing.assert_array_equal(found.renderer.atlas, game.renderer.atlas)


def test_auto_without_cifar10_shows_digits_by_name() -> None:
    game = envs.make("shisen_sho_cifar10")
    assert game.cell_names() == ["-", *images.DIGIT_CLASSES]
    state = game.from_text("\n".join([" | ".join(["one", "two", "three", "-", "nine", "zero"])] * 6))
    assert np.asarray(state.board)[0].tolist() == [2, 3, 4, 0, 10, 1]


def test_games_of_different_sets_are_different_games(tmp_path: Path) -> None:
    one = digits(images_per_class=12)
    assert one == digits(images_per_class=12)
    assert one != digits(images_per_class=13)
    assert one != envs.make("shisen_sho_cifar10", images=str(write_fake_cifar10(tmp_path)), images_per_class=12)


def test_a_text_shows_the_same_pictures_for_the_same_seed_only() -> None:
    game = digits()
    board = "\n".join([" | ".join(["one", "two", "three", "four", "nine", "zero"])] * 6)
    states = [game.from_text(board, seed=seed) for seed in (0, 0, 1)]
    helpers.assert_trees_equal(states[0], states[1])
    assert (np.asarray(states[0].images) != np.asarray(states[2].images)).any()
    for state in states:
        for kind in (1, 2, 3, 4, 5, 10):
            assert len(np.unique(np.asarray(state.images)[np.asarray(state.board) == kind])) == 6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"images": "cifar10"}, "shisen_sho_cifar10: images='cifar10': .*G1JAX_CIFAR10"),
        ({"images": "/no/such/place"}, "No CIFAR-10 at '/no/such/place'.*G1JAX_CIFAR10"),
        ({"images": "digits", "images_per_class": 175}, "digits has 174 images of each class"),
        ({"images": "digits", "images_per_class": 3}, "images_per_class=3: a board has up to 4 tiles of a class"),
        (
            {"images": "digits", "tile_types": 1, "images_per_class": 35},
            "images_per_class=35: a board has up to 36 tiles",
        ),
        ({"images": "digits", "tile_types": 11}, "tile_types=11: there are 10 types"),
        ({"images": "digits", "classes": 11}, "classes=11: 1 to 10"),
        ({"images": "digits", "rows": 3, "cols": 3}, "9 tiles, an odd number"),
    ],
    ids=str,
)
def test_levels_without_enough_pictures_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(envs.LevelError, match=message):
        envs.make("shisen_sho_cifar10", **keys)


def test_a_damaged_set_is_refused_with_its_name(tmp_path: Path) -> None:
    folder = write_fake_cifar10(tmp_path)
    (folder / "data_batch_1.bin").write_bytes(b"damaged")
    with pytest.raises(envs.LevelError, match=r"data_batch_1\.bin is damaged"):
        envs.make("shisen_sho_cifar10", images=str(folder), images_per_class=12)


def test_a_curriculum_cannot_need_more_pictures_than_exist() -> None:
    game = digits(images_per_class=4)
    with pytest.raises(envs.LevelError, match="up to 6 tiles of a class"):
        game.traced_level(classes=6)
    assert int(game.traced_level(classes=9).classes) == 9
