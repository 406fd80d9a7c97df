"""The update against a plain implementation, and against one with `jax.pmap`."""

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from g1jax import rl, vlm
from g1jax.rl.lengths import at_length, groups_by_length, rows_by_length
from g1jax.rl.minibatching import Minibatching
from g1jax.rl.rollout import Rollout
from g1jax.rl.update import update
from tests.conftest import REPOSITORY
from tests.rl import tiny

STATES, SAMPLES = 4, 3
SGD = optax.sgd(0.1)
LONGEST = max(tiny.LENGTHS.values())


@pytest.fixture(scope="module", autouse=True)
def quick_programs() -> Iterator[None]:
    """Halves compile time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def before() -> tuple[vlm.Params, vlm.Params, tuple[Rollout, ...]]:
    """Params, a different reference, and rollouts sampled by a policy close to the first."""
    params = tiny.make_params()
    return params, tiny.make_params(1), tiny.make_rollouts(params, STATES, SAMPLES)


@functools.partial(jax.jit, static_argnums=(0, 1))
def learn(algorithm: rl.Algorithm, minibatching: Minibatching, key: jax.Array, *args: Any) -> Any:
    params, reference, rollouts = args
    reference = reference if algorithm.needs_reference else None
    games = tiny.GAMES[: len(rollouts)]
    return update(
        tiny.POLICY, algorithm, SGD, games, params, SGD.init(params), rollouts, key,
        num_samples=SAMPLES, minibatching=minibatching, reference=reference,
    )  # fmt: skip


def plain_loss(
    algorithm: rl.Algorithm, params: vlm.Params, reference: vlm.Params, rollouts: tuple[Rollout, ...]
) -> jax.Array:
    """The loss of one flat batch: every row padded to the longest response, with its own copy of the frame."""
    tables: dict[str, list[jax.Array]] = {}
    for i, (game, rollout) in enumerate(zip(tiny.GAMES, rollouts, strict=True)):
        rows, length = rollout.responses.tokens.shape
        wide = ((0, 0), (0, LONGEST - length))
        tokens, mask = jnp.pad(rollout.responses.tokens, wide), jnp.pad(rollout.responses.mask, wide)
        mask &= rollout.is_running[:, None]
        prompt = jnp.tile(jnp.asarray(tiny.POLICY.prompt_tokens(game))[None], (rows, 1))
        inputs = (prompt, jnp.ones(prompt.shape, bool), tokens, mask, jnp.repeat(rollout.frames, SAMPLES, axis=0))
        current, fixed = (vlm.score(tiny.CONFIG, p, *inputs) for p in (params, reference))
        row = {
            "mask": mask, "logprobs": current.logprobs, "entropy": current.entropy,
            "reference": jax.lax.stop_gradient(fixed.logprobs),
            "sampled": jnp.pad(rollout.responses.logprobs, wide), "returns": rollout.returns,
            "game": jnp.full(rows, i, jnp.int32),
        }  # fmt: skip
        for name, value in row.items():
            tables.setdefault(name, []).append(value)
    flat = {name: jnp.concatenate(values) for name, values in tables.items()}
    reference_logprobs = flat["reference"] if algorithm.needs_reference else None
    batch = rl.Batch(flat["mask"], flat["sampled"], reference_logprobs, flat["returns"], flat["game"])
    batch, advantages = rl.prepare(algorithm, batch, num_samples=SAMPLES, num_games=len(rollouts))
    return rl.policy_loss(algorithm, flat["logprobs"], flat["entropy"], batch, advantages)[0]


def test_gradients_of_bfloat16_params_reach_the_optimizer_in_float32() -> None:
    """Gradients are summed over games and microbatches in float32. Only traced, which is enough for dtypes."""
    params, reference = (jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree) for tree in before()[:2])
    found: list[Any] = []

    def record(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found.extend(jax.tree.leaves(grads))
        return jax.tree.map(jnp.zeros_like, params), state

    rule = optax.GradientTransformation(lambda params: (), record)
    config = dataclasses.replace(tiny.CONFIG, dtype="bfloat16", param_dtype="bfloat16")
    policy = dataclasses.replace(tiny.POLICY, config=config)
    trained, _, metrics = jax.eval_shape(
        lambda params, reference, rollouts, key: update(
            policy, rl.make_algorithm("grpo"), rule, tiny.GAMES, params, (), rollouts, key,
            num_samples=SAMPLES, minibatching=Minibatching(microbatches=2), reference=reference,
        ),
        params, reference, before()[2], jax.random.key(0),
    )  # fmt: skip
    assert {leaf.dtype for leaf in found} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("bfloat16")}
    assert metrics["gradient_norm"].dtype == jnp.float32


def max_difference(a: Any, b: Any) -> float:
    """The largest difference anywhere in two trees."""
    both = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in both)


@pytest.mark.parametrize("name", ["grpo", pytest.param("dr_grpo", marks=pytest.mark.slow)])
def test_one_step_is_the_plain_gradient_step(name: str) -> None:
    algorithm = rl.make_algorithm(name)
    params, reference, rollouts = before()
    after, _, metrics = learn(algorithm, Minibatching(), jax.random.key(0), params, reference, rollouts)
    grads = jax.jit(jax.grad(plain_loss, argnums=1), static_argnums=0)(algorithm, params, reference, rollouts)
    wanted = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    assert max_difference(after, params) > 1e-3
    assert max_difference(after, wanted) < 1e-6
    assert float(metrics["gradient_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert 0 < float(metrics["clip_fraction"]) < 1


def of_one_game() -> tuple[vlm.Params, vlm.Params, tuple[Rollout, ...]]:
    """As `before`, but only the first game, to compile faster."""
    params, reference, rollouts = before()
    return params, reference, rollouts[:1]


def test_microbatches_change_nothing() -> None:
    algorithm = rl.make_algorithm("grpo")
    args = of_one_game()
    whole = learn(algorithm, Minibatching(), jax.random.key(0), *args)
    parts = learn(algorithm, Minibatching(microbatches=2), jax.random.key(0), *args)
    assert max_difference(parts[0], whole[0]) < 1e-6
    assert max_difference(parts[2], whole[2]) < 1e-5


def shortened(rollouts: tuple[Rollout, ...]) -> tuple[Rollout, ...]:
    """Responses that end after 1 to all of their tokens, alike within a group except for one."""

    def shorten(rollout: Rollout) -> Rollout:
        rows, length = rollout.responses.mask.shape
        ends = 1 + (jnp.arange(rows) // SAMPLES * 5 + jnp.arange(rows) % SAMPLES) % length
        mask = rollout.responses.mask & (jnp.arange(length)[None] < ends[:, None])
        return dataclasses.replace(rollout, responses=dataclasses.replace(rollout.responses, mask=mask))

    return tuple(map(shorten, rollouts))


@pytest.mark.parametrize("parts", [(1, 2), pytest.param((2, 2), marks=pytest.mark.slow)])
def test_length_buckets_change_nothing(parts: tuple[int, int]) -> None:
    algorithm = rl.make_algorithm("grpo")
    params, reference, rollouts = of_one_game()
    rollouts = shortened(rollouts)
    divided = Minibatching(minibatches=parts[0], microbatches=parts[1])
    bucketed = dataclasses.replace(divided, length_buckets=3)
    found, expected = (
        learn(algorithm, minibatching, jax.random.key(0), params, reference, rollouts)
        for minibatching in (bucketed, divided)
    )
    assert max_difference(expected[0], params) > 1e-3
    assert max_difference(found[0], expected[0]) < 1e-6
    assert max_difference(found[2], expected[2]) < 1e-5


def test_microbatches_have_similar_lengths() -> None:
    groups, lengths = jnp.arange(8).reshape(2, 2, 2), jnp.array([9, 1, 8, 2, 5, 6, 7, 3])
    assert lengths[groups_by_length(groups, lengths)].tolist() == [[[1, 2], [8, 9]], [[3, 5], [6, 7]]]


def test_responses_of_similar_lengths_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = jnp.array([9, 1, 8, 2, 5, 6, 7, 3])
    mask = jnp.arange(9)[None] < lengths[:, None]
    assert lengths[rows_by_length(mask, 4)].tolist() == [[[1, 2]], [[3, 5]], [[6, 7]], [[8, 9]]]
    assert lengths[:6][rows_by_length(mask[:6], 3)].tolist() == [[[1, 2]], [[5, 6]], [[8, 9]]]
    monkeypatch.setattr("g1jax.rl.lengths.num_shards", lambda rows: 2)
    assert rows_by_length(mask, 4).tolist() == [[[1], [3]], [[3], [0]], [[2], [1]], [[0], [2]]]


@pytest.mark.parametrize(("longest", "length"), [(0, 3), (3, 3), (4, 6), (6, 6), (7, 12), (12, 12)])
def test_the_first_length_that_holds_all_tokens(longest: int, length: int) -> None:
    mask = jnp.zeros((4, 12), bool).at[2, :longest].set(True)
    assert int(at_length(jnp.int32, mask, 3)) == length


def test_recomputed_logprobs_weigh_tokens_by_what_the_sampler_did() -> None:
    """A sampler that gave every token 1/n of its probability: each counts n times, but no more than the cap."""
    params, _, rollouts = of_one_game()
    rollout, responses = rollouts[0], rollouts[0].responses
    inputs = (params, tiny.GAMES[0], rollout.frames, responses.tokens, responses.mask)
    logprobs = jax.jit(tiny.POLICY.score, static_argnums=1)(*inputs).logprobs

    def step(logprobs: jax.Array, **changes: Any) -> tuple[vlm.Params, dict[str, jax.Array]]:
        sampled = dataclasses.replace(rollout, responses=dataclasses.replace(responses, logprobs=logprobs))
        algorithm = rl.make_algorithm("grpo", kl="none", **changes)
        after, _, metrics = learn(
            algorithm, Minibatching(microbatches=2), jax.random.key(0), params, params, (sampled,)
        )
        return jax.tree.map(jnp.subtract, after, params), metrics

    expected, _ = step(logprobs)
    assert max_difference(expected, jax.tree.map(jnp.zeros_like, params)) > 1e-3
    for times, weight in ((1.25, 1.25), (4.0, 1.5)):
        found, metrics = step(logprobs - np.float32(np.log(times)), old_logprobs="recomputed", importance_cap=1.5)
        assert float(metrics["ratio"]) == pytest.approx(1, abs=1e-5), "to the policy before the update"
        assert max_difference(found, jax.tree.map(lambda leaf, w=weight: w * leaf, expected)) < 3e-6


def test_minibatches_are_steps_of_their_own() -> None:
    """The key decides which half of the groups comes first."""
    algorithm = rl.make_algorithm("dr_grpo")
    params, reference, rollouts = of_one_game()
    after = [
        learn(algorithm, Minibatching(minibatches=2), jax.random.key(seed), params, reference, rollouts)[0]
        for seed in range(3)
    ]
    assert (
        min(max_difference(after[0], other) for other in after[1:]) > 1e-7 or max_difference(after[1], after[2]) > 1e-7
    )
    again = learn(algorithm, Minibatching(minibatches=2), jax.random.key(0), params, reference, rollouts)[0]
    assert max_difference(again, after[0]) == 0


def test_epochs_are_successive_steps() -> None:
    """The second step starts where the first ended, with the same advantages and sampler logprobs."""
    algorithm = rl.make_algorithm("grpo")
    params, reference, rollouts = of_one_game()
    twice = learn(algorithm, Minibatching(epochs=2), jax.random.key(0), params, reference, rollouts)[0]
    once = learn(algorithm, Minibatching(), jax.random.key(0), params, reference, rollouts)[0]
    again = learn(algorithm, Minibatching(), jax.random.key(1), once, reference, rollouts)[0]
    assert max_difference(twice, again) < 1e-6
    assert max_difference(twice, once) > 1e-3


def test_rows_after_an_end_teach_nothing() -> None:
    algorithm = rl.make_algorithm("grpo")
    params, reference, rollouts = of_one_game()
    changed = []
    for rollout in rollouts:
        ended = ~rollout.is_running
        returns = jnp.where(ended, 1e3, rollout.returns)
        changed.append(jax.tree.map(lambda leaf: leaf, rollout))
        object.__setattr__(changed[-1], "returns", returns)
        assert bool(jnp.any(ended))
    one, other = (
        learn(algorithm, Minibatching(), jax.random.key(0), params, reference, r)[0] for r in (rollouts, tuple(changed))
    )
    assert max_difference(one, other) == 0


def test_groups_that_do_not_divide() -> None:
    params, reference, rollouts = of_one_game()
    wrong = (
        "game_2048: 4 groups do not divide into 3 minibatches of 1 microbatches: make the number of states a multiple"
    )
    with pytest.raises(rl.AlgorithmError, match=wrong):
        learn(rl.make_algorithm("grpo"), Minibatching(minibatches=3), jax.random.key(0), params, reference, rollouts)


def test_a_kl_needs_a_reference() -> None:
    params, _, rollouts = of_one_game()
    with pytest.raises(rl.AlgorithmError, match="grpo needs a reference policy"):
        learn(rl.make_algorithm("grpo"), Minibatching(), jax.random.key(0), params, None, rollouts)


@pytest.mark.slow
def test_pmap_gives_the_same_update() -> None:
    """On 8 fake devices, in a subprocess: jit over a mesh, and the same update written with `jax.pmap`."""
    command = [sys.executable, "-m", "tests.rl.with_pmap"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8
    assert found["moved"] > 1e-3
    assert found["pmap"] < 1e-6
    assert found["mesh"] < 1e-6
    assert np.isfinite(list(found.values())).all()
