"""Every compiled program, sharded ones included, lowers for TPUs and NVIDIA GPUs without callbacks to Python."""

import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export

from g1jax import envs
from g1jax.sft import demonstrations
from g1jax.sft.batch import SFTBatch
from g1jax.training import steps
from g1jax.training.setup import make_setup
from tests.conftest import REPOSITORY
from tests.training import tiny

PLATFORMS = ("tpu", "cuda")


def check(program: Any, *args: Any) -> str:
    """The text of a jitted program, lowered for both platforms."""
    return lower(program, *args)[0]


def lower(program: Any, *args: Any) -> tuple[str, int]:
    """Lowers a jitted program for both platforms; returns its text and its number of devices."""
    exported = export.export(program, platforms=PLATFORMS)(*args)
    text = exported.mlir_module()
    called = set(re.findall(r"custom_call @(\w+)", text)) | set(re.findall(r'call_target_name = "(\w+)"', text))
    assert not {name for name in called if "callback" in name or "python" in name}, called
    return text, exported.nr_devices


def test_a_callback_would_be_found() -> None:
    def program(x: jax.Array) -> jax.Array:
        out: jax.Array = jax.pure_callback(lambda x: x, x, x)
        return out

    with pytest.raises((AssertionError, ValueError, NotImplementedError), match="callback"):
        check(jax.jit(program), jnp.zeros(()))


@pytest.mark.parametrize("autoreset", ["pool", pytest.param("same_step", marks=pytest.mark.slow)])
def test_an_environment_step_with_frames(autoreset: Any) -> None:
    vec = envs.make_vec(list(envs.game_ids()), 8, autoreset=autoreset, max_steps=100)
    state = jax.eval_shape(vec.reset, jax.random.key(0))

    def step(state: Any, actions: jax.Array, key: jax.Array) -> Any:
        state, result = vec.step(state, actions, key)
        return state, result, vec.render(state), vec.describe(state)

    check(jax.jit(step), state, jax.ShapeDtypeStruct((8,), jnp.int32), jax.eval_shape(jax.random.key, 0))


@pytest.fixture(scope="module")
def run_args(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    setup = make_setup(tiny.make_experiment(model, tmp_path_factory.mktemp("runs")))
    with jax.set_mesh(setup.mesh):
        constants = steps.constants_of(setup, None)
        return setup, steps.template(setup, 0), constants


def jitted(function: Any, values: Any) -> Any:
    """A step with its static argument bound."""
    return jax.jit(lambda *args: function.__wrapped__(values, *args))


def test_a_step_of_the_cold_start(run_args: tuple[Any, Any, Any]) -> None:
    setup, state, constants = run_args
    key = jax.eval_shape(jax.random.key, 0)
    with jax.set_mesh(setup.mesh):
        check(
            jax.jit(lambda s, k: demonstrations.next_demonstrations(setup.cold_envs, 0.5, s, k)), state.cold_envs, key
        )
        check(jitted(steps.cold_step, setup.cold), state, constants, batch_shapes(setup))


def test_an_iteration_of_rl(run_args: tuple[Any, Any, Any]) -> None:
    """It contains generation, parsing, rewards and the update."""
    setup, _, constants = run_args
    with jax.set_mesh(setup.mesh):
        text = check(jitted(steps.rl_step, setup.rl), steps.template(setup, setup.experiment.num_steps), constants)
    assert text.count("stablehlo.while") >= 4


def batch_shapes(setup: Any) -> tuple[SFTBatch, ...]:
    def shape(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(
            (setup.experiment.cold_start.states, *shape), dtype, sharding=setup.placement.sharding()
        )

    made = []
    for game in setup.games:
        length = setup.policy.max_new_tokens(game)
        made.append(
            SFTBatch(
                shape(jnp.uint8, *game.frame_shape), shape(jnp.int32, length), shape(jnp.bool_, length),
                shape(jnp.bool_, length),
            )
        )  # fmt: skip
    return tuple(made)


def test_generation(run_args: tuple[Any, Any, Any]) -> None:
    setup, state, constants = run_args
    game = setup.games[0]
    frames = jax.ShapeDtypeStruct((4, *game.frame_shape), jnp.uint8)
    generate = jax.jit(lambda p, t, f, k: setup.policy.respond(p, t, game, f, k, num_samples=2))
    check(generate, state.trained, constants.table, frames, jax.eval_shape(jax.random.key, 0))


@pytest.mark.slow
def test_steps_that_are_sharded() -> None:
    """On 8 fake devices, in a subprocess: weights, rows and the heads of a layer are split."""
    command = [sys.executable, "-m", "tests.training.export_sharded"]
    done = subprocess.run(command, cwd=REPOSITORY, env=tiny.environment(8), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cold_step", "8", "rl_step", "8"]
