"""Tiny problems with known optimal returns that every algorithm must solve; all have one shape, so that they train in
one compiled program.

A response has up to two of ten tokens; the policy is linear in a context's features and has a bigram table.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from g1jax import rl
from g1jax.rl.returns import discounted_returns, episode_returns, flatten_steps, is_running
from g1jax.typing import Array, Key, Pytree

V, N, C, FEATURES = 10, 2, 10, 16
NUM_SAMPLES = 16
FIRST = V  # the token before the first


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Problem:
    features: Array  # float32[C, FEATURES], the policy's input in each context
    rewards: Array  # float32[C, V, V], of each response; the second token is 0 where the first one stops
    is_stop: Array  # bool[V], the tokens that end a response


def bandit() -> Problem:
    """Ten arms, no context. The best pays 1, the second best 0.7."""
    pay = np.array([0.1, 0.3, 0.7, 0.0, 0.5, 1.0, 0.2, 0.6, 0.4, 0.5])
    return make_problem(np.ones((C, 1)), np.broadcast_to(pay[None, :, None], (C, V, V)), stop=range(V))


def copy_the_digit() -> Problem:
    """The context is a digit, 1 for naming it and −1 for any other."""
    return make_problem(np.eye(C), np.broadcast_to(2 * np.eye(C)[:, :, None] - 1, (C, V, V)), stop=range(V))


def combination() -> Problem:
    """Only 3 followed by 7 pays; neither does alone."""
    pay = np.zeros((C, V, V))
    pay[:, 3, 7] = 1
    return make_problem(np.ones((C, 1)), pay, stop=[])


def stopping() -> Problem:
    """0 ends a response. Naming the digit and stopping pays 1, naming it and continuing 0.3; for 0, stopping pays 1."""
    pay = np.zeros((C, V, V))
    for digit in range(1, C):
        pay[digit, digit] = 0.3
        pay[digit, digit, 0] = 1
    pay[0, 0] = 1  # digit 0: stop at once
    return make_problem(np.eye(C), pay, stop=[0])


def make_problem(features: np.ndarray, rewards: np.ndarray, stop: "range | list[int]") -> Problem:
    is_stop = np.zeros(V, bool)
    is_stop[list(stop)] = True
    padded = np.pad(features, ((0, 0), (0, FEATURES - features.shape[1])))
    return Problem(jnp.asarray(padded, jnp.float32), jnp.asarray(rewards, jnp.float32), jnp.asarray(is_stop))


PROBLEMS = {"bandit": bandit, "copy": copy_the_digit, "combination": combination, "stopping": stopping}
OPTIMUM = 1.0  # of every problem

# The policy


def init() -> Pytree:
    return {"read": jnp.zeros((N, FEATURES, V)), "after": jnp.zeros((N, V + 1, V))}


def log_distribution(params: Pytree, features: Array, position: int, before: Array) -> Array:
    """float32[B, FEATURES], int32[B] -> float32[B, V]."""
    return jax.nn.log_softmax(features @ params["read"][position] + params["after"][position][before])


def score(params: Pytree, features: Array, tokens: Array) -> tuple[Array, Array]:
    """Logprobs and entropies of int32[B, N]: float32[B, N] each."""
    before = jnp.concatenate([jnp.full_like(tokens[:, :1], FIRST), tokens[:, :-1]], axis=1)
    out = jnp.stack([log_distribution(params, features, t, before[:, t]) for t in range(tokens.shape[1])], axis=1)
    return jnp.take_along_axis(out, tokens[..., None], axis=-1)[..., 0], -jnp.sum(jnp.exp(out) * out, axis=-1)


def respond(params: Pytree, problem: Problem, features: Array, key: Key) -> tuple[Array, Array]:
    """Tokens int32[B, N], 0 after a stop, and their mask."""
    keys = jax.random.split(key)
    first = jax.random.categorical(keys[0], log_distribution(params, features, 0, jnp.full(len(features), FIRST)))
    second = jax.random.categorical(keys[1], log_distribution(params, features, 1, first))
    continues = ~problem.is_stop[first]
    tokens = jnp.stack([first, jnp.where(continues, second, 0)], axis=1).astype(jnp.int32)
    return tokens, jnp.stack([jnp.ones_like(continues), continues], axis=1)


def expected_return(params: Pytree, problem: Problem) -> Array:
    """The exact expectation over all responses: float32[C]."""
    none = jnp.full(C, FIRST)
    first = jnp.exp(log_distribution(params, problem.features, 0, none))  # [C, V]
    second = jnp.stack(
        [jnp.exp(log_distribution(params, problem.features, 1, jnp.full(C, token))) for token in range(V)], axis=1
    )  # [C, V, V]
    second = jnp.where(problem.is_stop[None, :, None], jnp.eye(V)[None, :1], second)
    return jnp.sum(first[:, :, None] * second * problem.rewards, axis=(1, 2))


# Training


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
@functools.partial(jax.vmap, in_axes=(None, 0, None, None, None))
def learn(algorithm: rl.Algorithm, problem: Problem, game_id: Array, num_steps: int, num_epochs: int) -> Array:
    """The expected return of each context after training: float32[C]."""
    optimizer = optax.adam(0.05)
    contexts = jnp.repeat(jnp.arange(C, dtype=jnp.int32), NUM_SAMPLES)
    features = problem.features[contexts]

    def step(carry: tuple[Pytree, Pytree], key: Key) -> tuple[tuple[Pytree, Pytree], None]:
        params, _ = carry
        tokens, mask = respond(params, problem, features, key)
        batch = rl.Batch(
            mask,
            score(params, features, tokens)[0],
            jnp.full(mask.shape, -np.log(V), jnp.float32),  # the reference: the initial, uniform policy
            problem.rewards[contexts, tokens[:, 0], tokens[:, 1]],
            game_id[contexts],
        )
        batch, advantages = rl.prepare(algorithm, batch, num_samples=NUM_SAMPLES, num_games=2)

        def loss(params: Pytree) -> Array:
            return rl.policy_loss(algorithm, *score(params, features, tokens), batch, advantages)[0]

        def epoch(_: int, carry: tuple[Pytree, Pytree]) -> tuple[Pytree, Pytree]:
            params, moments = carry
            with jax.numpy_dtype_promotion("standard"):  # optax: float ** int
                updates, moments = optimizer.update(jax.grad(loss)(params), moments)
            return optax.apply_updates(params, updates), moments

        return jax.lax.fori_loop(0, num_epochs, epoch, carry), None

    start = (init(), optimizer.init(init()))
    (params, _), _ = jax.lax.scan(step, start, jax.random.split(jax.random.key(0), num_steps))
    return expected_return(params, problem)


ALL_PROBLEMS = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[make() for make in PROBLEMS.values()])


ONE_GAME = jnp.zeros(C, jnp.int32)
NUM_STEPS, NUM_EPOCHS = 200, 2


@pytest.mark.parametrize("name", rl.algorithm_names())
def test_every_algorithm_solves_every_problem(name: str) -> None:
    # max_length: DAPO punishes responses close to it, and two tokens are needed.
    algorithm = rl.make_algorithm(name, max_length=2 * N)
    found = np.asarray(learn(algorithm, ALL_PROBLEMS, ONE_GAME, NUM_STEPS, NUM_EPOCHS)).mean(axis=1)
    for problem, value in zip(PROBLEMS, found, strict=True):
        assert 0.97 * OPTIMUM < value <= OPTIMUM + 1e-5, (problem, value)


def test_the_initial_policy_does_not_solve_the_problems() -> None:
    found = jax.vmap(lambda problem: expected_return(init(), problem))(ALL_PROBLEMS).mean(axis=1)
    np.testing.assert_allclose(found, [0.43, -0.8, 0.01, (0.1 + 9 * (0.1 * 0.3 + 0.01 * 0.7)) / 10], atol=1e-6)


def test_a_game_with_large_rewards_does_not_dominate_the_others() -> None:
    """One of two games has ever larger rewards; with statistics per game, both are learned."""
    scale = np.where(np.arange(C) < 5, 1, 0) + np.where(np.arange(C) >= 5, 1, 0) * np.array([[1], [10], [100], [1000]])
    problems = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), copy_the_digit())
    rewards = problems.rewards * jnp.asarray(scale, jnp.float32)[:, :, None, None]
    problems = Problem(problems.features, rewards, problems.is_stop)
    game_id = jnp.asarray(np.arange(C) >= 5, jnp.int32)

    def shares(algorithm: rl.Algorithm) -> np.ndarray:
        """Fractions of the optimum in each game: [problems, 2]."""
        found = np.asarray(learn(algorithm, problems, game_id, NUM_STEPS, NUM_EPOCHS)) / scale
        return found.reshape(4, 2, 5).mean(axis=2)

    by_game = rl.make_algorithm("reinforce_pp", normalize="game", max_length=2 * N)
    over_batch = rl.make_algorithm("reinforce_pp", max_length=2 * N)
    assert (shares(by_game) > 0.95).all()
    assert shares(over_batch)[3, 0] < 0.5
    assert shares(over_batch)[3, 1] > 0.95


# Episodes of two steps

NUM_ACTIONS = 4


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0, 0))
def learn_episodes(algorithm: rl.Algorithm, is_whole: Array, discount: Array) -> Array:
    """The expected undiscounted return after training.

    In the first state, action 0 pays 0.2 and ends the episode, action 1 leads to the second state, the others end it;
    in the second state, action 2 pays 1. The optimum is 1, or 0.2 for a greedy policy.
    """
    num_envs = 16 * NUM_SAMPLES
    optimizer = optax.adam(0.1)

    def logprobs_of(logits: Array, states: Array, actions: Array) -> Array:
        return jnp.take_along_axis(jax.nn.log_softmax(logits)[states], actions[..., None], axis=-1)

    def step(carry: tuple[Array, Pytree], key: Key) -> tuple[tuple[Array, Pytree], None]:
        logits, moments = carry
        states = jnp.broadcast_to(jnp.arange(2, dtype=jnp.int32)[:, None], (2, num_envs))  # [T, B]
        actions = jax.random.categorical(key, logits[states]).astype(jnp.int32)
        rewards = jnp.stack([jnp.where(actions[0] == 0, 0.2, 0.0), jnp.where(actions[1] == 2, 1.0, 0.0)])
        dones = jnp.stack([actions[0] != 1, jnp.ones(num_envs, bool)])
        both = episode_returns(rewards, dones, discount), discounted_returns(rewards, dones, discount)
        returns = jnp.where(is_whole, *both)
        logprobs = logprobs_of(logits, states, actions)  # responses of one token
        mask = is_running(dones)[..., None]
        rollout = rl.Batch(mask, logprobs, logprobs, returns, jnp.zeros_like(states))
        batch, advantages = rl.prepare(algorithm, flatten_steps(rollout), num_samples=NUM_SAMPLES)

        def loss(logits: Array) -> Array:
            new = logprobs_of(logits, states, actions).reshape(-1, 1)
            return rl.policy_loss(algorithm, new, jnp.zeros_like(new), batch, advantages)[0]

        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimizer.update(jax.grad(loss)(logits), moments)
        return (optax.apply_updates(logits, updates), moments), None

    start = jnp.zeros((2, NUM_ACTIONS))
    (logits, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(jax.random.key(0), 150))
    first, second = jax.nn.softmax(logits)
    return 0.2 * first[0] + first[1] * second[2]


@pytest.mark.parametrize("name", ["grpo", "reinforce_pp"])
def test_delayed_rewards_are_learned(name: str) -> None:
    is_whole, discounts = jnp.array([False, True, False]), jnp.array([0.9, 0.9, 0.0])
    to_go, whole, greedy = learn_episodes(rl.make_algorithm(name), is_whole, discounts)
    assert min(to_go, whole) > 0.97
    assert abs(greedy - 0.2) < 0.02
