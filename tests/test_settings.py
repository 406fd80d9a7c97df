"""Every setting is checked before anything is written or run: an invalid one is named in one line."""

import dataclasses
import functools
import itertools
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import pytest

from g1jax import envs, rl, settings, vlm
from g1jax.endpoint import client
from g1jax.errors import G1Error
from g1jax.programs import analyze, dataset, evaluate, train
from g1jax.rl.rewards import RewardWeights
from g1jax.settings import Range
from g1jax.training import ExperimentError, experiment_names, load_experiment, loop
from g1jax.training.config import Experiment, Optimizer
from g1jax.training.optimizer import make_optimizer
from g1jax.training.setup import make_setup
from tests.training import tiny

Values = dict[tuple[str, ...], Any]
BAD: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**40, 10**5000, 0.5, -0.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"),
       True, "1", "", None, (), {}, b"1", 1j,
)  # fmt: skip
BASIS = tiny.make_experiment("nano", "", games=tiny.BOTH)


def numbers_of(kind: Any, hint: Any = None) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and types of the numbers in a dataclass, including nested dataclasses, mappings, and unions with None."""
    hint = kind if hint is None else hint
    if typing.get_origin(hint) is Annotated:
        yield from numbers_of(kind, typing.get_args(hint)[0])
    elif dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        for field in dataclasses.fields(hint):
            yield from (((field.name, *path), part) for path, part in numbers_of(kind, hints[field.name]))
    elif typing.get_origin(hint) is Mapping:
        yield from ((("swap", *path), part) for path, part in numbers_of(kind, typing.get_args(hint)[1]))
    elif hint in (int, float):
        yield (), hint
    elif typing.get_origin(hint) is not Literal and typing.get_args(hint):
        for part in typing.get_args(hint):
            if part is not type(None) and part is not Ellipsis:
                yield from numbers_of(kind, part)


def with_value(whole: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy with one setting replaced."""
    if not path:
        return value
    first, *rest = path
    if isinstance(whole, Mapping):
        return {**whole, first: with_value(whole.get(first, RewardWeights()) if rest else None, tuple(rest), value)}
    return dataclasses.replace(whole, **{first: with_value(getattr(whole, first), tuple(rest), value)})


def name_of(path: tuple[str, ...]) -> str:
    """The name in messages: `rl.walk_steps['swap']`."""
    parts = [f"[{part!r}]" if part == "swap" else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def error_of(call: Any) -> str:
    """The error message of a call; empty if there is no error."""
    try:
        call()
    except G1Error as error:
        message = str(error)
        assert message
        assert "\n" not in message
        assert len(message) < 400
        return message
    return ""


def check_with(basis: Any, path: tuple[str, ...], value: Any) -> None:
    settings.check(with_value(basis, path, value), ExperimentError)


NUMBERS = [path for path, _ in numbers_of(Experiment)]


def test_all_numbers_are_found() -> None:
    found = {name_of(path) for path in NUMBERS}
    assert len(NUMBERS) == len(found) >= 55
    assert {"seed", "rl.optimizer.b2", "evaluation.temperature", "log.keep", "rl.walk_steps['swap']"} <= found
    assert "rl.weights_by_game['swap'].format" in found


@pytest.mark.parametrize("path", NUMBERS, ids=name_of)
def test_a_number_of_an_experiment(path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rejected by name, or the experiment can be set up."""
    monkeypatch.chdir(tmp_path)
    kind = dict(numbers_of(Experiment))[path]
    for value in BAD:
        message = error_of(lambda value=value: make_setup(with_value(BASIS, path, value)))
        is_number = type(value) is int or (kind is float and type(value) is float)
        is_default = value == () and len(path) == 1 and getattr(BASIS, path[0]) == ()
        if is_default:
            assert message == ""
        elif not is_number or value != value or abs(value) == float("inf") or abs(value) > 1e31:
            names = (
                f"{name_of(path)}=",
                f"{path[-1]}=",
                f"LoRA: {path[-1]}=",
            )  # the latter from the part that rejects it
            assert message.startswith(names), (value, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "basis",
    [
        evaluate.Options(),
        analyze.Options(),
        dataset.Options(out=Path("out")),
        client.Endpoint(),
        rl.Algorithm(),
        RewardWeights(),
        vlm.Sampling(),
        vlm.lora.LoRA(),
    ],
    ids=lambda basis: f"{type(basis).__module__}.{type(basis).__name__}",
)
def test_numbers_of_programs_and_parts(basis: Any) -> None:
    found = list(numbers_of(type(basis)))
    assert found
    for (path, kind), value in itertools.product(found, BAD):
        check = functools.partial(check_with, basis, path, value)
        message = error_of(check)
        is_number = type(value) is int or (kind is float and type(value) is float)
        is_default = value in (None, ()) and value == functools.reduce(getattr, path, basis)
        if not is_default and (not is_number or not abs(value) < 1e31):
            assert f"{path[-1]}=" in message, (path, value, message)
            assert ": expected " in message


@pytest.mark.parametrize("game_id", envs.game_ids())
def test_a_number_of_a_level(game_id: str) -> None:
    """The game's own levels, and levels mixed in a cold start."""
    keys = {"images": "digits"} if game_id == "shisen_sho_cifar10" else {}
    game = envs.make(game_id, **keys)
    numbers = [path[-1] for path, _ in numbers_of(type(game.level))]
    assert {"rows", "cell_size", "noise", "frame_size"} <= set(numbers)
    for name, value in itertools.product(dict.fromkeys(numbers), (*BAD, (2**40, 2**40), (-1, 0), (float("nan"), 1))):
        message = error_of(functools.partial(envs.make, game_id, **keys | {name: value}))
        if message:
            assert name in message
        else:
            assert all(0 < side <= 30 * 512 for side in envs.make(game_id, **keys | {name: value}).frame_shape)
        message = error_of(functools.partial(game.traced_level, **{name: value}))
        assert not message or name in message or "traced level key" in message


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (
            evaluate.evaluate,
            evaluate.Options(temperature=float("nan")),
            "temperature=nan: expected 0, or a number from",
        ),
        (
            evaluate.evaluate,
            evaluate.Options(seed=2**31),
            "seed=2147483648: expected a whole number from 0 to 2147483647",
        ),
        (analyze.analyze, analyze.Options(temperature=-1.0), "temperature=-1.0: expected"),
        (analyze.analyze, analyze.Options(episodes=0), "episodes=0: expected"),
        (dataset.make_dataset, dataset.Options(out=Path("out"), states=0), "states=0: expected"),
        (dataset.make_dataset, dataset.Options(out=Path("out"), seed=2**40), "seed=1099511627776: exp"),
    ],
)
def test_programs_check_first(
    run: Any, options: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(lambda: run(options)).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name: an experiment needs one"),
        ({"name": "two\nlines"}, "lines': expected a single-line string"),
        ({"games": "swap"}, "games='swap': expected a tuple"),
        ({"games": ("swap", 1)}, "games[1]=1: expected a single-line string"),
        ({"dtype": "float16"}, "dtype='float16': expected one of float32, bfloat16"),
        ({"is_remat": 1}, "is_remat=1: expected True or False"),
        ({"rl": None}, "rl=None: expected settings of type RL"),
        ({"levels": {"shisen_sho": 3}}, "levels['shisen_sho']=3: expected a dict with string keys"),
        ({"levels": {"chess": {}}}, "levels: unknown game 'chess'"),
        ({"levels": {"chess:6x6": {}}}, "levels: unknown game 'chess'"),
        ({"levels": {"game_2048": {"frame_size": [2**31, 2**31]}}}, "game_2048: frame_size=(2147483648, 2147483648)"),
        ({"levels": {"game_2048": {"noise": 10**400}}}, "game_2048: noise=1000000"),
        ({"cold_start__mixed_levels": {"shisen_sho": ()}}, "cold_start.mixed_levels['shisen_sho']: name at least one"),
        ({"cold_start__mixed_levels": {"shisen_sho": ({"colors": 0},)}}, "shisen_sho: colors=0"),
        ({"cold_start__choice": "random"}, "cold_start.choice='random': expected one of teacher, uniform, first"),
        ({"rl__walk_steps": {"shisen": 3}}, "rl.walk_steps: unknown game 'shisen'; did you mean 'shisen_sho'"),
        (
            {"rl__weights_by_game": {"swap": 1.0}},
            "rl.weights_by_game['swap']=1.0: expected settings of type RewardWeights",
        ),
        ({"rl__algorithm": "dapo"}, "rl.algorithm='dapo': expected settings of type Algorithm"),
        (
            {"rl__iterations": 10**9, "rl__minibatching": rl.Minibatching(epochs=3)},
            "rl.iterations × epochs × minibatches: 3000000000, more than",
        ),
        ({"max_new_tokens": 10**6}, "a sequence of 1000"),
        ({"lora__rank": 4, "lora__targets": ()}, "LoRA: targets=(): expected a tuple of names"),
    ],
)
def test_invalid_experiments(changes: dict[str, Any], message: str) -> None:
    assert message in error_of(lambda: make_setup(tiny.make_experiment("nano", "", **{"games": tiny.BOTH} | changes)))


@pytest.mark.parametrize("name", experiment_names())
def test_a_learning_rate_of_zero_is_allowed(name: str) -> None:
    e = train.parse([f"--experiment={name}", "--rl.lr=0", "--cold-start.lr=0", "--log.every=0"], "")
    assert e.rl.optimizer.lr == e.cold_start.optimizer.lr == 0
    assert e == load_experiment(name) or e.name == name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_learning_rate_of_zero_changes_nothing(name: Literal["adamw", "muon"]) -> None:
    optimizer = make_optimizer(Optimizer(name=name, lr=0.0, final_norm_lr=0.1, warmup=2, weight_decay=1.0), 4)
    params = {"model": {"norm": {"scale": jnp.ones(3)}, "kernel": jnp.ones((3, 3))}}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), optax.apply_updates(params, updates), params))


@pytest.mark.parametrize(("every", "due"), [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4]), (9, [])])
def test_intervals(every: int, due: list[int]) -> None:
    assert [step for step in range(1, 5) if loop._is_due(step, every)] == due


@dataclasses.dataclass(frozen=True)
class Unchecked:
    a: Annotated[int, Range(1, 3)] = 2
    b: float = 0.5


def test_a_number_without_a_range_is_detected() -> None:
    with pytest.raises(TypeError, match="b: a number without a range"):
        settings.check(Unchecked(), ExperimentError)
    with pytest.raises(ExperimentError, match=r"^x\.a=4: expected a whole number from 1 to 3$"):
        settings.check(Unchecked(a=4), ExperimentError, "x.")


def test_range_descriptions() -> None:
    assert Range(0, 1).describe("a number") == "a number from 0 to 1"
    assert Range(0, 1e30, is_above=True).describe("a number") == "a number above 0, up to 1e+30"
    assert Range(1e-6, 9, also=0).describe("a number") == "0, or a number from 1e-06 to 9"
    assert 0 in Range(1, 2, also=0)
    assert 0 not in Range(0, 2, is_above=True)
