"""Nothing is compiled after the first step of a phase, the first checkpoint and the first sample."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import jax
import pytest

from g1jax.training import run
from g1jax.training.config import Log
from g1jax.training.progress import Progress
from g1jax.training.setup import make_setup
from g1jax.vlm.lora import LoRA
from tests.training import tiny

GAMES = ("game_2048",)
FIRST = {1, 21, 61, 63}  # of the cold start, after the first checkpoint, of RL, after the first sample
AHEAD = {"jit(cold_step)", "jit(rl_step)"}  # compiled in a second thread, possibly long before they are called


class Count(Progress):
    """Counts the programs that were compiled, or read from the compilation cache, in each step."""

    def __init__(self) -> None:
        self.compiled: Counter[str] = Counter()
        self.by_step: dict[int, Counter[str]] = {}
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, duration_secs: float, **more: str | int) -> None:
        self.compiled[str(more.get("fun_name"))] += event == "/jax/core/compile/backend_compile_duration"

    def step(self, step: int, phase: str, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        self.by_step[step] = +self.compiled - sum(self.by_step.values(), Counter())


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_steps(model: str, tmp_path: Path) -> None:
    count = Count()
    run(tiny.make_experiment(model, tmp_path / "run", games=GAMES, evaluation__episodes=0), progress=count)
    assert sorted(count.by_step) == list(range(1, 65))
    assert {step for step, compiled in count.by_step.items() if set(compiled) - AHEAD} <= FIRST
    assert [count.compiled[name] for name in sorted(AHEAD)] == [1, 1]
    before = count.compiled.total()
    jax.jit(lambda x: x * 3.25)(2.0)
    assert count.compiled.total() > before, "compilations are counted"


@pytest.mark.slow
def test_with_lora(model: str, tmp_path: Path) -> None:
    """A step takes the frozen weights as well."""
    count, few = Count(), {"cold_start__steps": 1, "rl__iterations": 1, "evaluation__episodes": 0}
    run(tiny.make_experiment(model, tmp_path / "run", games=GAMES, lora=LoRA(rank=2), **few), progress=count)
    assert [count.compiled[name] for name in sorted(AHEAD)] == [1, 1]


def test_equal_setups_share_programs(model: str, tmp_path: Path) -> None:
    """Setups are equal even with another folder, name, log and evaluation; all their parts are built twice."""
    count = Count()
    few = {"games": GAMES, "cold_start__steps": 1, "rl__iterations": 1, "evaluation__episodes": 0}
    first = tiny.make_experiment(model, tmp_path / "first", **few)
    run(first, progress=count)
    before = +count.compiled
    other = dataclasses.replace(first, name="other", workdir=str(tmp_path / "other"), log=Log(samples_every=0))
    run(other, progress=count)
    assert count.compiled - before == Counter()
    assert make_setup(first) == make_setup(other)
    assert make_setup(first) != make_setup(dataclasses.replace(first, seed=1))
