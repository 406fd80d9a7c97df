"""What a run is: one frozen dataclass, that an experiment file gives and the command line changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from g1jax import envs
from g1jax.errors import ExperimentError, unknown
from g1jax.rl.algorithm import Algorithm, grpo
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.rewards import RewardWeights
from g1jax.settings import Count, CountOrNone, EpisodesOrNone, Range, Seed, Share, Size, Steps, Temperature, check
from g1jax.vlm.lora import LoRA
from g1jax.vlm.sampling import Sampling

ALL_GAMES = ("game_2048", "shisen_sho", "shisen_sho_cifar10", "swap")
MOST_STEPS = 2**31 - 1  # that are counted on a device
Rate = Annotated[float, Range(1e-15, 10, also=0)]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW or Muon with a warm-up, a cosine decay, and a bound on the gradient's norm."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: matrices by Muon, the rest by AdamW. Small models learn to see in a third of the steps."""
    lr: Rate = 1e-6
    """Learning rate at its highest; with Muon also the root mean square of a matrix's update. 0: nothing is learned."""
    final_norm_lr: Rate = 0.0
    """The same for the scale of the final norm, by AdamW: it sets how sure the policy is of every token. 0: as `lr`."""
    warmup: CountOrNone = 0
    """Steps in which it rises from 0."""
    final_lr: Share = 1.0
    """What is left of it at the end, as a share; 1: it stays."""
    weight_decay: Annotated[float, Range(0, 100)] = 0.01
    max_norm: Annotated[float, Range(0, 1e30, is_above=True)] = 1.0
    """The gradient is scaled down to this norm."""
    b2: Annotated[float, Range(0, 0.999999)] = 0.999


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Supervised steps on what a teacher sees, thinks and does (G1); 0 steps: none (G0)."""

    steps: CountOrNone = 0
    dataset: str = ""
    """A folder of lessons, as train/make_dataset.py writes it; empty: the built-in teacher's, fresh in every step."""
    states: Size = 16
    """States of each game in a step."""
    microbatches: Size = 1
    """Parts of a step's batch whose gradients are added up."""
    mixed_levels: tyro.conf.Suppress[Mapping[str, tuple[Mapping[str, Any], ...]]] = field(default_factory=dict)
    """Levels among which a game's states alternate, as changes of traced keys: {"swap": ({}, {"colors": 2})}."""
    random_moves: Share = 0.5
    """Share of moves that are random, so that states differ; the others are the teacher's. Not for a dataset."""
    see_weight: Annotated[float, Range(0, 1e6)] = 1.0
    """What a token of the perception counts in the loss, beside 1 for those of the reasoning and the answer."""
    facts_weight: Annotated[float, Range(0, 1e6)] = 0.0
    """What the facts of a board count in the loss, asked of the visual tokens (see sft/facts.py); 0: not asked."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=2e-5))


@dataclass(frozen=True, kw_only=True)
class RL:
    """Reinforcement learning; the defaults are the paper's."""

    iterations: CountOrNone = 0
    states: Size = 128
    """States of each game in an iteration."""
    num_samples: Size = 5
    """Responses to each state."""
    source: Literal["walk", "legal_walk", "play"] = "walk"
    """Where states come from: random walks from fresh ones (the paper); walks of legal moves alone, each of a random
    length, so that boards of all stages are met; or the policy's own play, begun from such legal walks."""
    walk_steps: tyro.conf.Suppress[Mapping[str, Annotated[int, Range(0, 10**6)]]] = field(
        default_factory=lambda: {"game_2048": 100, "shisen_sho": 250, "shisen_sho_cifar10": 250, "swap": 0}
    )
    """Random moves of a walk, by game; of a legal walk the most."""
    num_steps: Annotated[int, Range(1, 10_000)] = 1
    """Steps of an episode that is learned from; 1 is the paper's one-step bandit."""
    discount: Share = 1.0
    algorithm: Algorithm = field(default_factory=grpo)
    """On the command line a name, `--rl.algorithm=dapo`, and keys that differ: `--rl.algorithm.clip-high=0.28`."""
    minibatching: Annotated[Minibatching, tyro.conf.arg(name="")] = field(default_factory=Minibatching)
    reference_every: CountOrNone = 0
    """Iterations after which the reference becomes the policy of then; 0: never."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    weights_by_game: tyro.conf.Suppress[Mapping[str, RewardWeights]] = field(default_factory=dict)
    """Other weights for some games."""
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation at the end, by the paper's protocol."""

    episodes: EpisodesOrNone = 200
    """Of each game; 0: none."""
    steps: Steps = 100
    cold_start_episodes: EpisodesOrNone = 0
    """Of each game, of the policy that RL begins from; 0: none."""
    temperature: Temperature = 1.0


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How devices are laid out; their number is the product."""

    data: Annotated[int, Range(0, 2**20)] = 0
    """Copies of the model, each with its part of the batch; 0: as many as there are devices for."""
    fsdp: Size = 1
    """Parts a copy's weights and optimizer are spread over, each with its part of the batch too."""
    tensor: Size = 1
    """Devices that compute one layer together."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """What a run writes, and how often, in steps."""

    every: CountOrNone = 1
    """Metrics; 0: of the last step alone."""
    samples_every: CountOrNone = 50
    """Whole responses with their frames; 0: never."""
    checkpoint_every: CountOrNone = 50
    """Checkpoints, also at the end of a phase and when the run is stopped; 0: only there."""
    keep: Count = 3
    """Checkpoints kept."""
    wandb: bool = False
    """Also to Weights & Biases, if it is installed."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run of the main job."""

    name: str
    games: tuple[str, ...] = ALL_GAMES
    preset: str = ""
    """Level preset of all games, such as `base+noisy`; see envs/."""
    levels: tyro.conf.Suppress[Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Level keys by game, such as {"shisen_sho": {"rows": 4}}."""
    model: str = "nano"
    """`base` (a small one that ships, trained), `nano`, `micro` or `small` (untrained), or a folder of weights."""
    tokenizer: str = ""
    """`games`, or a folder; empty: what fits the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights it computes with. Of bfloat16 ones the optimizer keeps float32 master weights, which it moves."""
    is_remat: bool = False
    attention: Literal["xla", "cudnn"] = "xla"
    max_new_tokens: Annotated[int, Range(0, 10**6)] = 0
    """Of a response; 0: what a lesson of the game takes, and a quarter more."""
    seed: Seed = 0
    workdir: str = ""
    """The run's folder; empty: runs/<name>."""
    cold_start: ColdStart = field(default_factory=ColdStart)
    rl: RL = field(default_factory=RL)
    sampling: Sampling = field(default_factory=Sampling)
    """How responses are drawn, in training; an evaluation has its own temperature."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    mesh: Mesh = field(default_factory=Mesh)
    lora: LoRA = field(default_factory=lambda: LoRA(rank=0))
    log: Log = field(default_factory=Log)

    @property
    def num_steps(self) -> int:
        """Steps of the cold start and iterations of RL together."""
        return self.cold_start.steps + self.rl.iterations


def check_experiment(experiment: Experiment) -> None:
    """Refuses an experiment of which a setting, or some together, cannot be; needs neither a device nor a file.

    Raises:
        ExperimentError: a setting is not what it may be; one line names it and says what it may be.
    """
    e = experiment
    check(e, ExperimentError)
    ExperimentError.require(e.name != "", "name: an experiment needs one")
    ExperimentError.require(len(e.games) > 0, "games: name at least one")
    ExperimentError.require(len(set(e.games)) == len(e.games), f"games={list(e.games)}: each once")
    ExperimentError.require(e.num_steps > 0, "nothing to do: cold_start.steps and rl.iterations are both 0")
    ExperimentError.require(
        e.num_steps <= MOST_STEPS, f"cold_start.steps + rl.iterations: {e.num_steps}, more than {MOST_STEPS}"
    )
    updates = e.rl.iterations * e.rl.minibatching.epochs * e.rl.minibatching.minibatches
    ExperimentError.require(
        updates <= MOST_STEPS, f"rl.iterations × epochs × minibatches: {updates}, more than {MOST_STEPS}"
    )
    known = envs.game_ids()
    for name, mapping in (
        ("levels", e.levels),
        ("cold_start.mixed_levels", e.cold_start.mixed_levels),
        ("rl.walk_steps", e.rl.walk_steps),
        ("rl.weights_by_game", e.rl.weights_by_game),
    ):
        for game in mapping:
            ExperimentError.require(game in known, f"{name}: {unknown('game', game, known)}")
    for game, levels in e.cold_start.mixed_levels.items():
        ExperimentError.require(len(levels) > 0, f"cold_start.mixed_levels[{game!r}]: name at least one level")
