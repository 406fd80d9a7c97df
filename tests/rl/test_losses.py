"""Losses and gradients against float64 NumPy code written from the papers' formulas, and finite differences."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import rl
from g1jax.rl.losses import MAX_KL, estimate_kl, sequence_log_ratio

FloatArray = np.ndarray
LENGTHS = [5, 1, 3, 0, 4, 2]
B, N = len(LENGTHS), 5


@dataclasses.dataclass(frozen=True)
class Case:
    """Responses of different lengths; row 3 has no tokens. Ratios from far below to far above every clip."""

    new: FloatArray
    old: FloatArray
    reference: FloatArray
    advantages: FloatArray
    entropy: FloatArray

    @property
    def batch(self) -> rl.Batch:
        return rl.Batch(
            jnp.asarray(MASK),
            jnp.asarray(self.old, jnp.float32),
            jnp.asarray(self.reference, jnp.float32),
            jnp.zeros(B),
            jnp.zeros(B, jnp.int32),
        )


MASK = np.arange(N)[None] < np.array(LENGTHS)[:, None]
ADVANTAGES = [1.3, -0.4, -1.1, 5.0, 0.7, 0.2]
RATIOS: list[list[float]] = [
    [1.199, 1.201, 1.279, 1.281, 2.0],  # on both sides of each clip, where the advantage is positive
    [0.799, 1, 1, 1, 1],  # and negative
    [0.801, 0.5, 1.1, 1, 1],
    [1, 1, 1, 1, 1],
    [0.9, 0.81, 1.3, 0.7, 1],
    [1.0, 1.5, 1, 1, 1],
]
# GRPO clips 8 of 15 tokens, DAPO 6; GSPO, whose log ratios are divided by 700, the 9 tokens of rows 0 1 2.
NUM_CLIPPED = {"grpo": 8, "dr_grpo": 8, "rloo": 8, "dapo": 6, "gspo": 9, "reinforce_pp_baseline": 8}


def make_case(*, small: bool = False) -> Case:
    """`small`: ratios of whole responses near GSPO's clips."""
    draw = np.random.default_rng(0)
    old = -draw.exponential(1.0, (B, N)) - 0.05
    moved = np.log(RATIOS)
    new = old + (moved / 700 if small else moved)
    reference = new + draw.normal(0, 0.7, (B, N))
    reference[0, 1] = new[0, 1] + 4.0  # k3 = 49.6, above its bound
    advantages = np.array(ADVANTAGES)[:, None] * MASK
    return Case(new, old, reference, advantages, draw.uniform(0, 2, (B, N)))


# The references: float64 loops that share no code with the library.


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    bounded = min(max(ratio, 1 - low), 1 + high)
    return min(ratio * advantage, bounded * advantage)


def grpo_of_the_release(new: FloatArray, case: Case) -> float:
    total, count = 0.0, 0
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            ratio = math.exp(new[b, t] - case.old[b, t])
            d = case.reference[b, t] - new[b, t]
            k3 = min(max(math.exp(d) - d - 1, -10.0), 10.0)
            total += -clipped(ratio, case.advantages[b, t], 0.2, 0.2) + 0.01 * k3
            count += 1
    return total / count


def dr_grpo(new: FloatArray, case: Case) -> float:
    rows = [b for b in range(B) if LENGTHS[b]]
    total = 0.0
    for b in rows:
        for t in range(LENGTHS[b]):
            total -= clipped(math.exp(new[b, t] - case.old[b, t]), case.advantages[b, t], 0.2, 0.2)
    return total / (len(rows) * N)


def dapo(new: FloatArray, case: Case) -> float:
    terms = [
        -clipped(math.exp(new[b, t] - case.old[b, t]), case.advantages[b, t], 0.2, 0.28)
        for b in range(B)
        for t in range(LENGTHS[b])
    ]
    return sum(terms) / len(terms)


def gspo(new: FloatArray, case: Case) -> float:
    """Equation 5: one term per response."""
    terms = []
    for b, length in enumerate(LENGTHS):
        if length:
            whole = math.exp(sum(new[b, :length] - case.old[b, :length]))
            terms.append(-clipped(whole ** (1 / length), case.advantages[b, 0], 3e-4, 4e-4))
    return sum(terms) / len(terms)


def reinforce_pp_baseline(new: FloatArray, case: Case) -> float:
    terms = [
        -clipped(math.exp(new[b, t] - case.old[b, t]), case.advantages[b, t], 0.2, 0.2)
        + 0.01 * (case.reference[b, t] - new[b, t]) ** 2 / 2
        for b in range(B)
        for t in range(LENGTHS[b])
    ]
    return sum(terms) / len(terms)


def finite_differences(function: Callable[[FloatArray], float], at: FloatArray) -> FloatArray:
    step, out = 1e-6, np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        delta = np.zeros_like(at)
        delta[index] = step
        out[index] = (function(at + delta) - function(at - delta)) / (2 * step)
    return out


REFERENCES: dict[str, Callable[[FloatArray, Case], float]] = {
    "grpo": grpo_of_the_release,
    "dr_grpo": dr_grpo,
    "rloo": dr_grpo,  # they differ in their advantages
    "dapo": dapo,
    "gspo": gspo,
    "reinforce_pp_baseline": reinforce_pp_baseline,
}


def loss_of(algorithm: rl.Algorithm, case: Case, new: jax.Array | None = None) -> tuple[jax.Array, rl.Metrics]:
    new = jnp.asarray(case.new, jnp.float32) if new is None else new
    advantages, entropy = jnp.asarray(case.advantages, jnp.float32), jnp.asarray(case.entropy, jnp.float32)
    return rl.policy_loss(algorithm, new, entropy, case.batch, advantages)


def gradient_of(algorithm: rl.Algorithm, case: Case) -> jax.Array:
    return jax.grad(lambda new: loss_of(algorithm, case, new)[0])(jnp.asarray(case.new, jnp.float32))


@pytest.mark.parametrize("name", REFERENCES)
def test_loss_and_gradient(name: str) -> None:
    case = make_case(small=name == "gspo")
    algorithm = rl.make_algorithm(name)
    expected = REFERENCES[name](case.new, case)
    loss, metrics = loss_of(algorithm, case)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    slopes = finite_differences(lambda new: REFERENCES[name](new, case), case.new)
    np.testing.assert_allclose(gradient_of(algorithm, case), slopes, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["clip_fraction"], NUM_CLIPPED[name] / 15, rtol=1e-6)


def test_k3_is_bounded_in_value_and_gradient() -> None:
    assert gradient_of(rl.make_algorithm("grpo"), make_case())[0, 1] == 0  # ratio clipped, k3 bounded
    found = estimate_kl("k3", jnp.zeros(4), jnp.array([4.0, 1e4, -1e4, -jnp.inf]))
    np.testing.assert_array_equal(found, [MAX_KL] * 4)
    slope = jax.grad(lambda x: jnp.sum(estimate_kl("k3", x, jnp.array([4.0, 1e4, -1e4]))))(jnp.zeros(3))
    np.testing.assert_array_equal(slope, [0, 0, 0])


def test_entropy_bonus() -> None:
    case = make_case()
    without, _ = loss_of(rl.make_algorithm("dapo"), case)
    with_bonus, metrics = loss_of(rl.make_algorithm("dapo", entropy_coefficient=0.1), case)
    mean = case.entropy[MASK].mean()
    np.testing.assert_allclose(metrics["entropy"], mean, rtol=1e-6)
    np.testing.assert_allclose(without - with_bonus, 0.1 * mean, rtol=1e-5)


def test_metrics() -> None:
    case = make_case()
    _, metrics = loss_of(rl.make_algorithm("grpo"), case)
    log_ratio = (case.new - case.old)[MASK]
    d = (case.reference - case.new)[MASK]
    k3 = np.minimum(np.exp(d) - d - 1, 10)
    advantages, ratio = case.advantages[MASK], np.exp(log_ratio)
    is_clipped = ((ratio > 1.2) & (advantages > 0)) | ((ratio < 0.8) & (advantages < 0))
    expected = {
        "policy_loss": dapo_like(case),
        "entropy": case.entropy[MASK].mean(),
        "ratio": ratio.mean(),
        "clip_fraction": is_clipped.mean(),
        "kl_sampler_k1": -log_ratio.mean(),
        "kl_sampler_k3": (ratio - 1 - log_ratio).mean(),
        "kl_reference": k3.mean(),
        "kl_loss": k3.mean(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def dapo_like(case: Case) -> float:
    return float(
        np.mean(
            [
                -clipped(r, a, 0.2, 0.2)
                for r, a in zip(np.exp(case.new - case.old)[MASK], case.advantages[MASK], strict=True)
            ]
        )
    )


def test_masked_values_do_not_matter() -> None:
    case = make_case()
    for name in rl.algorithm_names():
        algorithm = rl.make_algorithm(name, entropy_coefficient=0.1)
        loss, _ = loss_of(algorithm, case)
        for garbage in (1e9, -np.inf, np.nan):
            hidden: dict[str, Any] = {
                field.name: np.where(MASK, getattr(case, field.name), garbage)
                for field in dataclasses.fields(Case)
                if field.name != "advantages"
            }
            changed = dataclasses.replace(case, **hidden)
            np.testing.assert_array_equal(loss_of(algorithm, changed)[0], loss)
            gradient = gradient_of(algorithm, changed)
            np.testing.assert_array_equal(gradient, gradient_of(algorithm, case))
            assert (np.asarray(gradient)[~MASK] == 0).all()


def test_no_tokens_no_loss() -> None:
    case = make_case()
    batch = dataclasses.replace(case.batch, response_mask=jnp.zeros((B, N), bool))
    for name in rl.algorithm_names():
        algorithm = rl.make_algorithm(name, entropy_coefficient=0.1)

        def loss(new: jax.Array, algorithm: rl.Algorithm = algorithm) -> tuple[jax.Array, rl.Metrics]:
            return rl.policy_loss(algorithm, new, new, batch, jnp.ones((B, N)))

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(case.new, jnp.float32))
        assert value == 0
        assert all(metric == 0 for metric in metrics.values())
        assert (np.asarray(gradient) == 0).all()


def test_extreme_ratios_stay_finite() -> None:
    case = make_case()
    for name in rl.algorithm_names():
        for far in (-1e4, 1e4):
            moved = dataclasses.replace(case, new=case.old + far)
            loss, metrics = loss_of(rl.make_algorithm(name), moved)
            assert np.isfinite(loss)
            assert all(np.isfinite(value) for value in metrics.values())
            assert np.isfinite(gradient_of(rl.make_algorithm(name), moved)).all()


@pytest.mark.parametrize("name", rl.algorithm_names())
def test_microbatches_add_up(name: str) -> None:
    case = make_case()
    algorithm = rl.make_algorithm(name, entropy_coefficient=0.1)
    advantages, entropy = jnp.asarray(case.advantages, jnp.float32), jnp.asarray(case.entropy, jnp.float32)
    weights = rl.token_weights(algorithm, case.batch.response_mask)

    def loss(new: jax.Array, rows: slice) -> tuple[jax.Array, rl.Metrics]:
        batch, part = jax.tree.map(lambda x: x[rows], (case.batch, weights))
        return rl.policy_loss(algorithm, new[rows], entropy[rows], batch, advantages[rows], part)

    grad = jax.value_and_grad(loss, has_aux=True)
    new = jnp.asarray(case.new, jnp.float32)
    whole = grad(new, slice(0, B))
    parts = [grad(new, slice(first, first + 2)) for first in range(0, B, 2)]
    total = jax.tree.map(lambda *x: sum(x), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, total)
    assert jnp.abs(whole[1]).max() > 0


# GSPO


def test_the_log_ratio_of_a_response() -> None:
    # Log ratios 0.1 0.3 of two tokens: mean 0.2. One token of -0.5: itself. No token: 0.
    log_ratio = jnp.array([[0.1, 0.3, 9.0], [-0.5, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = jnp.array([[True, True, False], [True, False, False], [False, False, False]])
    found = sequence_log_ratio(log_ratio, mask)
    np.testing.assert_allclose(np.asarray(found)[mask], [0.2, 0.2, -0.5], atol=1e-6)
    slopes = jax.jacobian(lambda x: sequence_log_ratio(x, mask)[0])(log_ratio)[:, 0]
    np.testing.assert_array_equal(slopes, np.eye(3))  # each token's own


# KL


def small_policies() -> tuple[jax.Array, jax.Array]:
    draw = np.random.default_rng(1)
    logits, reference = draw.normal(size=(2, 5))
    return jnp.asarray(logits, jnp.float32), jax.nn.log_softmax(jnp.asarray(reference, jnp.float32))


def exact_kl(logits: jax.Array, reference: jax.Array) -> jax.Array:
    logprobs = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logprobs) * (logprobs - reference))


def test_the_means_of_the_estimators() -> None:
    logits, reference = small_policies()
    logprobs = jax.nn.log_softmax(logits)
    probabilities = np.exp(logprobs)
    expected = float(exact_kl(logits, reference))
    assert expected > 0.1
    for estimator in ("k1", "k3"):
        found = np.sum(probabilities * estimate_kl(estimator, logprobs, reference))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    # For close policies k2 and the KL agree to second order, so their quotient approaches 1.
    quotients = []
    for share in (0.3, 0.1, 0.03):
        near = jax.nn.log_softmax(logprobs + share * (reference - logprobs))
        k2 = np.sum(probabilities * estimate_kl("k2", logprobs, near))
        quotients.append(abs(k2 / float(exact_kl(logits, near)) - 1))
    assert quotients[0] > quotients[1] > quotients[2]
    assert quotients[2] < 0.05


def test_the_gradients_of_the_estimators_as_losses() -> None:
    """On-policy mean gradients: k1's is 0, k2's is the KL's, k3's is that of KL(reference ‖ policy)."""
    logits, reference = small_policies()
    probabilities = jax.lax.stop_gradient(jax.nn.softmax(logits))

    def mean_gradient(estimator: Any) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(probabilities * estimate_kl(estimator, jax.nn.log_softmax(x), reference)))(
            logits
        )

    exact = jax.grad(exact_kl)(logits, reference)
    reverse = jax.grad(lambda x: jnp.sum(jnp.exp(reference) * (reference - jax.nn.log_softmax(x))))(logits)
    assert jnp.abs(exact).max() > 0.05
    np.testing.assert_allclose(mean_gradient("k1"), np.zeros(5), atol=1e-6)
    np.testing.assert_allclose(mean_gradient("k2"), exact, atol=1e-6)
    np.testing.assert_allclose(mean_gradient("k3"), reverse, atol=1e-6)
    assert jnp.abs(exact - reverse).max() > 0.01


def test_the_kl_in_the_reward_gives_the_kls_gradient() -> None:
    """REINFORCE with reward −k1, averaged over all one-token responses, has the gradient of the exact KL."""
    logits, reference = small_policies()
    algorithm = rl.Algorithm(
        baseline="none", normalize="none", aggregation="constant", kl="reward", kl_estimator="k1", kl_coefficient=1.0
    )
    logprobs = jax.nn.log_softmax(logits)[:, None]  # one row per response
    batch = rl.Batch(jnp.ones((5, 1), bool), logprobs, reference[:, None], jnp.zeros(5), jnp.zeros(5, jnp.int32))
    batch, advantages = rl.prepare(algorithm, batch, num_samples=1)
    probabilities = jax.nn.softmax(logits)[:, None]
    weights = rl.TokenWeights(probabilities, probabilities)

    def loss(x: jax.Array) -> jax.Array:
        new = jax.nn.log_softmax(x)[:, None]
        return rl.policy_loss(algorithm, new, jnp.zeros((5, 1)), batch, advantages, weights)[0]

    np.testing.assert_allclose(jax.grad(loss)(logits), jax.grad(exact_kl)(logits, reference), atol=1e-6)
