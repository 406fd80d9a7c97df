"""An RL algorithm as data: a frozen config, the named algorithms as presets of it, and the batch it learns from.

The algorithms differ in a few places, each a key of `Algorithm`: what a reward is compared with (`baseline`,
`normalize`), what is clipped (`ratio`, `clip_low`, `clip_high`), how token losses are aggregated (`aggregation`), and
where the KL to the reference goes (`kl`). They can be combined: `make_algorithm("grpo", clip_high=0.28,
normalize="game")`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
from jaxtyping import Bool, Float32, Int32

from g1jax.errors import AlgorithmError, unknown
from g1jax.settings import Range, Share, check
from g1jax.typing import Array

Baseline = Literal["none", "group", "leave_one_out"]
"""What is subtracted from a reward: nothing, the mean of its group, or the mean of the others in its group."""

Normalize = Literal["none", "group", "game", "batch"]
"""Over what advantages are normalized to mean 0 and standard deviation 1: nothing, the rows of a group (ddof 1), all
tokens of a game, or all tokens of the batch (ddof 0).
"""

Ratio = Literal["token", "sequence"]
"""What has a probability ratio to the sampler, which is clipped: each token, or the whole response (GSPO)."""

Aggregation = Literal["token_mean", "sequence_mean", "constant"]
"""How token losses are aggregated: their mean; the mean over responses of each response's mean; or the mean over
responses of each response's sum divided by `max_length`, whatever its own length.
"""

KL = Literal["none", "loss", "reward", "token_reward"]
"""Where the KL to the reference policy goes: nowhere; into the loss; subtracted from a response's reward, the KL of all
its tokens; or subtracted from a token's return, the KL of that token and all later ones.
"""

Estimator = Literal["k1", "k2", "k3"]
"""An estimate of KL(policy ‖ reference) from one sampled token, with d = log π_ref − log π: −d, d²/2, e^d − d − 1.

All are from J. Schulman's note "Approximating KL divergence" (2020). Their means are the KL (k1, k3) or near it (k2).
As a *loss* the gradient counts: that of k2 is the KL's; that of k3 is the reverse KL's, which is close while the policy
is close to the reference; that of k1 is noise around zero. So k1 belongs in the reward.
"""


OldLogprobs = Literal["sampler", "recomputed"]
"""What the probability ratio compares with: the sampler's own log-probabilities, or those that the scorer gives before
the update. They are the same up to rounding; in bfloat16, or with other kernels in the sampler, they are not, and then
`importance_cap` corrects for what the sampler did.
"""


Weight = Annotated[float, Range(0, 1e6)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Responses to learn from. The n responses to one state are a group, in adjacent rows: B = groups × n.

    A row without a token in its mask is ignored, also in its group's statistics. Use this for padding and for steps
    after an episode's end.
    """

    response_mask: Bool[Array, "*B N"]  # the generated tokens
    logprobs: Float32[Array, "*B N"]  # of the sampler
    reference_logprobs: Float32[Array, "*B N"] | None  # of the reference policy; None if the algorithm has no KL
    rewards: Float32[Array, "*B"]  # of the response; in episodes of several steps, its return
    game_id: Int32[Array, "*B"]  # 0 to num_games − 1


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """How rewards become a loss. A static argument of jit.

    Raises:
        AlgorithmError: a key has an invalid value.
    """

    name: str = "custom"
    """Only for logs and messages."""
    baseline: Baseline = "group"
    """What is subtracted from a reward: nothing, the mean of its group, or the mean of the others in it."""
    normalize: Normalize = "group"
    """Over what advantages are normalized: nothing, a group, a game, or the batch."""
    ratio: Ratio = "token"
    """What has a clipped probability ratio: each token, or the whole response (GSPO)."""
    clip_low: Share = 0.2
    """The ratio is clipped to 1 − clip_low …"""
    clip_high: Weight = 0.2
    """… and 1 + clip_high."""
    old_logprobs: OldLogprobs = "sampler"
    """What the ratio compares with: log-probabilities of the sampler, or recomputed ones, which take a forward pass."""
    importance_cap: Annotated[float, Range(0, 1e6, is_above=True)] = 2.0
    """With recomputed ones, each token counts by their probability over the sampler's, up to this (truncated importance
    sampling, Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training")."""
    aggregation: Aggregation = "token_mean"
    """How token losses are aggregated: their mean, the mean of each response's mean, or each sum over max_length."""
    kl: KL = "none"
    """Where the KL to the reference policy goes: nowhere, into the loss, or off a response's or a token's reward."""
    kl_estimator: Estimator = "k3"
    """The estimate of the KL from one token: k1 for a reward, k2 or k3 for the loss."""
    kl_coefficient: Weight = 0.0
    """The coefficient of the KL; 0: none."""
    entropy_coefficient: Annotated[float, Range(-1e6, 1e6)] = 0.0
    """The coefficient of the policy's mean entropy, in nats, in the objective."""
    dynamic_sampling: bool = False
    """Leave out groups whose responses all have the same reward. DAPO resamples until the batch is full; shapes are
    fixed here, so these groups are masked and the batch is smaller.
    """
    overlong_weight: Weight = 0.0
    """The weight of DAPO's punishment of long responses: 0 where the buffer starts, 1 at max_length."""
    overlong_buffer: Annotated[float, Range(0, 1, is_above=True)] = 0.2
    """The last fraction of max_length, in which a response is punished."""
    max_length: Annotated[int, Range(0, 10**6)] = 0
    """The longest response, in tokens, for `constant` and the punishment. 0: the length of the batch's rows."""

    def __post_init__(self) -> None:
        check(self, AlgorithmError)

    @property
    def needs_reference(self) -> bool:
        """Whether a batch needs `reference_logprobs`."""
        return self.kl != "none" and self.kl_coefficient > 0

    @property
    def compares_groups(self) -> bool:
        """Whether a response is compared with the others to the same state, so that several are needed."""
        return self.baseline != "none" or self.normalize == "group" or self.dynamic_sampling

    def check_batch(self, batch: Batch, num_samples: int) -> None:
        """Raises `AlgorithmError` if the algorithm cannot learn from a batch. Needs only shapes."""
        rows = batch.rewards.shape[0]
        AlgorithmError.require(num_samples >= 1, f"num_samples={num_samples}: expected 1 or more")
        AlgorithmError.require(
            rows % num_samples == 0, f"{rows} rows do not divide into groups of num_samples={num_samples}"
        )
        AlgorithmError.require(
            num_samples > 1 or not self.compares_groups,
            f"num_samples=1: {self.name} compares the responses to one state; sample 2 or more, or use reinforce_pp",
        )
        self.check_reference(batch)

    def check_reference(self, batch: Batch) -> None:
        """Raises `AlgorithmError` if the algorithm needs the reference's log-probabilities and the batch has none."""
        AlgorithmError.require(
            batch.reference_logprobs is not None or not self.needs_reference,
            f"kl={self.kl!r} needs reference_logprobs: score the responses with the reference policy, or set kl='none'",
        )


def make_algorithm(name: str, **changes: Any) -> Algorithm:
    """A named algorithm, with changes to its keys: `make_algorithm("grpo", kl_coefficient=0.0)`.

    Raises:
        AlgorithmError: an unknown algorithm or key, or an invalid value.
    """
    AlgorithmError.require(name in _PRESETS, unknown("algorithm", name, _PRESETS))
    known = [f.name for f in dataclasses.fields(Algorithm)]
    for key in changes:
        AlgorithmError.require(key in known, unknown("key of an algorithm", key, known))
    return dataclasses.replace(_PRESETS[name](), **{"name": name, **changes})


def algorithm_names() -> tuple[str, ...]:
    """The names of the algorithms."""
    return tuple(_PRESETS)


def grpo() -> Algorithm:
    """GRPO, as in G1's release. "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    arXiv 2402.03300, equations 3 and 4: A = (R − mean) / (std + 1e-6) within a group, token ratios clipped by 0.2, and
    0.01 × k3 in the loss. The paper averages over each response first (`sequence_mean`); the release averages over
    tokens.
    """
    return Algorithm(kl="loss", kl_estimator="k3", kl_coefficient=0.01)


def dr_grpo() -> Algorithm:
    """Dr. GRPO. "Understanding R1-Zero-Like Training: A Critical Perspective", arXiv 2503.20783: GRPO without the two
    divisions that bias it: A = R − mean, and a sum over tokens divided by a constant instead of by each length. No KL.
    """
    return Algorithm(normalize="none", aggregation="constant")


def rloo() -> Algorithm:
    """RLOO. "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs", arXiv
    2402.14740: the gradient of A·log π(response), summed over its tokens, with A = R − the mean of the k − 1 others,
    where R is the reward minus the coefficient times log π/π_ref of the response. The paper has no clipped ratio; here
    it has no effect in the first epoch.
    """
    return Algorithm(
        baseline="leave_one_out",
        normalize="none",
        aggregation="constant",
        kl="reward",
        kl_estimator="k1",
        kl_coefficient=0.05,
    )


def dapo() -> Algorithm:
    """DAPO. "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", arXiv 2503.14476, equations 8 to 13:
    GRPO's advantages, ratios clipped to 1 − 0.2 and 1 + 0.28, the mean over all tokens, no KL, groups of equal rewards
    left out, and long responses punished over the last fifth of max_length. The paper refills the batch with other
    groups; here it becomes smaller.
    """
    return Algorithm(clip_high=0.28, dynamic_sampling=True, overlong_weight=1.0, overlong_buffer=0.2)


def gspo() -> Algorithm:
    """GSPO. "Group Sequence Policy Optimization", arXiv 2507.18071, equations 5 and 7: GRPO's advantages, and one ratio
    per response, s = (π(y) / π_old(y))^(1/|y|), clipped to 1 − 3e-4 and 1 + 4e-4. It is computed in the form of
    equations 13 and 14 (GSPO-token), where each token has the value of s and its own gradient; the two forms are equal
    if all tokens of a response have the same advantage.
    """
    return Algorithm(ratio="sequence", aggregation="sequence_mean", clip_low=3e-4, clip_high=4e-4)


def reinforce_pp() -> Algorithm:
    """REINFORCE++. "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
    arXiv 2501.03262: A_t = R − coefficient × the k1 of token t and all later ones, normalized over all tokens of the
    batch; PPO's clip. It needs no groups. With several games, `normalize="game"` keeps a game with large rewards from
    dominating the others.
    """
    return Algorithm(baseline="none", normalize="batch", kl="token_reward", kl_estimator="k1", kl_coefficient=0.01)


def reinforce_pp_baseline() -> Algorithm:
    """REINFORCE++ with baseline, the same paper's variant for groups: A = R − the mean of the group, then normalized
    over the batch; the KL is a k2 in the loss.
    """
    return Algorithm(baseline="group", normalize="batch", kl="loss", kl_estimator="k2", kl_coefficient=0.01)


_PRESETS: dict[str, Callable[[], Algorithm]] = {
    preset.__name__: preset for preset in (grpo, dr_grpo, rloo, dapo, gspo, reinforce_pp, reinforce_pp_baseline)
}
