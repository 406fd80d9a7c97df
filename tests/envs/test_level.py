"""Levels: unplayable ones are refused with the reason, and traced keys change without recompiling."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs
from g1jax.envs import appearance
from g1jax.envs.level import Level, keys_of, make_level, traced, traced_keys
from tests.envs import helpers, toy

GAMES = ("game_2048", "shisen_sho", "shisen_sho_cifar10", "swap")


def refused(message: str) -> Any:
    return pytest.raises(envs.LevelError, match=message)


# ---- Unplayable levels -----------------------------------------------------------------------------------------------

EVERYWHERE: list[tuple[dict[str, Any], str]] = [
    ({"rows": 0}, "rows=0: a board has 1 to 30 rows"),
    ({"rows": 31}, "rows=31: a board has 1 to 30 rows"),
    ({"cols": -2}, "cols=-2: a board has 1 to 30 columns"),
    ({"cols": 32}, "cols=32: a board has 1 to 30 columns"),
    ({"cell_size": 3}, "cell_size=3: a cell has 4 to 512 pixels"),
    ({"cell_size": 513}, "cell_size=513: a cell has 4 to 512 pixels"),
    ({"rows": 4, "cols": 4, "frame_size": (111, 112)}, r"frame_size=\(111, 112\): the board alone is 112×112 pixels"),
    ({"rows": 4, "cols": 4, "frame_size": (112, 111)}, "make the frame larger or cell_size smaller"),
    ({"palette": "clasic"}, r"unknown palette 'clasic'; did you mean 'classic'\? Available: classic, pastel, deep"),
    ({"palette": ("deep", "neon")}, "unknown palette 'neon'"),
    ({"palette": ()}, "palette: name at least one of classic"),
    ({"background": "drak"}, r"unknown background 'drak'; did you mean 'dark'"),
    ({"background": ()}, "background: name at least one of light"),
    ({"noise": -1.0}, "noise=-1.0: a standard deviation"),
    ({"noise": 256.0}, "noise=256.0: a standard deviation"),
    ({"noise": math.nan}, "noise=nan: a standard deviation"),
    ({"jitter": -1}, "jitter=-1: 0 to a quarter of a cell, 7 pixels"),
    ({"jitter": 8}, "jitter=8: 0 to a quarter of a cell, 7 pixels"),
    ({"jitter": 2, "cell_size": 7}, "jitter=2: 0 to a quarter of a cell, 1 pixels"),
    ({"distractors": 1.01}, "distractors=1.01: a probability, 0 to 1"),
    ({"distractors": -0.1}, "distractors=-0.1: a probability, 0 to 1"),
]

BY_GAME: list[tuple[str, dict[str, Any], str]] = [
    ("game_2048", {"rows": 1, "cols": 1}, "2048 needs at least two cells"),
    ("game_2048", {"rows": 17}, "a 2048 board has at most 16 rows and columns"),
    ("game_2048", {"cols": 30}, "a 2048 board has at most 16 rows and columns"),
    ("game_2048", {"start_tiles": 0}, "start_tiles=0: 1 to 16, the cells of a 4×4 board"),
    ("game_2048", {"start_tiles": 17}, "start_tiles=17: 1 to 16"),
    ("game_2048", {"rows": 2, "cols": 2, "start_tiles": 5}, "start_tiles=5: 1 to 4, the cells of a 2×2 board"),
    ("game_2048", {"spawn_four": 1.5}, "spawn_four=1.5: a probability, 0 to 1"),
    ("game_2048", {"spawn_four": math.inf}, "spawn_four=inf: a probability, 0 to 1"),
    ("shisen_sho", {"rows": 3, "cols": 3}, "rows=3, cols=3: 9 tiles, an odd number, cannot be pairs"),
    ("shisen_sho", {"rows": 1, "cols": 1}, "1 tiles, an odd number"),
    ("shisen_sho", {"colors": 17}, "colors=17: 1 to 16"),
    ("shisen_sho", {"colors": 0}, "colors=0: 1 to 16"),
    ("shisen_sho", {"shapes": 7}, "shapes=7: 1 to 6"),
    ("shisen_sho", {"shapes": 0}, "shapes=0: 1 to 6"),
    ("shisen_sho", {"tile_types": -1}, "tile_types=-1: there are 36 types"),
    ("shisen_sho", {"colors": 2, "shapes": 2, "tile_types": 5}, r"tile_types=5: there are 4 types \(colors × shapes\)"),
    ("shisen_sho", {"tile_types": 19}, "tile_types=19: 36 cells are too few for a pair of each"),
    ("shisen_sho_cifar10", {"images": "digits", "rows": 5, "cols": 5}, "25 tiles, an odd number"),
    ("shisen_sho_cifar10", {"images": "digits", "classes": 0}, "classes=0: 1 to 10"),
    ("shisen_sho_cifar10", {"images": "digits", "classes": 5, "tile_types": 6}, r"there are 5 types \(classes\)"),
    ("shisen_sho_cifar10", {"images": "digits", "images_per_class": 1001}, "1000 at most"),
    ("swap", {"colors": 2, "shapes": 1}, "colors=2, shapes=1: a board without a run needs at least 3 types"),
    ("swap", {"colors": 17}, "colors=17: 1 to 16"),
    ("swap", {"shapes": 7}, "shapes=7: 1 to 6"),
    ("swap", {"rows": 2, "cols": 2}, "rows=2, cols=2: no swap can make a run of three; the smallest are 1×4 and 2×3"),
    ("swap", {"rows": 1, "cols": 3}, "rows=1, cols=3: no swap can make a run of three"),
    ("swap", {"rows": 3, "cols": 1}, "no swap can make a run of three"),
    ("swap", {"rows": 2, "cols": 1}, "no swap can make a run of three"),
]

WRONG_TYPES: list[tuple[dict[str, Any], str]] = [
    ({"rows": "8"}, "rows='8': expected int, not str"),
    ({"rows": 8.0}, "rows=8.0: expected int, not float"),
    ({"rows": True}, "rows=True: expected int, not bool"),
    ({"rows": None}, "rows=None: expected int, not NoneType"),
    ({"cols": np.int64(4)}, "expected int, not int64"),
    ({"noise": "much"}, "noise='much': expected float, not str"),
    ({"noise": False}, "noise=False: expected float, not bool"),
    ({"palette": 3}, "palette=3: expected str"),
    ({"palette": ("classic", 3)}, r"palette=\('classic', 3\): expected str"),
    ({"frame_size": 640}, "frame_size=640: expected tuple"),
    ({"frame_size": (640, 840, 3)}, "expected tuple"),
    ({"frame_size": (640.0, 840.0)}, "expected tuple"),
]


@pytest.mark.parametrize("game_id", GAMES)
@pytest.mark.parametrize(("keys", "message"), EVERYWHERE, ids=str)
def test_levels_no_game_can_play_are_refused(game_id: str, keys: dict[str, Any], message: str) -> None:
    with refused(f"^{game_id}: .*{message}"):
        envs.make(game_id, **keys)


@pytest.mark.parametrize(("game_id", "keys", "message"), BY_GAME, ids=str)
def test_levels_this_game_cannot_play_are_refused(game_id: str, keys: dict[str, Any], message: str) -> None:
    with refused(f"^{game_id}: .*{message}"):
        envs.make(game_id, **keys)


@pytest.mark.parametrize("game_id", ["game_2048", "swap"])
@pytest.mark.parametrize(("keys", "message"), WRONG_TYPES, ids=str)
def test_values_of_the_wrong_type_are_refused(game_id: str, keys: dict[str, Any], message: str) -> None:
    with refused(f"^{game_id}: .*{message}"):
        envs.make(game_id, **keys)


def test_refusals_are_value_errors() -> None:
    assert issubclass(envs.LevelError, ValueError)


@pytest.mark.parametrize(
    ("game_id", "keys"),
    [
        ("game_2048", {"rows": 1, "cols": 2}),
        ("game_2048", {"rows": 16, "cols": 16, "start_tiles": 256}),
        ("shisen_sho", {"rows": 1, "cols": 2}),
        ("shisen_sho", {"rows": 30, "cols": 30, "colors": 16, "tile_types": 96}),
        ("swap", {"rows": 1, "cols": 4, "colors": 3, "shapes": 1}),
        ("swap", {"rows": 3, "cols": 2}),
        ("game_2048", {"cell_size": 4, "jitter": 1}),
        ("game_2048", {"cell_size": 512}),
        ("game_2048", {"frame_size": [112, 500], "noise": 7, "palette": ["deep", "classic"]}),
    ],
    ids=str,
)
def test_the_widest_levels_are_made(game_id: str, keys: dict[str, Any]) -> None:
    game = envs.make(game_id, **keys)
    for key, value in keys.items():
        made = keys_of(game.level)[key]
        assert made == (tuple(value) if isinstance(value, list) else value)
        assert not isinstance(made, list)
    assert hash(game) == hash(envs.make(game_id, **keys))
    assert isinstance(game.level.appearance.noise, float)


def test_levels_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        envs.make("swap").level.rows = 3


# ---- Traced levels ---------------------------------------------------------------------------------------------------


def test_traced_levels_hold_the_traced_keys_as_numbers() -> None:
    game = envs.make("game_2048", palette=("deep", "pastel"), spawn_four=0.5)
    level = game.traced_level()
    values = vars(level.appearance) | {key: value for key, value in vars(level).items() if key != "appearance"}
    assert set(values) == set(traced_keys(game.level))
    assert {key: (value.dtype.name, value.shape) for key, value in values.items()} == {
        "palette": ("int32", ()),
        "background": ("int32", ()),
        "noise": ("float32", ()),
        "jitter": ("int32", ()),
        "distractors": ("float32", ()),
        "start_tiles": ("int32", ()),
        "spawn_four": ("float32", ()),
    }
    assert float(values["spawn_four"]) == 0.5
    assert int(level.appearance.palette) == -1
    palettes = [game.traced_level(palette=name).appearance.palette for name in ("deep", "pastel", "any")]
    assert list(map(int, palettes)) == [0, 1, -1]
    changed: Any = game.traced_level(spawn_four=1, start_tiles=16)
    assert (float(changed.spawn_four), int(changed.start_tiles)) == (1, 16)
    assert changed.spawn_four.dtype == jnp.float32


def test_a_traced_type_that_does_not_fit_its_level_is_refused() -> None:
    class Lucky(toy.Level):
        more: int = traced(1)

    message = r"countdown: TracedLevel has the fields \['luck', 'start'\], but the level's traced keys are .*'more'"
    with refused(message):
        toy.Countdown(dataclasses.dataclass(frozen=True, kw_only=True)(Lucky)())


@pytest.mark.parametrize(
    ("game_id", "keys", "changes", "message"),
    [
        ("game_2048", {}, {"rows": 5}, "game_2048: unknown traced level key 'rows'.*Available: palette"),
        ("game_2048", {}, {"spawn_for": 0.2}, "unknown traced level key 'spawn_for'; did you mean 'spawn_four'"),
        ("game_2048", {}, {"spawn_four": 1.2}, "game_2048: spawn_four=1.2: a probability, 0 to 1"),
        ("game_2048", {}, {"spawn_four": "often"}, "spawn_four='often': expected float"),
        ("game_2048", {}, {"start_tiles": 17}, "start_tiles=17: 1 to 16"),
        ("game_2048", {}, {"start_tiles": 2.5}, "start_tiles=2.5: expected int"),
        ("game_2048", {}, {"noise": 3.0}, "noise=3.0: make the game with noise above 0 to compile it in"),
        ("game_2048", {"noise": 1.0}, {"noise": 300.0}, "noise=300.0: a standard deviation"),
        ("game_2048", {}, {"distractors": 0.1}, "make the game with distractors above 0"),
        ("game_2048", {"jitter": 2}, {"jitter": 3}, "jitter=3: the game was made for at most 2"),
        ("game_2048", {}, {"palette": "deep"}, "unknown palette of this game 'deep'.*Available: classic"),
        ("game_2048", {}, {"palette": "classik"}, "unknown palette 'classik'; did you mean 'classic'"),
        ("swap", {}, {"background": "dark"}, "unknown background of this game 'dark'"),
        ("swap", {}, {"colors": 5}, "colors=5: the game was made for at most 4"),
        ("swap", {}, {"shapes": 4}, "shapes=4: the game was made for at most 3"),
        ("swap", {}, {"colors": 1, "shapes": 2}, "needs at least 3 types"),
        ("shisen_sho", {}, {"colors": 7}, "colors=7: the game was made for at most 6"),
        ("shisen_sho", {}, {"colors": 2, "shapes": 2, "tile_types": 5}, "tile_types=5: there are 4 types"),
        ("shisen_sho", {"tile_types": 9}, {"colors": 1}, "tile_types=9: there are 6 types"),
        ("shisen_sho_cifar10", {"images": "digits", "classes": 5}, {"classes": 6}, "made for at most 5"),
    ],
    ids=str,
)
def test_traced_levels_beyond_what_the_game_was_made_for_are_refused(
    game_id: str, keys: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with refused(message):
        envs.make(game_id, **keys).traced_level(**changes)


def test_a_tuple_is_no_traced_choice() -> None:
    game = envs.make("swap", palette=("deep", "classic"))
    with refused("unknown palette of this game"):
        game.traced_level(palette=("deep", "classic"))


CURRICULA: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    (
        "game_2048",
        {
            "noise": 9.0,
            "jitter": 2,
            "distractors": 0.5,
            "palette": appearance.PALETTES,
            "background": ("light", "dark"),
        },
        [
            {},
            {"spawn_four": 0.5, "start_tiles": 4},
            {"noise": 2.5, "jitter": 1, "distractors": 0.1, "palette": "deep", "background": "dark"},
            {"noise": 0, "jitter": 0, "distractors": 1, "palette": "any"},
        ],
    ),
    ("shisen_sho", {}, [{}, {"tile_types": 3}, {"colors": 2, "shapes": 5, "tile_types": 10}]),
    ("swap", {}, [{}, {"colors": 3, "shapes": 1}]),
    ("shisen_sho_cifar10", {"images": "digits"}, [{}, {"classes": 3}, {"tile_types": 2}]),
]


@pytest.mark.parametrize(("game_id", "keys", "curriculum"), CURRICULA, ids=[c[0] for c in CURRICULA])
def test_a_curriculum_compiles_once(game_id: str, keys: dict[str, Any], curriculum: list[dict[str, Any]]) -> None:
    game = envs.make(game_id, **keys)

    @jax.jit
    @helpers.traced_once
    def play(key: Any, level: envs.TracedLevel) -> Any:
        state = game.reset(key, level)
        after, result = game.step(state, game.sample_action(state, key), key)
        return state, game.render(after), game.describe(after), result

    boards = []
    for changes in curriculum:
        state, frame, board, result = play(jax.random.key(0), game.traced_level(**changes))
        boards.append((np.asarray(state.board).tobytes(), np.asarray(frame).tobytes()))
        assert bool(result.is_legal)
        for key, value in changes.items():
            if not isinstance(value, str):
                traced_value = getattr(state.level, key, None)
                traced_value = getattr(state.level.appearance, key) if traced_value is None else traced_value
                assert float(traced_value) == pytest.approx(value)
        assert np.asarray(board).any()
    assert len(set(boards)) == len(boards)


# ---- A user's own level ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnLevel(Level):
    depth: int = traced(3, "at_most")
    names: tuple[str, ...] = ("a",)
    limit: int | None = None
    share: float = 0.5


def test_a_users_own_level_is_checked_too() -> None:
    level = make_level(OwnLevel, "mine", {"names": ["x", "y"], "share": 1, "limit": 7})
    assert level == OwnLevel(names=("x", "y"), share=1.0, limit=7)
    assert traced_keys(level)["depth"] == "at_most"
    assert "names" not in traced_keys(level)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"depht": 1}, "unknown level key 'depht'; did you mean 'depth'"),
        ({"names": ("x", 1)}, "expected"),
        ({"limit": 1.5}, "limit=1.5: expected"),
        ({"share": None}, "share=None: expected float, not NoneType"),
    ]
    for keys, message in cases:
        with refused(re.escape(message)):
            make_level(OwnLevel, "mine", keys)


# ---- Prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game_id", GAMES)
def test_the_games_own_prompts_are_filled_in(game_id: str) -> None:
    keys: dict[str, Any] = {"images": "digits"} if game_id == "shisen_sho_cifar10" else {}
    game = envs.make(game_id, rows=6, cols=10, **keys)
    assert "6 rows" in game.prompt
    assert "10 columns" in game.prompt
    assert not re.search(r"\{\w+\}", game.prompt)
    for tag in ("<perception>", "</perception>", "<think>", "</think>", "<answer>", "</answer>"):
        assert tag in game.prompt
    examples = re.findall(r"for example (<answer>.*?</answer>)", game.prompt)
    assert len(examples) == 1
    assert int(game.parse(examples[0])) != game.invalid_action


def test_a_template_is_filled_in_for_the_level() -> None:
    template = "{rows}×{cols} to ({last_row}, {last_col}), {num_actions} moves: {cell_names}. {not closed} {{}} 😀"
    filled = "2×3 to (1, 2), 36 moves: Red circle, Green circle, Blue circle. {not closed} {{}} 😀"
    assert envs.make("swap", rows=2, cols=3, colors=3, shapes=1).fill_prompt(template) == filled


def test_an_unknown_placeholder_is_refused_with_suggestions() -> None:
    with refused("game_2048: prompt: unknown placeholder 'row'; did you mean 'rows'"):
        envs.make("game_2048").fill_prompt("On {row} rows")


def test_a_prompt_is_not_a_level_key() -> None:
    with refused("swap: prompt is not a level key: the player has it"):
        envs.make("swap", prompt="Swap")


# ---- Games as values -------------------------------------------------------------------------------------------------


def test_games_of_one_level_are_equal_and_share_programs() -> None:
    traces = []

    def describe(game: Any, state: Any) -> Any:
        traces.append(game)
        return game.describe(state)

    compiled = jax.jit(describe, static_argnums=0)
    games = [envs.make("game_2048"), envs.make("game_2048", rows=4), envs.make("game_2048", spawn_four=0.2)]
    state = jax.jit(games[0].reset)(jax.random.key(0))
    for game in games:
        compiled(game, state)
    assert games[0] == games[1] != games[2]
    assert len(traces) == 2
    assert envs.make("swap") != envs.make("shisen_sho", rows=8, cols=8)


def test_a_game_shows_what_was_changed() -> None:
    assert repr(envs.make("swap", cols=9, palette="deep")) == "make('swap', cols=9, palette='deep')"
    assert repr(envs.make("swap", rows=8)) == "make('swap')"
