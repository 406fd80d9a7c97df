"""bfloat16 weights with float32 master weights: the paper's recipe at tiny size, and its memory."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from g1jax import vlm
from g1jax.rl.minibatching import Minibatching
from g1jax.sft.step import supervised_step
from g1jax.training import policy_of_run, recipes, run, steps
from g1jax.training.config import Evaluation, Experiment, Log
from g1jax.training.plan import held_bytes
from g1jax.training.setup import load_params, make_setup
from g1jax.vlm.lora import LoRA
from tests.training import test_export, tiny
from tests.training.test_run import stop_at

BF16 = jnp.dtype("bfloat16")
COLD = 20


def paper(model: str, workdir: Path, dtype: Any, **changes: Any) -> Experiment:
    """The paper's recipe for a few steps on a tiny board.

    With a bonus for entropy, as after so few steps all rewards are equal and RL would have no other gradient.
    """
    e = recipes.paper("paper", games=("game_2048",), model=model)
    algorithm = dataclasses.replace(e.rl.algorithm, entropy_coefficient=0.01)
    return dataclasses.replace(
        e,
        levels=tiny.LEVELS,
        workdir=str(workdir),
        dtype=dtype,
        param_dtype=dtype,
        is_remat=False,
        max_new_tokens=48,
        cold_start=dataclasses.replace(e.cold_start, steps=COLD, states=4),
        rl=dataclasses.replace(
            e.rl,
            iterations=3,
            states=4,
            minibatching=Minibatching(microbatches=2),
            walk_steps={"game_2048": 2},
            algorithm=algorithm,
        ),
        evaluation=Evaluation(episodes=0),
        log=Log(samples_every=0, checkpoint_every=8),
        **changes,
    )


def changed(before: Any, after: Any) -> float:
    """The share of numbers that have changed."""
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    return sum(int(jnp.sum(a != b)) for a, b in pairs) / sum(a.size for a, _ in pairs)


def in_bfloat16(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(BF16), tree)


@pytest.fixture(scope="module")
def start(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a policy with weights that bfloat16 represents exactly."""
    folder = tmp_path_factory.mktemp("start")
    policy, params = policy_of_run(whole, param_dtype="bfloat16")
    vlm.save(policy.config, params, folder)
    policy.tokenizer.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def narrow(start: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the recipe's uninterrupted run in bfloat16."""
    return run(paper(start, tmp_path_factory.mktemp("runs") / "bfloat16", "bfloat16"))


def masters(folder: Path | str) -> Any:
    return policy_of_run(folder, param_dtype="float32")[1]


@pytest.mark.slow
def test_the_papers_recipe_changes_all_weights(start: str, narrow: Path) -> None:
    first, last = vlm.stack_layers(vlm.load(start)[1]), masters(narrow)
    assert changed(first, last) > 0.999
    chex.assert_trees_all_equal(policy_of_run(narrow)[1], in_bfloat16(last))
    assert (
        changed(in_bfloat16(first), in_bfloat16(last)) > 0.05
    )  # few weights move by half of their spacing in so few steps


@pytest.mark.slow
def test_it_changes_as_many_weights_as_in_float32(start: str, narrow: Path, tmp_path: Path) -> None:
    """The same holds for the rounded weights."""
    first, last = vlm.stack_layers(vlm.load(start)[1]), masters(narrow)
    wide = masters(run(paper(start, tmp_path, "float32")))
    assert changed(first, last) == pytest.approx(changed(first, wide), abs=1e-3)
    rounded = [changed(in_bfloat16(first), in_bfloat16(tree)) for tree in (last, wide)]
    assert rounded[0] == pytest.approx(rounded[1], rel=0.1)


@pytest.mark.slow
def test_a_stopped_run_resumes_with_every_bit(start: str, narrow: Path, tmp_path: Path) -> None:
    """Stopped before and in RL, which continues from the master weights and changes nearly all of them."""
    parts = paper(start, tmp_path, "bfloat16")
    run(parts, progress=stop_at(COLD))
    cold = masters(tmp_path)
    run(parts, progress=stop_at(COLD + 1))
    assert tiny.metrics_of(run(parts)) == tiny.metrics_of(narrow)
    chex.assert_trees_all_equal(masters(tmp_path), masters(narrow))
    assert changed(cold, masters(narrow)) > 0.9


@pytest.mark.parametrize(
    ("dtype", "rank"), [pytest.param("float32", 0, marks=pytest.mark.slow), ("bfloat16", 0), ("bfloat16", 2)]
)
def test_the_memory_planned_is_what_a_run_holds(model: str, dtype: str, rank: int, tmp_path: Path) -> None:
    setup = make_setup(paper(model, tmp_path, dtype, lora=LoRA(rank=rank)))
    planned = held_bytes(setup, steps.template(setup, 0))
    state, constants = steps.init_state(setup, load_params(setup))
    assert planned["weights"] == num_bytes((state.trained, constants.frozen))
    assert planned["reference"] == num_bytes(state.reference) > 0
    is_kept = dtype == "bfloat16" and rank == 0
    rule = state.opt_state.rule if is_kept else state.opt_state
    assert planned["master"] == (num_bytes(state.opt_state.weights) if is_kept else 0)
    assert planned["moments"] - num_bytes(rule) <= 8  # counters
    assert num_bytes(rule) == 2 * num_bytes(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state.trained))
    summed = gradients_of(setup, state, constants)
    assert {leaf.dtype for leaf in jax.tree.leaves(summed)} == {jnp.dtype("float32")}


def num_bytes(tree: Any) -> int:
    """The bytes of all arrays that are not counters."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if leaf.dtype != jnp.int32)


def gradients_of(setup: Any, state: Any, constants: Any) -> Any:
    """The gradients that a step of the cold start passes to its optimizer, as shapes and dtypes."""
    seen: list[Any] = []

    def see(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        seen.append(grads)
        return jax.tree.map(jnp.zeros_like, params), state

    rule = optax.GradientTransformation(lambda params: (), see)
    batches = test_export.batch_shapes(setup)
    jax.eval_shape(
        lambda trained, batches: supervised_step(
            setup.policy, rule, setup.games, trained, (), batches, see_weight=1.0, num_micro=2,
            full_params=functools.partial(steps.full_params, frozen=constants.frozen, spec=setup.lora),
        ),
        state.trained, batches,
    )  # fmt: skip
    return seen[0]


def test_rl_continues_from_the_master_weights(model: str, tmp_path: Path) -> None:
    """Not from the rounded ones; the moments of the cold start are freed."""
    setup = make_setup(paper(model, tmp_path, "bfloat16"))
    state, _ = steps.init_state(setup, load_params(setup))
    weights = jax.tree.map(lambda leaf: leaf * (1 + 2**-12), state.opt_state.weights)
    expected = jax.tree.map(np.asarray, weights)
    moments = jax.tree.leaves(state.opt_state.rule)
    after = steps.start_rl(
        setup, dataclasses.replace(state, opt_state=dataclasses.replace(state.opt_state, weights=weights))
    )
    chex.assert_trees_all_equal(after.opt_state.weights, expected)
    assert all(leaf.is_deleted() for leaf in moments)
    chex.assert_trees_all_equal(after.reference, after.trained)
