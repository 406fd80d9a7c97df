"""Settings that several experiments share: the laptop-sized ones, and the paper's."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from g1jax.envs.appearance import BACKGROUNDS, PALETTES
from g1jax.rl.algorithm import make_algorithm
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.rewards import RewardWeights
from g1jax.training.config import ALL_GAMES, RL, ColdStart, Evaluation, Experiment, Log, Optimizer
from g1jax.vlm.sampling import Sampling

PROMPTS = {
    "game_2048": "2048",
    "shisen_sho": "Shisen-Sho",
    "shisen_sho_cifar10": "Shisen-Sho with pictures",
    "swap": "Swap",
}
"""Short prompts: a small model follows no instructions, and every prompt token costs time."""


SIZES = ("game_2048:5x5", "shisen_sho:4x4", "shisen_sho:10x10", "swap:5x5", "swap:10x10")
"""Boards of other sizes that the models that ship have seen, besides the games' own."""
ALL_SIZES = (
    *(f"game_2048:{size}x{size}" for size in (5, 6, 7, 8, 9, 10)),
    *(f"shisen_sho:{size}x{size}" for size in (4, 8, 10)),
    *(f"shisen_sho_cifar10:{size}x{size}" for size in (4, 8, 10)),
    *(f"swap:{size}x{size}" for size in (4, 5, 6, 7, 9, 10)),
)
"""All square boards from 4×4 to 10×10, besides the games' own. Shisen-Sho needs an even number of cells."""
SIX_COLUMNS = ("swap:4x6", "swap:5x6", "swap:8x6")
"""What a model has to learn together with `swap:6x6`, once it has failed to: see docs/lab_notes.md."""
CARELESS = 0.6
"""Share of the base model's demonstrations that take the first row or direction."""
_SHARP = Sampling(temperature=0.5)
"""The temperature at which the models that ship were trained, in the cold start as in RL. Exporting them with
`--temperature=0.5` makes it part of their weights."""
LOOKS: Mapping[str, Any] = {
    "palette": [*PALETTES], "background": [*BACKGROUNDS], "noise": 16.0, "jitter": 3, "distractors": 0.33,
}  # fmt: skip
"""Level keys of a game that can have every appearance."""
_PLAIN = {"palette": "classic", "background": "light", "noise": 0.0, "jitter": 0, "distractors": 0.0}
_COLORED = {"noise": 0.0, "jitter": 0, "distractors": 0.0}  # any palette and background
_APPEARANCES: tuple[Mapping[str, Any], ...] = (
    _PLAIN,
    _COLORED,
    {**_COLORED, "noise": 16.0},
    {**_COLORED, "jitter": 3},
    {**_COLORED, "distractors": 0.33},
    {**_PLAIN, "background": "dark"},
    {},  # any palette and background, with everything else
    _PLAIN,
)
"""Levels of games with `LOOKS`; a quarter are plain."""


def appearances(kinds: Sequence[Mapping[str, Any]] = ({},)) -> tuple[dict[str, Any], ...]:
    """Levels for `ColdStart.mixed_levels`: every appearance with each of these changes of the rules."""
    return tuple({**look, **kind} for look in _APPEARANCES for kind in kinds)


def small(name: str, games: tuple[str, ...] = ALL_GAMES, *, has_cold_start: bool = True) -> Experiment:
    """A laptop-sized run from the base model that ships: G1, or G0 without a cold start."""
    cold = ColdStart(
        steps=20 if has_cold_start else 0,
        states=16,
        microbatches=2,
        choice="first",
        choice_share=CARELESS,
        optimizer=Optimizer(lr=1e-5, warmup=5, final_lr=0.1, b2=0.98),
    )
    return Experiment(
        name=name,
        games=games,
        prompts=PROMPTS,
        model="base",
        cold_start=cold,
        rl=RL(
            iterations=50,
            states=16,
            num_samples=8,
            source="play",
            walk_steps={"game_2048": 100, "shisen_sho": 17, "shisen_sho_cifar10": 17, "swap": 20},
            algorithm=make_algorithm("grpo", kl_coefficient=0.0),
            minibatching=Minibatching(microbatches=4),
            weights=RewardWeights(game_shape="worth"),
            optimizer=Optimizer(lr=2e-4, warmup=2, final_lr=0.1, b2=0.95),
        ),
        evaluation=Evaluation(episodes=48, cold_start_episodes=48, temperature=0.0, play_every=10),
        log=Log(checkpoint_every=20, samples_every=20),
    )


def nano() -> Experiment:
    """The run that made `g1-nano`, from the model that has seen all sizes, `--model=FOLDER`: RL alone, on one GPU."""
    laptop = small("g1_nano", has_cold_start=False)
    rl = dataclasses.replace(
        laptop.rl,
        iterations=360,
        states=64,
        source="hard_play",
        minibatching=Minibatching(microbatches=2),
        optimizer=dataclasses.replace(laptop.rl.optimizer, lr=2e-5),
    )
    return dataclasses.replace(
        laptop,
        rl=rl,
        sampling=_SHARP,
        evaluation=Evaluation(episodes=1000, temperature=_SHARP.temperature, greedy=True),
        log=Log(checkpoint_every=60),
    )


def paper(name: str, games: tuple[str, ...] = ALL_GAMES, *, model: str, has_cold_start: bool = True) -> Experiment:
    """The paper's settings: Qwen2.5-VL, one epoch on 1000 states a game, then 128 states × 5 responses an iteration.

    Several games share the 128 states, so that an iteration is as large as in the paper.
    """
    return Experiment(
        name=name,
        games=games,
        levels={game: {"cell_size": 56} for game in games},
        model=model,
        dtype="bfloat16",
        param_dtype="bfloat16",
        is_remat=True,
        is_scanned=True,
        attention="blockwise",
        max_new_tokens=1024,
        cold_start=ColdStart(
            steps=63 if has_cold_start else 0,
            states=16,
            microbatches=2,
            optimizer=Optimizer(lr=2e-5, warmup=3, final_lr=0.1),
        ),
        rl=RL(
            iterations=400,
            states=max(8, 128 // len(games)),
            num_samples=5,
            source="walk",
            algorithm=make_algorithm("grpo", kl_coefficient=0.01),
            minibatching=Minibatching(microbatches=4),
            weights_by_game={"shisen_sho": RewardWeights(perception=0.0)},
            optimizer=Optimizer(lr=1e-6, weight_decay=0.01, max_norm=1.0),
        ),
        evaluation=Evaluation(episodes=10),
        log=Log(checkpoint_every=20, samples_every=10),
    )


def pretraining() -> Experiment:
    """From random weights to a policy that sees and describes boards: supervised steps, at a size for one GPU.

    Its demonstrations take any of the moves they describe. Half of the boards have few kinds of tiles: relations
    between tiles are more frequent on them and learned sooner. Three quarters have other appearances than the games'
    own.
    """
    return dataclasses.replace(
        small("pretraining"),
        model="mini",
        sampling=_SHARP,
        levels=dict.fromkeys(ALL_GAMES, LOOKS),
        cold_start=ColdStart(
            steps=6500,
            states=64,
            choice="uniform",
            mixed_levels={
                "game_2048": appearances(),
                "swap": appearances(({}, {"colors": 3, "shapes": 2}, {}, {"colors": 2, "shapes": 2})),
                "shisen_sho": appearances(({}, {"tile_types": 5}, {}, {"tile_types": 3})),
                "shisen_sho_cifar10": appearances(({}, {"tile_types": 5}, {}, {"tile_types": 3})),
            },
            facts_weight=3.0,
            optimizer=Optimizer(name="muon", lr=3e-3, warmup=30, final_lr=0.02, b2=0.98, weight_decay=1.0),
        ),
        rl=RL(),
        evaluation=Evaluation(episodes=0),
        log=Log(checkpoint_every=250),
    )


def teaching() -> Experiment:
    """800 more steps, on the teacher's moves, from the pretrained model: `--model=FOLDER`."""
    experiment = pretraining()
    cold = experiment.cold_start
    optimizer = dataclasses.replace(cold.optimizer, lr=1e-3)
    cold = dataclasses.replace(cold, steps=800, choice="teacher", optimizer=optimizer)
    return dataclasses.replace(experiment, name="teaching", cold_start=cold)


def sizes() -> Experiment:
    """1600 more steps, on boards of several sizes, from the taught model: `--model=FOLDER`."""
    experiment = teaching()
    cold = experiment.cold_start
    optimizer = dataclasses.replace(cold.optimizer, lr=1.5e-3)
    cold = dataclasses.replace(cold, steps=1600, states=48, optimizer=optimizer)
    return dataclasses.replace(experiment, name="sizes", games=(*ALL_GAMES, *SIZES), cold_start=cold)


def all_sizes() -> Experiment:
    """300 more steps on all square boards from 4×4 to 10×10, from `g1-nano`, whose weights include a temperature.

    A row's length is learned: a size that never occurred is not read, even between two that did. Other sizes than the
    games' own have the plain appearance here, since each level with every appearance holds 160 MB of sprites.
    """
    experiment = sizes()
    cold = experiment.cold_start
    optimizer = dataclasses.replace(cold.optimizer, lr=1e-3)
    one_look = (*ALL_SIZES, *SIX_COLUMNS)
    mixed = {**cold.mixed_levels, **dict.fromkeys(one_look, ({},))}
    cold = dataclasses.replace(cold, steps=300, states=8, mixed_levels=mixed, optimizer=optimizer)
    plain: dict[str, Mapping[str, Any]] = {game: {} for game in one_look}
    return dataclasses.replace(
        experiment,
        name="all_sizes",
        model="g1-nano",
        sampling=Sampling(),
        games=(*ALL_GAMES, *ALL_SIZES),
        levels={**experiment.levels, **plain},
        cold_start=cold,
    )


def base() -> Experiment:
    """The run that made the base model that ships, from the model that has seen all sizes: `--model=FOLDER`.

    Its demonstrations are of mixed quality: most take the first row or direction that they list, good or bad, as a
    careless player does; the others are the teacher's. So the model sees well and can play well, but its first choice
    is a habit, and RL has to find out what pays.
    """
    experiment = teaching()
    cold = experiment.cold_start
    optimizer = dataclasses.replace(cold.optimizer, lr=5e-4, weight_decay=0.1)
    cold = dataclasses.replace(cold, steps=200, choice="first", choice_share=CARELESS, optimizer=optimizer)
    return dataclasses.replace(experiment, name="base", cold_start=cold)
