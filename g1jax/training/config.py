"""What a run is: one frozen dataclass, that an experiment file gives and the command line changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from g1jax.errors import G1Error

ALL_GAMES = ("game_2048", "shisen_sho", "shisen_sho_cifar10", "swap")


class ExperimentError(G1Error):
    """A run that cannot be; the message says what is wrong and what to do, in one line."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW or Muon with a warm-up, a cosine decay, and a bound on the gradient's norm."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: matrices by Muon, the rest by AdamW. Small models learn to see in a third of the steps."""
    lr: float = 1e-6
    """Learning rate at its highest; with Muon also the root mean square of a matrix's update."""
    final_norm_lr: float = 0.0
    """The same for the scale of the final norm, by AdamW: it sets how sure the policy is of every token. 0: as `lr`."""
    warmup: int = 0
    """Steps in which it rises from 0."""
    final_lr: float = 1.0
    """What is left of it at the end, as a share; 1: it stays."""
    weight_decay: float = 0.01
    max_norm: float = 1.0
    """The gradient is scaled down to this norm."""
    b2: float = 0.999


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Supervised steps on what a teacher sees, thinks and does (G1); 0 steps: none (G0)."""

    steps: int = 0
    dataset: str = ""
    """A folder of lessons, as train/make_dataset.py writes it; empty: the built-in teacher's, fresh in every step."""
    states: int = 16
    """States of each game in a step."""
    microbatches: int = 1
    """Parts of a step's batch whose gradients are added up."""
    mixed_levels: tyro.conf.Suppress[Mapping[str, tuple[Mapping[str, Any], ...]]] = field(default_factory=dict)
    """Levels among which a game's states alternate, as changes of traced keys: {"swap": ({}, {"colors": 2})}."""
    random_moves: float = 0.5
    """Share of moves that are random, so that states differ; the others are the teacher's. Not for a dataset."""
    see_weight: float = 1.0
    """What a token of the perception counts in the loss, beside 1 for those of the reasoning and the answer."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=2e-5))


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What the parts of a reward count."""

    game: float = 1.0
    format: float = 1.0
    perception: float = 1.0
    perception_shape: Literal["exact", "cells"] = "exact"


@dataclass(frozen=True, kw_only=True)
class RL:
    """Reinforcement learning; the defaults are the paper's."""

    iterations: int = 0
    states: int = 128
    """States of each game in an iteration."""
    num_samples: int = 5
    """Responses to each state."""
    source: Literal["walk", "legal_walk", "play"] = "walk"
    """Where states come from: random walks from fresh ones (the paper); walks of legal moves alone, each of a random
    length, so that boards of all stages are met; or the policy's own play, begun from such legal walks."""
    walk_steps: tyro.conf.Suppress[Mapping[str, int]] = field(
        default_factory=lambda: {"game_2048": 100, "shisen_sho": 250, "shisen_sho_cifar10": 250, "swap": 0}
    )
    """Random moves of a walk, by game; of a legal walk the most."""
    num_steps: int = 1
    """Steps of an episode that is learned from; 1 is the paper's one-step bandit."""
    discount: float = 1.0
    algorithm: str = "grpo"
    """grpo, dr_grpo, rloo, dapo, gspo, reinforce_pp or reinforce_pp_baseline: see g1jax/rl/algorithm.py."""
    changes: tyro.conf.Suppress[Mapping[str, Any]] = field(default_factory=dict)
    """Keys of the algorithm that differ from its own, such as {"clip_high": 0.28}."""
    kl_coefficient: float = -1.0
    """Of the KL to the reference; below 0: the algorithm's own."""
    entropy_coefficient: float = 0.0
    epochs: int = 1
    minibatches: int = 1
    microbatches: int = 1
    reference_every: int = 0
    """Iterations after which the reference becomes the policy of then; 0: never."""
    weights: Weights = field(default_factory=Weights)
    weights_by_game: tyro.conf.Suppress[Mapping[str, Weights]] = field(default_factory=dict)
    """Other weights for some games."""
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn, in training and in evaluation."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation at the end, by the paper's protocol."""

    episodes: int = 200
    """Of each game; 0: none."""
    steps: int = 100
    cold_start_episodes: int = 0
    """Of each game, of the policy that RL begins from; 0: none."""
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How devices are laid out; their number is the product."""

    data: int = 0
    """Copies of the model, each with its part of the batch; 0: as many as there are devices for."""
    fsdp: int = 1
    """Parts a copy's weights and optimizer are spread over, each with its part of the batch too."""
    tensor: int = 1
    """Devices that compute one layer together."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Small matrices beside the frozen ones; rank 0: none, everything is trained."""

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Log:
    """What a run writes, and how often, in steps."""

    every: int = 1
    """Metrics."""
    samples_every: int = 50
    """Whole responses with their frames; 0: never."""
    checkpoint_every: int = 50
    keep: int = 3
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
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    is_remat: bool = False
    attention: Literal["xla", "cudnn"] = "xla"
    max_new_tokens: int = 0
    """Of a response; 0: what a lesson of the game takes, and a quarter more."""
    seed: int = 0
    workdir: str = ""
    """The run's folder; empty: runs/<name>."""
    cold_start: ColdStart = field(default_factory=ColdStart)
    rl: RL = field(default_factory=RL)
    sampling: Sampling = field(default_factory=Sampling)
    evaluation: Evaluation = field(default_factory=Evaluation)
    mesh: Mesh = field(default_factory=Mesh)
    lora: Lora = field(default_factory=Lora)
    log: Log = field(default_factory=Log)

    @property
    def num_steps(self) -> int:
        """Steps of the cold start and iterations of RL together."""
        return self.cold_start.steps + self.rl.iterations


def require(condition: bool, message: str) -> None:
    """Raises ExperimentError(message) unless the condition holds."""
    if not condition:
        raise ExperimentError(message)
