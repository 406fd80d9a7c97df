"""The configuration of a run: one frozen dataclass, from an experiment file and the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from g1jax import envs
from g1jax.envs.level import base_id_of
from g1jax.errors import ExperimentError, unknown
from g1jax.rl.algorithm import Algorithm, grpo
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.observation import Observation, Shown
from g1jax.rl.rewards import RewardWeights
from g1jax.settings import Count, CountOrNone, EpisodesOrNone, Range, Seed, Share, Size, Steps, Temperature, check, show
from g1jax.teachers import Choice
from g1jax.vlm.config import ImageSize
from g1jax.vlm.lora import LoRA
from g1jax.vlm.sampling import Sampling

ALL_GAMES = ("game_2048", "shisen_sho", "shisen_sho_cifar10", "swap")
_MAX_STEPS = 2**31 - 1  # int32 on the device
Rate = Annotated[float, Range(1e-15, 10, also=0)]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW or Muon with warm-up, cosine decay and clipping of the gradient norm."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for matrices, AdamW for the rest. Small models learn to see in a third of the steps."""
    lr: Rate = 1e-6
    """Peak learning rate; with Muon also the root mean square of a matrix's update. 0: no updates."""
    final_norm_lr: Rate = 0.0
    """Learning rate of the final norm's scale (AdamW), which sets the sharpness of all logits. 0: as `lr`."""
    warmup: CountOrNone = 0
    """Steps of linear warm-up from 0."""
    final_lr: Share = 1.0
    """Final learning rate as a share of `lr`; 1: constant."""
    weight_decay: Annotated[float, Range(0, 100)] = 0.01
    """Decoupled weight decay."""
    max_norm: Annotated[float, Range(0, 1e30, is_above=True)] = 1.0
    """The global gradient norm is clipped to this."""
    b2: Annotated[float, Range(0, 0.999999)] = 0.999
    """AdamW's decay of the second moment."""


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Supervised steps on a teacher's perception, reasoning and action (G1); 0 steps: none (G0)."""

    steps: CountOrNone = 0
    """Supervised steps before RL; 0: none (G0)."""
    dataset: str = ""
    """Folder of demonstrations written by train/make_dataset.py; empty: fresh ones of the built-in teacher."""
    states: Size = 16
    """States of each game per step."""
    microbatches: Size = 1
    """Parts of a batch whose gradients are accumulated; fewer where devices have too few states for them."""
    mixed_levels: tyro.conf.Suppress[Mapping[str, tuple[Mapping[str, Any], ...]]] = field(default_factory=dict)
    """Levels that a game's states alternate among, as changes of traced keys: {"swap": ({}, {"colors": 2})}."""
    random_moves: Share = 0.5
    """Share of moves that are random, so that states differ; the others are the teacher's. Not for a dataset."""
    choice: Choice = "teacher"
    """The move of a demonstration. teacher: the teacher's. uniform: any of the directions or rows that its rationale
    lists, good or bad, so that the policy learns to see and to describe, not to choose. first: always the first of
    them. Demonstrations of a dataset are taken as they are."""
    choice_share: Share = 1.0
    """Share of demonstrations with this choice; the others have the teacher's: demonstrations of mixed quality."""
    see_weight: Annotated[float, Range(0, 1e6)] = 1.0
    """Loss weight of perception tokens; reasoning and answer tokens have weight 1."""
    facts_weight: Annotated[float, Range(0, 1e6)] = 0.0
    """Weight of the auxiliary loss that predicts a board's facts from the visual tokens (sft/fact_loss.py); 0: none."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=2e-5))


@dataclass(frozen=True, kw_only=True)
class RL:
    """Reinforcement learning; the defaults are those of the paper."""

    iterations: CountOrNone = 0
    """Iterations of RL: each samples responses and updates the policy. 0: none."""
    states: Size = 128
    """States of each game per iteration."""
    num_samples: Size = 5
    """Responses to each state."""
    rollout_parts: Size = 1
    """Parts of an iteration's states that are responded to one after the other: less memory for keys and values."""
    compact_every: CountOrNone = 0
    """Tokens between cuts of the decoded batch to the responses that still run (1/2, 1/4 or 1/8 of its rows, each
    compiled), so that finished ones are not computed until the longest ends. Needs memory for copies of the keys and
    values. 0: never."""
    decoding: Literal["by_game", "joint"] = "by_game"
    """by_game: the responses to one game after those to another. joint: all games in one loop, of fewer and larger
    steps: faster on accelerators, where a small batch takes as long as a larger one. Needs memory for the keys and
    values of all games, divided by `rollout_parts`; use it with `compact_every` if their responses differ in length."""
    source: Literal["walk", "legal_walk", "play", "hard_play"] = "walk"
    """Where states come from. walk: random walks from fresh states (the paper). legal_walk: walks of legal moves, each
    of a random length, which cover all stages of a game. play: the policy's own play, started from legal walks.
    hard_play: the same, but a state returns as long as some of its responses are illegal moves; where all are, a random
    legal move is taken."""
    walk_steps: tyro.conf.Suppress[Mapping[str, Annotated[int, Range(0, 10**6)]]] = field(
        default_factory=lambda: {"game_2048": 100, "shisen_sho": 250, "shisen_sho_cifar10": 250, "swap": 0}
    )
    """Random moves of a walk, by game; the maximum of a legal walk."""
    num_steps: Annotated[int, Range(1, 10_000)] = 1
    """Steps of an episode to learn from; 1: the paper's one-step bandit."""
    discount: Share = 1.0
    """Discount of the rewards of later steps, in episodes of several."""
    algorithm: Algorithm = field(default_factory=grpo)
    """On the command line a name, `--rl.algorithm=dapo`, and changed keys, `--rl.algorithm.clip-high=0.28`."""
    minibatching: Annotated[Minibatching, tyro.conf.arg(name="")] = field(default_factory=Minibatching)
    reference_every: CountOrNone = 0
    """Iterations between replacements of the reference policy by the current policy; 0: never."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    weights_by_game: tyro.conf.Suppress[Mapping[str, RewardWeights]] = field(default_factory=dict)
    """Weights of single games, instead of `weights`."""
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluations of a run, by the paper's protocol."""

    episodes: EpisodesOrNone = 200
    """Episodes of each game; 0: none."""
    steps: Steps = 100
    """Steps of each episode."""
    cold_start_episodes: EpisodesOrNone = 0
    """Episodes of each game for the policy after the cold start; 0: none."""
    temperature: Temperature = 1.0
    """Sampling temperature of the evaluations. 0: greedy."""
    play_every: CountOrNone = 0
    """Iterations of RL between short evaluations, whose scores are in the metrics and curves; 0: never."""
    play_episodes: Annotated[int, Range(1, 10**7)] = 16
    """Episodes of each game of a short evaluation."""
    play_steps: Steps = 20
    """Steps of its episodes."""
    greedy: bool = False
    """Plays the same episodes greedily as well: how good the policy's first choices are, whatever its confidence."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The device mesh; the product of its axes is the number of devices."""

    data: Annotated[int, Range(0, 2**20)] = 0
    """Model replicas, each with its part of the batch; 0: as many as the devices allow."""
    fsdp: Size = 1
    """Shards of a replica's weights and optimizer state, each with its part of the batch."""
    tensor: Size = 1
    """Devices that each layer is split over."""
    rollout_weights: Literal["gathered", "sharded"] = "gathered"
    """Weights during generation. gathered: over `fsdp` once an iteration, so every device holds the whole model, or its
    part of `tensor`. sharded: less memory, but all weights are sent for every token."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """What a run writes, and how often in steps."""

    every: CountOrNone = 1
    """Metrics; 0: only of the last step."""
    samples_every: CountOrNone = 50
    """Sample responses with their frames; 0: never."""
    checkpoint_every: CountOrNone = 50
    """Checkpoints; they are also written at the end of a phase and when the run is stopped. 0: only then."""
    keep: Count = 3
    """Checkpoints kept."""
    stopped_status: Annotated[int, Range(0, 255)] = 0
    """Exit status of a run that a signal stopped. Where a scheduler restarts a job by its status: one that it restarts,
    such as 42 for xpk."""
    wandb: bool = False
    """Log to Weights & Biases as well, if it is installed."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A training run."""

    name: str
    """Name of the run, and of its folder."""
    games: tuple[str, ...] = ALL_GAMES
    """Ids of the games to train on; `swap:tiny` is Swap at that preset, beside others of its levels."""
    preset: str = ""
    """Level preset of all games, such as `base+noisy`; see envs/."""
    levels: tyro.conf.Suppress[Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Level keys by game, such as {"shisen_sho": {"rows": 4}}."""
    prompts: tyro.conf.Suppress[Mapping[str, str]] = field(default_factory=dict)
    """Prompt templates by game, or `@path` of a file; games without one have their default prompt."""
    observation: Shown = ()
    """What the policy is shown: `picture`, `caption` (the true board as text), or both; without the rules or the goal
    that a prompt marks: `no_rules`, `no_goal`. `--observation caption`: text only. Default: what the model was trained
    with, `picture` for a new one."""
    image_size: ImageSize = ()
    """(height, width) in pixels to which frames are resized for the policy, rounded to whole visual tokens. The release
    shows 840 × 640. Default: that of the model, for a new one the frames' own size."""
    model: str = "nano"
    """`base`, `g1-nano` or `g1-nano-sizes` (the small trained models that ship: before and after RL, and for other
    sizes of board), `nano`, `micro` or `small` (untrained), or a folder of weights."""
    tokenizer: str = ""
    """`games` or a folder; empty: the model's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's computations."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's weights. For bfloat16 the optimizer updates float32 master weights."""
    is_remat: bool = False
    """Recomputes activations in the backward pass: less memory, more time."""
    is_scanned: bool = False
    """Compiles the decoder as one layer that is scanned over: large models compile faster; small ones run slower."""
    attention: Literal["xla", "blockwise", "cudnn"] = "xla"
    """xla: plain. blockwise: a block of queries at a time, so that long responses need no memory for all scores.
    cudnn: cuDNN's fused attention, on NVIDIA GPUs in bfloat16."""
    max_new_tokens: Annotated[int, Range(0, 10**6)] = 0
    """Longest response; 0: the longest demonstration of the game and a quarter more."""
    seed: Seed = 0
    """Seed of the weights, the states and the sampling."""
    imports: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Modules or files that register games, imported if a game is unknown; on the command line `--import=my_games.py`.
    The run's folder remembers them."""
    workdir: str = ""
    """The run's folder; empty: runs/<name>. May be in a bucket of Google Cloud Storage: gs://bucket/folder."""
    cold_start: ColdStart = field(default_factory=ColdStart)
    rl: RL = field(default_factory=RL)
    sampling: Sampling = field(default_factory=Sampling)
    """Sampling in training; the evaluation has its own temperature."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    mesh: Mesh = field(default_factory=Mesh)
    lora: LoRA = field(default_factory=lambda: LoRA(rank=0))
    log: Log = field(default_factory=Log)

    @property
    def num_steps(self) -> int:
        """Steps of the cold start plus iterations of RL."""
        return self.cold_start.steps + self.rl.iterations


def check_experiment(experiment: Experiment) -> None:
    """Checks all settings and their combinations; needs neither a device nor a file, except for games to import.

    Raises:
        ExperimentError: an invalid setting; one line names it and what it may be.
        LevelError: a module of `imports` is needed and cannot be imported.
    """
    e = experiment
    check(e, ExperimentError)
    if {base_id_of(name) for name in e.games} - set(envs.game_ids()):
        for name in e.imports:  # a relative path could lead into the folder of a untrusted run
            is_absolute = not name.endswith(".py") or Path(name).is_absolute()
            ExperimentError.require(is_absolute, f"imports: {show(name)}: give the absolute path of the file")
        envs.import_games(e.imports)
    ExperimentError.require(e.name != "", "name: an experiment needs one")
    ExperimentError.require(len(e.games) > 0, "games: name at least one")
    ExperimentError.require(len(set(e.games)) == len(e.games), f"games={list(e.games)}: list each game once")
    ExperimentError.require(e.num_steps > 0, "nothing to do: cold_start.steps and rl.iterations are both 0")
    ExperimentError.require(
        e.num_steps <= _MAX_STEPS, f"cold_start.steps + rl.iterations: {e.num_steps}, more than {_MAX_STEPS}"
    )
    updates = e.rl.iterations * e.rl.minibatching.epochs * e.rl.minibatching.minibatches
    ExperimentError.require(
        updates <= _MAX_STEPS, f"rl.iterations × epochs × minibatches: {updates}, more than {_MAX_STEPS}"
    )
    ExperimentError.require(
        e.rl.source != "hard_play" or e.rl.num_steps == 1,
        f"rl.source=hard_play: it needs rl.num_steps=1, not {e.rl.num_steps}",
    )
    ExperimentError.require(
        e.rl.decoding != "joint" or e.rl.num_steps == 1,
        f"rl.decoding=joint: it needs rl.num_steps=1, not {e.rl.num_steps}",
    )
    is_pictured = Observation.of(e.observation).picture
    ExperimentError.require(
        is_pictured or not e.cold_start.facts_weight,
        f"cold_start.facts_weight={e.cold_start.facts_weight:g}: a policy without pictures has no visual tokens; set 0",
    )
    known = envs.game_ids()
    for name, mapping in (
        ("levels", e.levels),
        ("prompts", e.prompts),
        ("cold_start.mixed_levels", e.cold_start.mixed_levels),
        ("rl.walk_steps", e.rl.walk_steps),
        ("rl.weights_by_game", e.rl.weights_by_game),
    ):
        for game in mapping:
            own_id = base_id_of(game)  # `swap:tiny` may be one that `--games` left out
            ExperimentError.require(own_id in known, f"{name}: {unknown('game', own_id, known)}")
    for game, levels in e.cold_start.mixed_levels.items():
        ExperimentError.require(len(levels) > 0, f"cold_start.mixed_levels[{game!r}]: name at least one level")
