"""From an experiment to what a run works with: games, policy, optimizers, mesh. All that can be wrong is found here."""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from g1jax import envs, keys, vlm
from g1jax.envs.batch import EPISODE_STEPS, Batch
from g1jax.envs.core import Game, TracedLevel
from g1jax.errors import ExperimentError, unknown
from g1jax.keys import OfRun
from g1jax.rl.algorithm import Algorithm
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.policy import Policy
from g1jax.rl.rewards import RewardWeights
from g1jax.sft.dataset import Dataset, read_dataset
from g1jax.sft.facts import check_facts, without_heads
from g1jax.teachers import token_budgets
from g1jax.training import run_setup
from g1jax.training.config import Experiment, check_experiment
from g1jax.training.optimizer import make_optimizer
from g1jax.typing import Pytree
from g1jax.vlm import Params, lora
from g1jax.vlm.model import check_length
from g1jax.vlm.sharding import BATCH, make_mesh, placer, tree_shardings

BASE_MODEL = Path(__file__).parents[1] / "data" / "base"
"""The small trained model that ships."""


@dataclass(frozen=True, eq=False)
class Setup:
    """What stays the same during a run. A value, and so a static argument of jit: all of it follows from the
    experiment, the games, the policy and the mesh, and setups that agree in these share compiled programs. What a run
    is called, where it lies, what it logs and how it is evaluated decides no program.
    """

    experiment: Experiment
    games: tuple[Game[Any], ...]
    policy: Policy
    algorithm: Algorithm
    weights: tuple[RewardWeights, ...]  # one a game
    minibatching: Minibatching
    mesh: jax.sharding.Mesh
    cold_envs: tuple[Batch, ...]  # one a game, whose states the teacher plays
    cold_levels: tuple[TracedLevel, ...]  # one a game, leaves [states]
    play_envs: tuple[Batch, ...]  # one a game, whose states the policy answers
    lora: lora.LoRA | None
    run_folder: Path | None
    """Of a run that has begun: what it is made of is read from there."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Setup) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    @functools.cached_property
    def _value(self) -> tuple[Any, ...]:
        settings = dataclasses.asdict(self.experiment)
        for key in ("name", "workdir", "log", "evaluation"):
            del settings[key]
        settings["rl"]["algorithm"]["name"] = ""  # for logs only
        return json.dumps(settings, sort_keys=True, default=str), self.games, self.policy, self.mesh

    @functools.cached_property
    def cold_optimizer(self) -> optax.GradientTransformation:
        """Of the cold start."""
        return make_optimizer(self.experiment.cold_start.optimizer, self.experiment.cold_start.steps)

    @functools.cached_property
    def rl_optimizer(self) -> optax.GradientTransformation:
        """Of RL."""
        rl = self.experiment.rl
        return make_optimizer(rl.optimizer, rl.iterations * self.minibatching.epochs * self.minibatching.minibatches)

    @functools.cached_property
    def datasets(self) -> tuple[Dataset, ...] | None:
        """What the cold start learns instead of the teacher's words, one a game; None without a dataset.

        Read when first asked for: a policy that has learnt is used without it.
        """
        cold, folder = self.experiment.cold_start, self.run_folder
        if not cold.steps or not cold.dataset:
            return None
        where = Path(cold.dataset) if folder is None else run_setup.dataset_of(folder, cold.dataset)
        datasets = read_dataset(where, self.games, self.policy)
        if folder is not None:
            run_setup.check_dataset(folder, where, datasets)
        return datasets

    def full_params(self, trained: Params, frozen: Params | None) -> Params:
        """The model's params of those that are trained and those that are not."""
        trained = without_heads(trained)
        return trained if frozen is None or self.lora is None else lora.attach(frozen, trained, self.lora)

    def place(self, tree: Pytree) -> Pytree:
        """Params, or an optimizer's state, spread over the mesh, in the one form: see `sharding`."""
        return jax.device_put(tree, self.shardings(tree))

    def shardings(self, tree: Pytree) -> Pytree:
        """How params, or an optimizer's state, are spread over the mesh."""
        found = tree_shardings(self.policy.config, self.mesh, tree)
        return jax.tree.map(lambda sharding: self.sharding(*sharding.spec), found)

    def sharding(self, *axes: str | tuple[str, ...] | None) -> NamedSharding:
        """An array's sharding, in the form that compiled programs give theirs: without axes of one device.

        Two forms of one sharding would compile a step twice.
        """
        many = [
            tuple(a for a in ((axis,) if isinstance(axis, str) else axis or ()) if self.mesh.shape[a] > 1)
            for axis in axes
        ]
        while many and not many[-1]:
            many.pop()
        return NamedSharding(self.mesh, PartitionSpec(*(m[0] if len(m) == 1 else m or None for m in many)))

    def everywhere(self, tree: Pytree) -> Pytree:
        """Within a jit: arrays whole on every device, so that every process can read them."""
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, self.sharding()), tree)

    def replicate(self, tree: Pytree) -> Pytree:
        """Arrays of the host, the same in every process, whole on every device."""
        return jax.tree.map(lambda leaf: _from_host(leaf, self.sharding()), tree)

    def spread(self, tree: Pytree) -> Pytree:
        """Arrays of the host, the same in every process, their rows over `data` and `fsdp`."""
        return jax.tree.map(lambda leaf: _from_host(leaf, self.sharding(BATCH)), tree)


def make_setup(experiment: Experiment, run_folder: Path | None = None) -> Setup:
    """Everything but the weights. Of a run that has begun, by its folder: what is kept there is used.

    Raises:
        ExperimentError, ConfigError, LevelError, AlgorithmError: the experiment cannot be run; one line says why.
    """
    e = experiment
    check_experiment(e)
    run_folder = run_folder if run_folder is not None and run_setup.is_kept(run_folder) else None
    games = _make_games(e, run_folder)
    mesh = _make_mesh(e)
    policy = _make_policy(e, games, run_folder)
    for game in games:
        check_length(policy.config, len(policy.prompt_tokens(game)), max(e.max_new_tokens, 1))
        if e.cold_start.steps and e.cold_start.facts_weight:
            check_facts(policy, game)
    algorithm, minibatching = e.rl.algorithm, e.rl.minibatching
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    _check_divides("cold_start.states", e.cold_start.states, e.cold_start.microbatches, parts)
    _check_divides("rl.states", e.rl.states, minibatching.minibatches * minibatching.microbatches, parts)
    ExperimentError.require(
        e.rl.num_samples > 1 or (e.rl.num_samples == 1 and not algorithm.compares_groups),
        f"rl.num_samples={e.rl.num_samples}: {algorithm.name} compares the responses to one state; sample 2 or more, "
        "or use reinforce_pp",
    )
    spec = e.lora if e.lora.rank else None
    if spec is not None:
        lora.targets(policy.config, spec)
    return Setup(
        experiment=e if run_folder is None else run_setup.with_prompts(e, games),
        games=games,
        policy=policy,
        algorithm=algorithm,
        weights=tuple(e.rl.weights_by_game.get(game.id, e.rl.weights) for game in games),
        minibatching=minibatching,
        mesh=mesh,
        cold_envs=_make_envs(games, e.cold_start.states, 2 * EPISODE_STEPS),
        cold_levels=tuple(_make_levels(e, game) for game in games),
        play_envs=_make_envs(games, e.rl.states, EPISODE_STEPS),
        lora=spec,
        run_folder=run_folder,
    )


def load_params(setup: Setup) -> Params:
    """The weights the run begins with, on their devices: random ones, or those of the model's folder."""
    e, config = setup.experiment, setup.policy.config
    folder = weights_folder(setup)
    place = placer(config, setup.mesh)
    if folder is None:
        return setup.place(vlm.init(config, keys.of_run(e.seed, OfRun.WEIGHTS), place=place))
    return setup.place(vlm.load_params(config, folder, place=place))


def weights_folder(setup: Setup) -> Path | None:
    """The folder with the weights the run begins with; None if they are random.

    Raises:
        ExperimentError: a run that has begun finds them nowhere, or finds others.
    """
    model = setup.experiment.model
    if setup.run_folder is None:
        return _folder_of(model)
    named = BASE_MODEL if model == "base" else Path(model)
    return run_setup.weights_of(setup.run_folder, named if named.is_dir() else None)


# Its parts


def _from_host(leaf: Any, sharding: NamedSharding) -> Any:
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _make_mesh(e: Experiment) -> jax.sharding.Mesh:
    count, axes = len(jax.devices()), e.mesh
    rest = axes.fsdp * axes.tensor
    ExperimentError.require(rest > 0, f"mesh: fsdp={axes.fsdp}, tensor={axes.tensor}: each is 1 or more")
    ExperimentError.require(
        axes.data > 0 or count % rest == 0,
        f"mesh: {count} devices do not divide into fsdp={axes.fsdp} × tensor={axes.tensor}",
    )
    return make_mesh(axes.data or count // rest, axes.fsdp, axes.tensor)


def _make_games(e: Experiment, run_folder: Path | None) -> tuple[Game[Any], ...]:
    if run_folder is not None:
        return run_setup.read_games(run_folder, e.games)
    return tuple(
        run_setup.resolved(envs.make(name, preset=e.preset or None, **e.levels.get(name, {}))) for name in e.games
    )


def _make_policy(e: Experiment, games: tuple[Game[Any], ...], run_folder: Path | None) -> Policy:
    folder, source = (
        (None, "") if run_folder is None else (run_folder / run_setup.MODEL, str(run_folder / run_setup.MODEL))
    )
    if folder is None:
        folder = _folder_of(e.model)
        source = e.tokenizer or ("games" if folder is None or not (folder / "tokenizer.json").exists() else str(folder))
    tokenizer = vlm.Tokenizer.load(source)
    changes: dict[str, Any] = {
        "dtype": e.dtype, "param_dtype": e.param_dtype, "is_remat": e.is_remat, "attention": e.attention,
    }  # fmt: skip
    if folder is None:
        config = vlm.preset(e.model, vocab_size=tokenizer.vocab_size, **changes)
    else:
        config = dataclasses.replace(vlm.load_config(folder), **changes)
    budgets = () if e.max_new_tokens else token_budgets(tokenizer, games)
    return Policy(config, tokenizer, e.sampling, e.max_new_tokens, budgets)


def _folder_of(model: str) -> Path | None:
    """The folder of a model's weights; None for an untrained preset."""
    if model == "base":
        return BASE_MODEL
    if model in vlm.preset_names():
        return None
    known = ["base", *vlm.preset_names()]
    ExperimentError.require(Path(model).is_dir(), unknown("model, and no folder", model, known))
    return Path(model)


def _make_envs(games: tuple[Game[Any], ...], num_states: int, max_steps: int) -> tuple[Batch, ...]:
    return tuple(Batch(game, num_states, max_steps=max_steps) for game in games)


def _make_levels(e: Experiment, game: Game[Any]) -> TracedLevel:
    """The level of each of the cold start's states: leaves [states]."""
    kinds = [game.traced_level(**changes) for changes in e.cold_start.mixed_levels.get(game.id, ({},))]
    index = np.arange(e.cold_start.states) % len(kinds)
    return {key: jnp.stack([kind[key] for kind in kinds])[index] for key in kinds[0]}


def _check_divides(key: str, count: int, portions: int, parts: int) -> None:
    ExperimentError.require(portions > 0 and count > 0, f"{key}={count} in {portions} portions: each is 1 or more")
    ExperimentError.require(
        count % (portions * parts) == 0,
        f"{key}={count} does not divide into {portions} minibatches × microbatches on {parts} devices (data × fsdp): "
        f"the next that does is {-(-count // (portions * parts)) * portions * parts}",
    )
