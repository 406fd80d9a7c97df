"""Builds what a run needs from its experiment: games, policy, optimizers, mesh. Finds everything that is wrong."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from g1jax import envs, keys, vlm
from g1jax.envs.batch import EPISODE_STEPS, Batch
from g1jax.envs.core import Game
from g1jax.envs.level import TracedLevel
from g1jax.errors import ExperimentError
from g1jax.keys import OfRun
from g1jax.rl.algorithm import Algorithm
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.observation import PICTURE, Observation
from g1jax.rl.policy import Policy
from g1jax.rl.prompts import override, read_templates
from g1jax.rl.rewards import RewardWeights
from g1jax.sft.dataset import Dataset, read_dataset
from g1jax.sft.fact_loss import check_facts
from g1jax.teachers import check_choice, token_budgets
from g1jax.training import saved_setup
from g1jax.training.config import Experiment, Optimizer, check_experiment
from g1jax.training.optimizer import make_optimizer
from g1jax.training.placement import Placement
from g1jax.training.saved_model import SHIPPED, model_folder, observation_of, prompts_of
from g1jax.training.state_source import StateSource
from g1jax.vlm import Params, lora
from g1jax.vlm.lora import LoRA
from g1jax.vlm.model import check_length
from g1jax.vlm.sharding import make_mesh, placer


@dataclass(frozen=True)
class Learner:
    """What every update of the weights in a phase reads, and the fresh state before the first one."""

    policy: Policy
    games: tuple[Game[Any], ...]
    lora: LoRA | None
    placement: Placement
    rule: Optimizer
    num_updates: int
    """Of the whole phase."""

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer, made from its rule."""
        return make_optimizer(self.rule, self.num_updates)


@dataclass(frozen=True)
class ColdStep:
    """What a step of the cold start reads: a static argument of jit."""

    learner: Learner
    see_weight: float
    facts_weight: float
    microbatches: int


@dataclass(frozen=True, kw_only=True)
class RLStep:
    """What an iteration of RL reads: a static argument of jit."""

    learner: Learner
    source: StateSource
    algorithm: Algorithm
    minibatching: Minibatching
    weights: tuple[RewardWeights, ...]  # one a game
    num_samples: int
    num_steps: int
    discount: float
    reference_every: int
    rollout_parts: int
    compact_every: int
    is_decoded_jointly: bool
    steps_before: int
    """Steps of the cold start."""
    gathers_weights: bool
    """Whether generation has the weights gathered over `fsdp`."""


@dataclass(frozen=True, eq=False)
class Setup:
    """What stays the same during a run, for the code on the host: a compiled program gets the parts that it reads."""

    experiment: Experiment
    games: tuple[Game[Any], ...]
    policy: Policy
    mesh: jax.sharding.Mesh
    cold_levels: tuple[TracedLevel, ...]  # one a game, leaves [states]
    lora: LoRA | None
    run_folder: Path | None
    """The folder of an existing run, which has its own setup saved."""

    @functools.cached_property
    def placement(self) -> Placement:
        """Where arrays live on the mesh."""
        return Placement(self.policy.config, self.mesh)

    @functools.cached_property
    def cold_envs(self) -> tuple[Batch, ...]:
        """The environments that the teacher plays, one a game."""
        return _make_envs(self.games, self.experiment.cold_start.states, 2 * EPISODE_STEPS)

    @functools.cached_property
    def cold(self) -> ColdStep:
        """What a step of the cold start reads."""
        cold = self.experiment.cold_start
        learner = self._learner(cold.optimizer, cold.steps)
        microbatches = parts_on(self.placement.num_shards, cold.states, cold.microbatches)
        return ColdStep(learner, cold.see_weight, cold.facts_weight, microbatches)

    @functools.cached_property
    def rl(self) -> RLStep:
        """What an iteration of RL reads."""
        rl, games = self.experiment.rl, self.games
        walk_steps = tuple(envs.setting_of(rl.walk_steps, game.id, 0) for game in games)
        of_minibatch = rl.states // rl.minibatching.minibatches
        microbatches = parts_on(self.placement.num_shards, of_minibatch, rl.minibatching.microbatches)
        return RLStep(
            learner=self._learner(rl.optimizer, rl.iterations * rl.minibatching.epochs * rl.minibatching.minibatches),
            source=StateSource(rl.source, _make_envs(games, rl.states, EPISODE_STEPS), walk_steps, self.placement),
            algorithm=rl.algorithm,
            minibatching=dataclasses.replace(rl.minibatching, microbatches=microbatches),
            weights=tuple(envs.setting_of(rl.weights_by_game, game.id, rl.weights) for game in games),
            num_samples=rl.num_samples,
            num_steps=rl.num_steps,
            discount=rl.discount,
            reference_every=rl.reference_every,
            rollout_parts=rl.rollout_parts,
            compact_every=rl.compact_every,
            is_decoded_jointly=rl.decoding == "joint" and len(games) > 1,
            steps_before=self.experiment.cold_start.steps,
            gathers_weights=self.experiment.mesh.rollout_weights == "gathered" and self.mesh.shape["fsdp"] > 1,
        )

    def _learner(self, rule: Optimizer, num_updates: int) -> Learner:
        return Learner(self.policy, self.games, self.lora, self.placement, rule, num_updates)

    @functools.cached_property
    def datasets(self) -> tuple[Dataset, ...] | None:
        """The datasets that the cold start learns, one a game; None if demonstrations come from the teacher.

        Read on first use: a trained policy does not need them.
        """
        cold, folder = self.experiment.cold_start, self.run_folder
        if not cold.steps or not cold.dataset:
            return None
        source = Path(cold.dataset) if folder is None else saved_setup.dataset_of(folder, cold.dataset)
        datasets = read_dataset(source, self.games, self.policy)
        if folder is not None:
            saved_setup.check_dataset(folder, source, datasets)
        return datasets


def make_setup(
    experiment: Experiment, run_folder: Path | None = None, *, devices: Sequence[jax.Device] | None = None
) -> Setup:
    """Builds everything but the weights.

    `run_folder`: of an existing run, whose saved setup is used. `devices`: other than this machine's, see `plan`.

    Raises:
        ExperimentError, ConfigError, LevelError, AlgorithmError: the experiment cannot be run; one line says why.
    """
    e = experiment
    check_experiment(e)
    run_folder = run_folder if run_folder is not None and saved_setup.has_setup(run_folder) else None
    games = _make_games(e, run_folder)
    mesh = _make_mesh(e, jax.devices() if devices is None else devices)
    policy = _make_policy(e, games, run_folder)
    for game in games:
        check_length(policy.config, policy.prompt_length(game), max(e.max_new_tokens, 1))
        if e.cold_start.steps and e.cold_start.facts_weight:
            check_facts(policy, game)
        if e.cold_start.steps and not e.cold_start.dataset:
            check_choice(game, e.cold_start.choice)
    algorithm = e.rl.algorithm
    _check_batches(e, Placement(policy.config, mesh).num_shards)
    ExperimentError.require(
        e.rl.num_samples > 1 or (e.rl.num_samples == 1 and not algorithm.compares_groups),
        f"rl.num_samples={e.rl.num_samples}: {algorithm.name} compares the responses to one state; sample 2 or more, "
        "or use reinforce_pp",
    )
    spec = e.lora if e.lora.rank else None
    if spec is not None:
        lora.targets(policy.config, spec)
    return Setup(
        experiment=e,
        games=games,
        policy=policy,
        mesh=mesh,
        cold_levels=tuple(_make_levels(e, game) for game in games),
        lora=spec,
        run_folder=run_folder,
    )


def load_params(setup: Setup) -> Params:
    """The initial weights, sharded over the mesh: random, or from the model's folder."""
    e, config = setup.experiment, setup.policy.config
    folder = weights_folder(setup)
    place = placer(config, setup.mesh)
    if folder is None:
        params = vlm.init(config, keys.of_run(e.seed, OfRun.WEIGHTS), place=place)
    else:
        params = vlm.load_params(config, folder, place=place)
    return setup.placement.shard_params(params)


def weights_folder(setup: Setup) -> Path | None:
    """The folder with the initial weights; None if they are random.

    Raises:
        ExperimentError: the weights that an existing run started from are missing or have changed.
    """
    model = setup.experiment.model
    if setup.run_folder is None:
        return model_folder(model)
    named = SHIPPED.get(model, Path(model))
    return saved_setup.weights_of(setup.run_folder, named if named.is_dir() else None)


def _make_mesh(e: Experiment, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    num_devices, axes = len(devices), e.mesh
    size = axes.fsdp * axes.tensor
    ExperimentError.require(
        axes.data > 0 or num_devices % size == 0,
        f"mesh: {num_devices} devices do not divide into fsdp={axes.fsdp} × tensor={axes.tensor}",
    )
    return make_mesh(axes.data or num_devices // size, axes.fsdp, axes.tensor, devices=devices)


def _make_games(e: Experiment, run_folder: Path | None) -> tuple[Game[Any], ...]:
    if run_folder is not None:
        return saved_setup.read_games(run_folder, e.games)
    return tuple(
        saved_setup.resolved(envs.make(name, preset=e.preset or None, **envs.setting_of(e.levels, name, {})))
        for name in e.games
    )


def _make_policy(e: Experiment, games: tuple[Game[Any], ...], run_folder: Path | None) -> Policy:
    if run_folder is not None:
        folder: Path | None = run_folder / saved_setup.MODEL
        source = str(folder)
    else:
        folder = model_folder(e.model)
        source = e.tokenizer or ("games" if folder is None or not (folder / "tokenizer.json").exists() else str(folder))
    tokenizer = vlm.Tokenizer.load(source)
    changes: dict[str, Any] = {
        "dtype": e.dtype, "param_dtype": e.param_dtype, "is_remat": e.is_remat, "is_scanned": e.is_scanned,
        "attention": e.attention,
    }  # fmt: skip
    if folder is None:
        config = vlm.preset(e.model, vocab_size=tokenizer.vocab_size, **changes)
    else:
        config = dataclasses.replace(vlm.load_config(folder), **changes)
    if run_folder is None and e.image_size:
        config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, image_size=e.image_size))
    saved = () if run_folder is None else saved_setup.read_budgets(run_folder, games)
    budgets = () if e.max_new_tokens else token_budgets(tokenizer, games, saved)
    templates = () if folder is None else prompts_of(folder)
    observation = PICTURE if folder is None else observation_of(folder)
    if run_folder is None:
        templates = override(templates, read_templates(e.prompts))
        observation = Observation.of(e.observation) if e.observation else observation
    return Policy(config, tokenizer, e.sampling, e.max_new_tokens, budgets, templates, observation, e.rl.compact_every)


def _make_envs(games: tuple[Game[Any], ...], num_states: int, max_steps: int) -> tuple[Batch, ...]:
    return tuple(Batch(game, num_states, max_steps=max_steps) for game in games)


def _make_levels(e: Experiment, game: Game[Any]) -> TracedLevel:
    """The levels of the cold start's states: leaves [states]."""
    levels = [game.traced_level(**changes) for changes in envs.setting_of(e.cold_start.mixed_levels, game.id, ({},))]
    index = np.arange(e.cold_start.states) % len(levels)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[index], *levels)


def parts_on(shards: int, num_states: int, parts: int) -> int:
    """The number of microbatches, a divisor of `parts`, of states on several devices.

    `num_states` is a multiple of `parts` and of `shards`. More devices need fewer parts: each computes no more states
    at once than one device would, since gcd(parts, num_states / shards) × shards ≥ parts.

    >>> [parts_on(shards, num_states=16, parts=4) for shards in (1, 2, 4, 8, 16)]
    [4, 4, 4, 2, 1]
    """
    return math.gcd(parts, num_states // shards)


def _check_batches(e: Experiment, shards: int) -> None:
    cold, rl, minibatching = e.cold_start, e.rl, e.rl.minibatching
    parts, minibatches = minibatching.microbatches, minibatching.minibatches
    _check_divides("cold_start.states", cold.states, cold.microbatches, shards, math.lcm(cold.microbatches, shards))
    _check_divides("rl.states", rl.states, minibatches * parts, shards, minibatches * math.lcm(parts, shards))
    _check_divides("rl.states", rl.states, rl.rollout_parts, shards, rl.rollout_parts * shards, "rollout_parts")


def _check_divides(
    key: str, num_states: int, num_batches: int, shards: int, divisor: int, batches: str = "minibatches × microbatches"
) -> None:
    ExperimentError.require(
        num_states % divisor == 0,
        f"{key}={num_states} does not divide into {num_batches} {batches} on {shards} devices "
        f"(data × fsdp): the next number that does is {-(-num_states // divisor) * divisor}",
    )
