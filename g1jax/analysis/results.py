"""The results of an analysis of training runs.

P is the rate of boards read exactly, R the rate of moves with a reward above 0 on these boards. R given the true
perception is R when each response starts with the true perception: reasoning without errors of perception.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from g1jax.analysis.appearance import Variant
from g1jax.analysis.checkpoint_play import Setting
from g1jax.analysis.transfer import TransferTest
from g1jax.evaluation.lead_lag import LeadLag
from g1jax.evaluation.report import GIVEN_PERCEPTION, Curves, Point
from g1jax.evaluation.results import GameResult
from g1jax.evaluation.statistics import Interval, differences
from g1jax.training.saved_run import SavedRun


@dataclass(frozen=True, eq=False)
class CheckpointResult:
    """One checkpoint in each game: with its own perception, and given the true perception."""

    step: int
    own: Mapping[str, GameResult]
    given_perception: Mapping[str, GameResult]

    def metrics(self, game: str) -> dict[str, Interval]:
        """P, R and R given the true perception, by the keys of the report's curves."""
        own, given = self.own[game].metrics, self.given_perception[game].metrics
        return {
            "perception": own["perception"],
            "reasoning": own["reasoning"],
            GIVEN_PERCEPTION: given["reasoning"],
        }

    def lost(self, game: str) -> Interval:
        """Successes lost to misreading: the success rate given the true perception minus the own, paired by episode."""
        given, own = self.given_perception[game].sums["success"], self.own[game].sums["success"]
        return differences({"success": given}, {"success": own})["success"]


@dataclass(frozen=True, eq=False)
class VariantPoint:
    """A game at one value of an axis."""

    game: str
    variant: Variant
    metrics: Mapping[str, Interval] | None
    """None where the game cannot be rendered at this value."""
    difference: Interval | None
    """P minus P at the run's own appearance, paired by episode."""


@dataclass(frozen=True, eq=False)
class TransferPoint:
    """A run on a transfer test."""

    test: TransferTest
    kinship: str
    result: GameResult | None
    why_not: str = ""


@dataclass(frozen=True, eq=False)
class RunAnalysis:
    """All results of one run."""

    name: str
    run: SavedRun
    checkpoints: Sequence[CheckpointResult]
    curves: Curves
    leads: Mapping[str, LeadLag]
    tested_at: int
    """The step of the checkpoint used for variants and transfer tests."""
    variants: Sequence[VariantPoint]
    transfer: Sequence[TransferPoint]

    def points(self, game: str) -> dict[str, list[Point]]:
        """The checkpoints' metrics in a game, by the keys of the report's curves, without NaN."""
        out: dict[str, list[Point]] = {}
        for checkpoint in self.checkpoints if game in self.checkpoints[-1].own else []:
            for key, metric in checkpoint.metrics(game).items():
                if not math.isnan(metric.mean):
                    out.setdefault(key, []).append((checkpoint.step, metric.mean, metric.low, metric.high))
        return out


@dataclass(frozen=True, eq=False)
class Analysis:
    """The results of several runs."""

    setting: Setting
    games: Sequence[str]
    runs: Sequence[RunAnalysis]
    differences: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    """By run and game: each run minus the first, at their newest checkpoints, paired by episode."""
    notes: Sequence[str]
