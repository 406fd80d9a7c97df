"""Nothing is compiled after the first step of a phase, the first checkpoint and the first sample."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from g1jax.training import run, steps
from g1jax.training.config import Evaluation, Log
from g1jax.training.progress import Progress
from g1jax.training.setup import load_params, make_setup
from g1jax.vlm.lora import LoRA
from tests.training import tiny

GAMES = ("game_2048",)
FIRST = {1, 21, 61, 63}  # of the cold start, after the first checkpoint, of RL, after the first sample
STEPS = {"jit(cold_step)", "jit(rl_step)"}  # compiled in a second thread, possibly long before they are called
FEW = {"games": GAMES, "cold_start__steps": 1, "rl__iterations": 1, "evaluation__episodes": 0}


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
    assert {step for step, compiled in count.by_step.items() if set(compiled) - STEPS} <= FIRST
    assert [count.compiled[name] for name in sorted(STEPS)] == [1, 1]
    before = count.compiled.total()
    jax.jit(lambda x: x * 3.25)(2.0)
    assert count.compiled.total() > before, "compilations are counted"


@pytest.mark.slow
def test_with_lora(model: str, tmp_path: Path) -> None:
    """A step takes the frozen weights as well."""
    count = Count()
    run(tiny.make_experiment(model, tmp_path / "run", lora=LoRA(rank=2), **FEW), progress=count)
    assert [count.compiled[name] for name in sorted(STEPS)] == [1, 1]


class Runs:
    """Runs of variants of one experiment, each of which builds all parts of its setup again."""

    def __init__(self, model: str, folder: Path) -> None:
        self.first = tiny.make_experiment(model, folder / "first", **FEW)
        self._count, self._folder = Count(), folder

    def compiled(self, **changes: Any) -> set[str]:
        """The programs that a run compiles."""
        before, name = +self._count.compiled, str(len(list(self._folder.iterdir())))
        changed = dataclasses.replace(self.first, name=name, workdir=str(self._folder / name), **changes)
        run(changed, progress=self._count)
        return set(self._count.compiled - before)


def test_an_equal_setup_compiles_nothing(model: str, tmp_path: Path) -> None:
    runs = Runs(model, tmp_path)
    assert runs.compiled() >= STEPS
    assert runs.compiled(log=Log(samples_every=0, checkpoint_every=7), evaluation=Evaluation(episodes=0)) == set()


@pytest.mark.slow
def test_a_setting_recompiles_only_the_steps_that_read_it(model: str, tmp_path: Path) -> None:
    runs = Runs(model, tmp_path)
    runs.compiled()
    assert runs.compiled(seed=1) == {"jit(_init_state)", "jit(_start_rl)"}, (
        "the first states' keys follow from the seed"
    )
    cold_start = dataclasses.replace(runs.first.cold_start, see_weight=2.0)
    assert runs.compiled(cold_start=cold_start) == {"jit(cold_step)"}


@pytest.mark.parametrize(
    "spec", [LoRA(rank=0), pytest.param(LoRA(rank=2), marks=pytest.mark.slow)], ids=["all", "lora"]
)
def test_a_template_is_traced_once_for_all(
    spec: LoRA, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = make_setup(tiny.make_experiment(model, tmp_path / "run", lora=spec, **FEW, seed=5))
    with jax.log_compiles():
        shapes = [steps.template(setup, step) for step in (0, 2, 2)]
        state, _ = steps.init_state(setup, load_params(setup))
        state = steps.start_rl(setup, state)
    for program in ("_init_state", "_start_rl"):
        traced = [
            line
            for line in caplog.messages
            if f"Finished tracing {program}" in line or f"transforming {program} " in line
        ]
        assert len(traced) == 1, program
    found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), (state, shapes[1]))
    assert jax.tree.leaves(found[0]) == jax.tree.leaves(found[1])
