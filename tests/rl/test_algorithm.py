"""The named algorithms, and invalid ones."""

import dataclasses
import pickle
import re

import jax
import jax.numpy as jnp
import pytest

from g1jax import rl


def batch_of(rows: int, length: int = 3, *, has_reference: bool = True) -> rl.Batch:
    zeros = jnp.zeros((rows, length))
    return rl.Batch(
        response_mask=jnp.ones((rows, length), bool),
        logprobs=zeros,
        reference_logprobs=zeros if has_reference else None,
        rewards=jnp.arange(rows, dtype=jnp.float32),
        game_id=jnp.zeros(rows, jnp.int32),
    )


def test_grpo_is_the_releases() -> None:
    algorithm = rl.make_algorithm("grpo")
    assert algorithm == rl.Algorithm(
        name="grpo",
        baseline="group",
        normalize="group",
        ratio="token",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="token_mean",
        kl="loss",
        kl_estimator="k3",
        kl_coefficient=0.01,
        entropy_coefficient=0.0,
    )


def test_the_papers_hyperparameters() -> None:
    dapo, gspo = rl.make_algorithm("dapo"), rl.make_algorithm("gspo")
    assert (dapo.clip_low, dapo.clip_high, dapo.kl, dapo.dynamic_sampling) == (0.2, 0.28, "none", True)
    assert (gspo.clip_low, gspo.clip_high, gspo.ratio) == (3e-4, 4e-4, "sequence")
    assert rl.make_algorithm("dr_grpo").aggregation == "constant"
    assert rl.make_algorithm("rloo").baseline == "leave_one_out"


@pytest.mark.parametrize("name", rl.algorithm_names())
def test_every_algorithm_is_a_value(name: str) -> None:
    algorithm = rl.make_algorithm(name)
    assert algorithm.name == name
    assert algorithm == pickle.loads(pickle.dumps(algorithm))
    assert hash(algorithm) == hash(rl.make_algorithm(name))
    assert rl.make_algorithm(name, clip_low=0.1) == dataclasses.replace(algorithm, clip_low=0.1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("grop", {}, "unknown algorithm 'grop'; did you mean 'grpo'"),
        ("ppo", {}, "Available: grpo, dr_grpo, rloo, dapo, gspo"),
        ("grpo", {"clip_hihg": 0.3}, "unknown key of an algorithm 'clip_hihg'; did you mean 'clip_high'"),
        ("grpo", {"kl": "los"}, "kl='los': expected one of none, loss, reward, token_reward; did you mean 'loss'?"),
        ("grpo", {"baseline": "critic"}, "expected one of none, group, leave_one_out"),
        ("grpo", {"clip_low": 1.5}, "clip_low=1.5"),
        ("grpo", {"clip_high": -0.1}, "clip_high=-0.1"),
        ("grpo", {"clip_high": "0.2"}, "clip_high='0.2': expected a number from 0"),
        ("grpo", {"clip_high": True}, "clip_high=True: expected a number from 0"),
        ("grpo", {"kl_coefficient": float("nan")}, "kl_coefficient=nan: expected a number from 0"),
        ("grpo", {"kl_coefficient": -1.0}, "kl_coefficient=-1.0"),
        ("grpo", {"dynamic_sampling": 1}, "dynamic_sampling=1: expected True or False"),
        ("grpo", {"max_length": 0.5}, "max_length=0.5: expected a whole number from 0"),
        ("grpo", {"max_length": -1}, "max_length=-1"),
        ("dapo", {"overlong_buffer": 0.0}, "overlong_buffer=0.0"),
        ("dapo", {"overlong_weight": -1.0}, "overlong_weight=-1.0"),
    ],
)
def test_invalid_algorithms(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(rl.AlgorithmError, match=re.escape(message)):
        rl.make_algorithm(name, **changes)


def test_one_response_a_state_is_refused_where_responses_are_compared() -> None:
    for name in rl.algorithm_names():
        algorithm = rl.make_algorithm(name)
        if name == "reinforce_pp":
            rl.prepare(algorithm, batch_of(4), num_samples=1)
        else:
            with pytest.raises(rl.AlgorithmError, match="num_samples=1"):
                rl.prepare(algorithm, batch_of(4), num_samples=1)


def test_batches_that_do_not_fit() -> None:
    grpo = rl.make_algorithm("grpo")
    with pytest.raises(rl.AlgorithmError, match="5 rows do not divide into groups of num_samples=2"):
        rl.prepare(grpo, batch_of(5), num_samples=2)
    with pytest.raises(rl.AlgorithmError, match="num_samples=0"):
        rl.prepare(grpo, batch_of(4), num_samples=0)
    with pytest.raises(rl.AlgorithmError, match="needs reference_logprobs"):
        rl.prepare(grpo, batch_of(4, has_reference=False), num_samples=2)
    batch = batch_of(4, has_reference=False)
    with pytest.raises(rl.AlgorithmError, match="needs reference_logprobs"):
        rl.policy_loss(grpo, batch.logprobs, batch.logprobs, batch, batch.logprobs)
    without = rl.make_algorithm("grpo", kl_coefficient=0.0)
    assert rl.prepare(without, batch, num_samples=2)[0] == batch


def test_a_batch_is_a_pytree() -> None:
    batch = batch_of(4, has_reference=False)
    assert jax.tree.map(lambda x: x, batch).reference_logprobs is None
    assert len(jax.tree.leaves(batch)) == 4
