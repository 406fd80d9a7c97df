"""Frames against sprites composed cell by cell, and appearances that change frames but not meaning."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import appearance, render
from g1jax.typing import Array
from tests.envs import helpers

GAMES = ("game_2048", "shisen_sho", "shisen_sho_cifar10", "swap")
SHAPE = {"rows": 3, "cols": 4}
EFFECTS = {"noise": 20.0, "jitter": 3, "distractors": 0.5}


@functools.cache
def make(game_id: str, **keys: Any) -> Any:
    if game_id == "shisen_sho_cifar10":
        keys = {"images": "digits", "images_per_class": 12} | keys
    return envs.make(game_id, **SHAPE | keys)


def random_states(game: Any, num: int, level: Any = None, seed: int = 0) -> Any:
    """States of random cells, each with its own seed."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, len(game.cell_names()), (num, game.rows, game.cols)).astype(np.int32)
    seeds = rng.integers(0, 2**32, num, np.uint32)
    level = game.traced_level() if level is None else level
    return jax.jit(jax.vmap(game.from_cells, (0, 0, None)))(cells, seeds, level)


def frames_of(game: Any, states: Any) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(game.render))(states))


def tiles_of(game: Any, states: Any) -> np.ndarray:
    return np.asarray(jax.vmap(game.tiles)(states))


@functools.cache
def sprites_of(game: Any, palette: str, background: str) -> np.ndarray:
    """Drawing them takes longer than composing a frame of them."""
    sprites: np.ndarray = game.draw_tiles(palette, background)
    return sprites


def compose(game: Any, tiles: np.ndarray, palette: str = "classic", background: str = "light") -> np.ndarray:
    """A frame, cell by cell: uint8[H, W, 3]."""
    sprites = sprites_of(game, palette, background)
    size = game.level.appearance.cell_size
    height, width, _ = game.frame_shape
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = appearance.BACKGROUNDS[background][2]
    top, left = (height - game.rows * size) // 2, (width - game.cols * size) // 2
    for (row, col), tile in np.ndenumerate(tiles):
        y, x = top + row * size, left + col * size
        frame[y : y + size, x : x + size] = sprites[tile]
    return frame


def assert_composed(game: Any, states: Any, **look: str) -> None:
    for frame, tiles in zip(frames_of(game, states), tiles_of(game, states), strict=True):
        np.testing.assert_array_equal(frame, compose(game, tiles, **look))


# ---- Plain frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game_id", GAMES)
@pytest.mark.parametrize("cell_size", [28, pytest.param(90, marks=pytest.mark.slow)])
def test_frames_are_the_sprites_of_their_cells(game_id: str, cell_size: int) -> None:
    game = make(game_id, cell_size=cell_size)
    assert game.frame_shape == (3 * cell_size, 4 * cell_size, 3)
    assert_composed(game, random_states(game, 12))


@pytest.mark.parametrize("cell_size", [4, 15, 33])
def test_cells_of_any_size_make_frames(cell_size: int) -> None:
    game = make("swap", cell_size=cell_size)
    assert_composed(game, random_states(game, 6))


@pytest.mark.parametrize(
    "frame_size",
    [(140, 168), (85, 112), (141, 201), (640, 840), pytest.param((84, 113), marks=pytest.mark.slow)],
    ids=str,
)
def test_the_board_is_centered_in_its_frame(frame_size: tuple[int, int]) -> None:
    game = make("shisen_sho", frame_size=frame_size, background="slate")
    assert game.frame_shape == (*frame_size, 3)
    assert_composed(game, random_states(game, 4), background="slate")


@pytest.mark.parametrize("game_id", GAMES)
def test_a_frame_alone_is_the_frame_in_a_batch(game_id: str) -> None:
    game = make(game_id, **EFFECTS, palette=appearance.PALETTES)
    states = random_states(game, 5)
    frames = frames_of(game, states)
    alone = jax.jit(game.render)
    for i in range(5):
        np.testing.assert_array_equal(alone(helpers.row(states, i)), frames[i])


@pytest.mark.parametrize("game_id", GAMES)
def test_a_cell_changes_its_own_pixels_only(game_id: str) -> None:
    game = make(game_id)
    names = list(game.cell_names())
    cells = np.zeros((len(names), 3, 4), np.int32)
    cells[:, 1, 2] = np.arange(len(names))
    states = jax.jit(jax.vmap(lambda board: game.from_cells(board, jnp.uint32(0), game.traced_level())))(cells)
    frames = frames_of(game, states)
    inside = np.zeros(frames.shape[1:3], bool)
    inside[28:56, 56:84] = True
    assert (frames[:, ~inside] == frames[0, ~inside]).all()
    assert len(np.unique(frames.reshape(len(names), -1), axis=0)) == len(names)


@pytest.mark.parametrize("cell_size", [16, pytest.param(28, marks=pytest.mark.slow)])
@pytest.mark.parametrize("background", appearance.BACKGROUNDS)
@pytest.mark.parametrize("palette", appearance.PALETTES)
def test_all_sprites_differ(palette: str, background: str, cell_size: int) -> None:
    tiles = {"game_2048": {}, "shisen_sho": {"colors": 16}, "swap": {}, "shisen_sho_cifar10": {}}
    for game_id, keys in tiles.items():
        sprites = make(game_id, cell_size=cell_size, **keys).draw_tiles(palette, background).astype(np.int16)
        flat = sprites.reshape(len(sprites), -1, 3)
        for i in range(1, len(flat)):
            distance = np.abs(flat[:i] - flat[i]).max(axis=2)  # per pixel, to every earlier sprite
            assert ((distance > 8).sum(axis=1) >= 5).all(), (game_id, i)


# ---- Palettes and backgrounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("game_id", ["game_2048", "swap"])
def test_a_traced_palette_and_background_are_the_ones_shown(game_id: str) -> None:
    palettes, backgrounds = ("deep", "classic", "pastel"), ("dark", "sand")
    game = make(game_id, palette=palettes, background=backgrounds, frame_size=(100, 130))

    @jax.jit
    @helpers.traced_once
    def render(states: Any) -> Array:
        return jax.vmap(game.render)(states)

    for palette, background in itertools.product(palettes, backgrounds):
        states = random_states(game, 4, game.traced_level(palette=palette, background=background))
        for frame, tiles in zip(np.asarray(render(states)), tiles_of(game, states), strict=True):
            np.testing.assert_array_equal(frame, compose(game, tiles, palette, background))
    # By default, an episode's seed draws one.
    cells, seeds = np.ones((600, 3, 4), np.int32), np.arange(600, dtype=np.uint32)
    states = jax.jit(jax.vmap(game.from_cells, (0, 0, None)))(cells, seeds, game.traced_level())
    frames, counts = frames_of(game, states), []
    for palette, background in itertools.product(palettes, backgrounds):
        counts.append((frames == compose(game, cells[0], palette, background)).all(axis=(1, 2, 3)).sum())
    assert sum(counts) == 600
    helpers.assert_fits(counts, np.full(6, 100))


def test_a_single_palette_is_used_for_any() -> None:
    game = make("swap", palette=("deep",), background="dark")
    assert_composed(game, random_states(game, 4, game.traced_level(palette="any")), palette="deep", background="dark")


# ---- Effects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game_id", GAMES)
@pytest.mark.parametrize("frame_size", [None, (101, 131)], ids=str)
def test_effects_turned_to_zero_leave_plain_frames(game_id: str, frame_size: tuple[int, int] | None) -> None:
    game = make(game_id, **EFFECTS, frame_size=frame_size)
    level = game.traced_level(noise=0.0, jitter=0, distractors=0.0)
    assert_composed(game, random_states(game, 6, level))


def shifted(sprite: np.ndarray, down: int, right: int) -> np.ndarray:
    """The sprite shifted, with its edge repeated into the uncovered pixels."""
    reach = max(abs(down), abs(right))
    wide = np.pad(sprite, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    top, left = reach - down, reach - right
    return wide[top : top + sprite.shape[0], left : left + sprite.shape[1]]


def cells_of(frames: np.ndarray, size: int = 28) -> np.ndarray:
    """uint8[n, R·Z, C·Z, 3] -> uint8[n, R, C, Z, Z, 3]."""
    num, height, width, _ = frames.shape
    return frames.reshape(num, height // size, size, width // size, size, 3).transpose(0, 1, 3, 2, 4, 5)


def test_jitter_is_uniform_up_to_its_reach() -> None:
    game = make("swap", jitter=3)
    sprites = game.draw_tiles("classic", "light")
    frames = jax.jit(jax.vmap(game.render))
    for jitter in (1, 3):
        states = random_states(game, 60, game.traced_level(jitter=jitter))
        offsets = list(itertools.product(range(-jitter, jitter + 1), repeat=2))
        variants = np.array([[shifted(sprite, *offset) for offset in offsets] for sprite in sprites])
        counts = np.zeros(len(offsets))
        for cells, tiles in zip(cells_of(np.asarray(frames(states))), tiles_of(game, states), strict=True):
            for place, tile in np.ndenumerate(tiles):
                is_same = (variants[tile] == cells[place]).all(axis=(1, 2, 3))
                assert is_same.sum() == 1, "no shift, or more than one, shows this cell"
                counts += is_same
        helpers.assert_fits(counts, np.full(len(offsets), 60 * 12 / len(offsets)))


def test_distractors_mark_the_given_share_of_cells() -> None:
    game = make("swap", distractors=1.0)
    sprites = game.draw_tiles("classic", "light")
    frames = jax.jit(jax.vmap(game.render))
    for share in (0.0, 0.25, 1.0):
        states = random_states(game, 400, game.traced_level(distractors=share))
        cells, tiles = cells_of(np.asarray(frames(states))), tiles_of(game, states)
        plain = sprites[tiles]
        is_marked = (cells != plain).any(axis=(3, 4, 5))
        if share in (0.0, 1.0):
            assert (is_marked == share).all()
        else:
            helpers.assert_fits([is_marked.sum(), (~is_marked).sum()], [4800 * share, 4800 * (1 - share)])
        # A mark is gray and small: it covers less than an eighth of the cell and moves pixels towards gray.
        covered = (cells != plain).any(axis=5).mean(axis=(3, 4))
        assert covered.max() < 1 / 8
        was, now = plain.astype(np.int16) - 128, cells.astype(np.int16) - 128
        assert (np.abs(now) <= np.abs(was)).all()
    marks = np.unique((cells != plain).any(axis=5)[tiles == 0].reshape(-1, 28 * 28), axis=0)
    assert len(marks) == 4


@pytest.mark.parametrize("deviation", [4.0, 15.0])
def test_noise_has_the_given_deviation_and_no_bias(deviation: float) -> None:
    game = make("game_2048", noise=30.0, background="slate")
    empty = np.zeros((64, 3, 4), np.int32)
    level = game.traced_level(noise=deviation)
    states = jax.jit(jax.vmap(game.from_cells, (0, 0, None)))(empty, np.arange(64, dtype=np.uint32), level)
    noise = frames_of(game, states).astype(np.float64) - compose(game, empty[0], background="slate")
    assert abs(noise.mean()) < 0.02 * deviation
    assert noise.std() == pytest.approx(deviation, rel=0.03)
    for axis in range(4):  # neither frames, rows, columns nor channels repeat each other
        assert abs((noise * np.roll(noise, 1, axis=axis)).mean()) < 0.05 * deviation**2
    assert noise.std(axis=(1, 2, 3)) == pytest.approx(np.full(64, deviation), rel=0.1)


def test_noise_stays_within_the_range_of_pixels() -> None:
    game = make("game_2048", noise=255.0, background="white")
    frames = frames_of(game, random_states(game, 4))
    assert (frames == 255).mean() > 0.3
    assert (frames == 0).mean() > 0.05


def test_noise_is_the_same_for_a_state_and_new_for_every_board_and_episode() -> None:
    game = make("game_2048", noise=20.0)
    cells = np.zeros((3, 3, 4), np.int32)
    cells[1, 2, 3] = 1
    seeds = np.array([5, 5, 6], np.uint32)
    states = jax.jit(jax.vmap(game.from_cells, (0, 0, None)))(cells, seeds, game.traced_level())
    frames = frames_of(game, states)
    np.testing.assert_array_equal(frames, frames_of(game, states))
    for other in (1, 2):
        assert (frames[0, :28] != frames[other, :28]).mean() > 0.5


@pytest.mark.parametrize("game_id", ["game_2048", "swap"])
def test_appearance_changes_no_meaning_and_is_constant_in_an_episode(game_id: str) -> None:
    plain = make(game_id)
    varied = make(
        game_id, **EFFECTS, palette=appearance.PALETTES, background=tuple(appearance.BACKGROUNDS), cell_size=16
    )

    def play(game: Any, keys: Array) -> Any:
        def one(key: Array) -> Any:
            state = game.reset(key)
            after, result = game.step(state, game.sample_action(state, key), key)
            return state.seed, after.seed, game.describe(state), game.describe(after), result

        return jax.vmap(one)(keys)

    seeds, later_seeds, *meaning = jax.jit(play, static_argnums=0)(varied, helpers.keys(16))
    expected = jax.jit(play, static_argnums=0)(plain, helpers.keys(16))
    helpers.assert_trees_equal([seeds, later_seeds, *meaning], list(expected))
    np.testing.assert_array_equal(later_seeds, seeds)
    assert len(np.unique(seeds)) == 16
    assert varied.prompt == plain.prompt


@pytest.mark.parametrize("cell_size", [28, 20, 6])
def test_gpus_read_words_where_segments_have_whole_ones(cell_size: int) -> None:
    game = envs.make("game_2048", cell_size=cell_size, frame_size=(4 * cell_size, 4 * cell_size))
    states = jax.vmap(game.reset)(jax.random.split(jax.random.key(0), 3))
    text = jax.jit(jax.vmap(game.render)).trace(states).lower(lowering_platforms=("cuda",)).as_text()
    has_words = cell_size * 3 % 4 == 0
    assert (re.search(r"stablehlo.bitcast_convert .*xui32>\) -> tensor<.*x4xui8>", text) is not None) == has_words
    if has_words:
        atlas = game.renderer.cut(cell_size)
        segments = jnp.arange(12, dtype=jnp.int32).reshape(3, 4)
        words, read = (f(atlas, jnp.uint32(0), segments) for f in (render._read_words, render._read_bytes))
        np.testing.assert_array_equal(words, read)
