"""What an analysis of training runs found, as data.

P is how often the board is read exactly, R how often a move earns something where it is. R seeing is the same with the
true perception written before the policy goes on: what reasoning would do if it saw everything rightly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from g1jax.analysis.appearance import Variant
from g1jax.analysis.checkpoint_play import Setting
from g1jax.analysis.transfer import Trial
from g1jax.evaluation.lead_lag import LeadLag
from g1jax.evaluation.report import SEEING, Curves, Point
from g1jax.evaluation.results import GameResult
from g1jax.evaluation.statistics import Interval, differences
from g1jax.training.saved_run import SavedRun


@dataclass(frozen=True, eq=False)
class CheckpointResult:
    """One checkpoint: what it does in each game as it sees, and as it would if it saw everything rightly."""

    step: int
    own: Mapping[str, GameResult]
    seeing: Mapping[str, GameResult]

    def figures(self, game: str) -> dict[str, Interval]:
        """P, R and R seeing, by the keys of the report's curves."""
        own, seeing = self.own[game].figures, self.seeing[game].figures
        return {
            "perception": own["perception"],
            "reasoning": own["reasoning"],
            SEEING: seeing["reasoning"],
        }

    def lost(self, game: str) -> Interval:
        """Successes lost to misreading: rate when seeing minus rate, paired by episode."""
        seeing, own = self.seeing[game].sums["success"], self.own[game].sums["success"]
        return differences({"success": seeing}, {"success": own})["success"]


@dataclass(frozen=True, eq=False)
class VariantPoint:
    """A game under one value of an axis."""

    game: str
    look: Variant
    figures: Mapping[str, Interval] | None
    """None where the game cannot be shown so."""
    difference: Interval | None
    """Of P to the run's own looks, paired by episode."""


@dataclass(frozen=True, eq=False)
class TrialPoint:
    """A run on a test."""

    trial: Trial
    kinship: str
    result: GameResult | None
    why_not: str = ""


@dataclass(frozen=True, eq=False)
class RunAnalysis:
    """All that was found about one run."""

    name: str
    run: SavedRun
    checkpoints: Sequence[CheckpointResult]
    curves: Curves
    leads: Mapping[str, LeadLag]
    tested_at: int
    """The step whose checkpoint looks and trials were played with."""
    looks: Sequence[VariantPoint]
    trials: Sequence[TrialPoint]

    def points(self, game: str) -> dict[str, list[Point]]:
        """What its checkpoints do in a game, by the keys of the report's curves; what is not known is left out."""
        out: dict[str, list[Point]] = {}
        for checkpoint in self.checkpoints if game in self.checkpoints[-1].own else []:
            for key, figure in checkpoint.figures(game).items():
                if not math.isnan(figure.mean):
                    out.setdefault(key, []).append((checkpoint.step, figure.mean, figure.low, figure.high))
        return out


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was found about some runs."""

    setting: Setting
    games: Sequence[str]
    runs: Sequence[RunAnalysis]
    differences: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    """Of each run but the first, minus the first, at their newest checkpoints, paired by episode: by run and game."""
    notes: Sequence[str]
