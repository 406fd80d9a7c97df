"""Evaluation: any player on any game, metrics with confidence intervals, comparisons of results, and reports."""

from g1jax.errors import EvaluationError
from g1jax.evaluation.players import expert_player, policy_player, random_player
from g1jax.evaluation.protocol import Answers, Episodes, Player, Respond, play
from g1jax.evaluation.results import Result, compare, load, result_of, save
from g1jax.evaluation.statistics import METRIC_LABELS, Interval, curves_of, intervals, sums_of

__all__ = [
    "METRIC_LABELS",
    "Answers",
    "Episodes",
    "EvaluationError",
    "Interval",
    "Player",
    "Respond",
    "Result",
    "compare",
    "curves_of",
    "expert_player",
    "intervals",
    "load",
    "play",
    "policy_player",
    "random_player",
    "result_of",
    "save",
    "sums_of",
]
