"""Nothing is compiled on the way: after the first step of a phase, the first checkpoint and the first sample."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from g1jax.training import run
from g1jax.training.progress import Progress
from tests.training import tiny

FIRST = {1, 21, 61, 63}  # of the cold start, after the first checkpoint, of RL, after the first sample


class Count(Progress):
    """How many programs were compiled, or read from the cache of compiled ones, between the ends of two steps."""

    def __init__(self) -> None:
        self.num_compiled = 0
        self.by_step: dict[int, int] = {}
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
        self.num_compiled += event == "/jax/core/compile/backend_compile_duration"

    def step(self, step: int, phase: str, figures: Mapping[str, float], timings: Mapping[str, float]) -> None:
        self.by_step[step] = self.num_compiled - sum(self.by_step.values())


def test_nothing_is_compiled_after_the_first_steps(model: str, tmp_path: Path) -> None:
    count = Count()
    run(tiny.make_experiment(model, tmp_path / "run", evaluation__episodes=0), progress=count)
    assert sorted(count.by_step) == list(range(1, 65))
    assert {step for step, number in count.by_step.items() if number} <= FIRST
    before = count.num_compiled
    jax.jit(lambda x: x * 3.25)(2.0)
    assert count.num_compiled > before, "a compilation is heard"
