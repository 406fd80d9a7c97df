"""Plans of a tiny run on eight fake devices, against what the run holds; with their compilers, for accelerators."""

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

from g1jax.errors import ConfigError
from g1jax.training.plan import StepPlan, verdict
from g1jax.training.plan_targets import target_of
from tests.conftest import REPOSITORY
from tests.training import tiny


@pytest.fixture(scope="module")
def planned(model: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.training.planned", model]
    done = subprocess.run(command, cwd=REPOSITORY, env=tiny.environment(8), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_state_is_what_a_run_holds(planned: dict[str, Any]) -> None:
    for step in ("rollout", "update", "evaluation"):
        for part in ("weights", "moments", "reference"):
            assert planned["plans"][step][part] == planned["held"][part] > 0, (step, part)
        assert planned["plans"][step]["master"] == 0  # the params are float32


def test_a_token_sends_no_weights(planned: dict[str, Any]) -> None:
    """They are gathered once; each token, a device sends whether all of its rows are done, in less than two bytes."""
    gathered = planned["plans"]["rollout"]
    assert 0 < gathered["sent_a_token"] <= 2
    assert gathered["sent"] > 6 * gathered["weights"]
    assert planned["plans"]["update"]["sent"] > gathered["weights"]


def test_the_cache_by_hand(planned: dict[str, Any]) -> None:
    """The tiny model: 1 layer, 2 heads of 16 numbers for keys and for values, 4 bytes each: 256 bytes a token."""
    plans = planned["plans"]
    tokens, remainder = divmod(plans["rollout"]["cache"], 2 * 4 * 256)  # two states a device, 4 samples
    assert remainder == 0
    assert tokens > 48
    assert plans["rollout in parts"]["cache"] * 2 == plans["rollout"]["cache"]
    assert plans["update"]["cache"] == plans["cold_start"]["cache"] == 0
    assert plans["evaluation"]["cache"] * 8 == plans["rollout"]["cache"]  # two episodes on eight devices: one each


@pytest.mark.parametrize(
    ("name", "devices", "topology"),
    [
        ("h100x8", 8, "8"),
        ("h200x1", 1, "1"),
        ("v5e-8", 8, "v5e:2x4"),
        ("v5e-8x2", 16, "v5e:2x4"),
        ("v5p-8", 4, "v5p:2x2x1"),
        ("v5p-64", 32, "v5p:2x4x4"),
    ],
)
def test_targets(name: str, devices: int, topology: str) -> None:
    target = target_of(name)
    assert (target.num_devices, target.topology) == (devices, topology)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h1000x8", r"unknown target 'h1000x8'.*h100x8"),
        ("h100x9", "h100x9: expected 1 to 8 GPUs"),
        ("v5p-4", "v5p-4: expected one of v5p-8, v5p-16"),
        ("v5e-7", "v5e-7: expected one of v5e-1, v5e-4, v5e-8"),
        ("v5e-8x0", "v5e-8x0: expected 1 slice or more"),
    ],
)
def test_unknown_targets(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target_of(name)


def test_verdicts() -> None:
    def plan(step: str, **parts: int) -> StepPlan:
        sizes = dict.fromkeys(("weights", "master", "moments", "reference", "cache", "working"), 1) | parts
        return StepPlan(step=step, **sizes, sent=0, sent_a_token=0, num_async=0, num_collectives=0, seconds=0)

    assert verdict(plan("update", working=50), 100).startswith("fits")
    assert verdict(plan("update", working=90), 100).endswith("more rl.microbatches, is_remat, attention=blockwise")
    assert "cold_start.microbatches" in verdict(plan("cold_start", working=90), 100)
    assert verdict(plan("rollout", cache=90), 100).endswith("; more rl.rollout-parts")
    assert "mesh.rollout-weights=sharded or mesh.tensor" in verdict(plan("rollout", working=90), 100)
    assert "mesh.fsdp" in verdict(plan("rollout", moments=90), 100)


SCRIPT = [sys.executable, "scripts/plan.py"]


def test_a_wrong_step_is_refused_before_work() -> None:
    done = subprocess.run([*SCRIPT, "--for=v5e-8", "--steps=rolout"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: --steps=rolout: expected some of cold_start, rollout, update, evaluation\n"


@pytest.mark.parametrize(("target", "package"), [("h100x2", "jax_cuda12_plugin"), ("v5e-4", "libtpu")])
def test_small_shapes_for_accelerators(target: str, package: str, model: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    small = "--mesh.fsdp=2 --rl.states=8 --rl.microbatches=1 --cold-start.states=8 --cold-start.microbatches=1"
    command = [*SCRIPT, f"--for={target}", "--experiment=g1_swap", f"--model={model}", *small.split()]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    for step in ("cold_start", "rollout", "update", "evaluation"):
        assert f"\n{step} fits: " in done.stdout
