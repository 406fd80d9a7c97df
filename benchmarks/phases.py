"""The phases of a training step, each as a program of its own; see train.py."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from vlm import take_turns

from envs import Row, count, print_table
from g1jax.rl.rewards import reward
from g1jax.rl.update import update
from g1jax.sft import demonstrations
from g1jax.sft.batch import to_batch
from g1jax.training import loop, steps
from g1jax.training.config import Experiment
from g1jax.training.setup import RLStep, Setup, load_params, make_setup
from g1jax.training.state_source import walk
from g1jax.training.steps import Constants, RunState
from g1jax.vlm import to_bytes

ENVIRONMENTS = ("states, frames", "bytes, parsing, branches, rewards")

# An iteration of RL by phase

PHASE_HEADER = ("phase", "ms", "of the step")
Programs = Mapping[str, Callable[[], Any]]


def print_phases(experiment: Experiment, turns: int) -> None:
    setup = make_setup(experiment)
    with jax.set_mesh(setup.mesh):
        state, constants = steps.init_state(setup, load_params(setup))
        rl, rl_state = experiment.rl, steps.start_rl(setup, copy(state))
        programs, num_tokens = rl_programs(setup, rl_state, constants)
        times = take_turns(programs, turns)
        times["generation: decode"] -= times["generation: prefill"]
        rows = rl.states * len(setup.games)
        title = f"An iteration of RL: {rows} states of {len(setup.games)} games × {rl.num_samples} responses"
        print_table(title, PHASE_HEADER, phase_rows(times))
        whole = times.pop("the step")
        print(
            f"{1 / whole:.3g} steps/s, {rows * rl.num_samples / whole:.3g} responses/s, {num_tokens} tokens generated: "
            f"{count(num_tokens / whole)} a second, while decoding {count(num_tokens / times['generation: decode'])}\n"
            f"environments, frames, parsing and rewards: {sum(times[name] for name in ENVIRONMENTS) / whole:.1%}\n"
        )
        times = take_turns(cold_programs(setup, state, constants), turns)
        rows = experiment.cold_start.states * len(setup.games)
        print_table(f"A step of the cold start: {rows} states", PHASE_HEADER, phase_rows(times))
        print(f"{1 / times['the step']:.3g} steps/s\n")


def phase_rows(times: Mapping[str, float]) -> list[Row]:
    """Each phase, their sum, and the whole step."""
    whole, parts = times["the step"], {name: time for name, time in times.items() if name != "the step"}
    listed = {**parts, "the phases together": sum(parts.values()), "the step": whole}
    return [(name, f"{time * 1e3:.1f}", f"{time / whole:.1%}") for name, time in listed.items()]


def copy(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(jnp.copy(leaf), leaf.sharding), tree)


class Donated:
    """State that a program donates and returns at each call."""

    def __init__(self, value: Any) -> None:
        self.value = copy(value)


def rl_programs(setup: Setup, state: RunState, constants: Constants) -> tuple[Programs, int]:
    """The phases of an iteration and the whole step, ready to be called; and the number of generated tokens."""
    keys = jax.random.split(jax.random.key(0), 4)
    _, _, rollouts = steps.rl_step(setup.rl, copy(state), constants)
    envs, frames = make_states(setup.rl, state.play_envs, keys[0])
    params = jax.jit(steps.full_params, static_argnums=2)(state.trained, constants.frozen, setup.lora)
    inputs = (params, constants.table, frames, keys[1])
    short = dataclasses.replace(setup.policy, budget=1)
    responses = tuple((rollout.responses.tokens, rollout.responses.mask) for rollout in rollouts)
    learner, runner = Donated((state.trained, state.opt_state)), Donated(state)

    def learn() -> Any:
        learner.value = learn_from(setup.rl, *learner.value, state.reference, constants, rollouts, keys[2])
        return jax.block_until_ready(learner.value)

    def step() -> Any:
        runner.value, *rest = steps.rl_step(setup.rl, runner.value, constants)
        return jax.block_until_ready((runner.value, rest))

    programs = {
        "states, frames": lambda: jax.block_until_ready(make_states(setup.rl, state.play_envs, keys[0])),
        "generation: prefill": lambda: jax.block_until_ready(respond(setup.rl, short, *inputs)),
        "generation: decode": lambda: jax.block_until_ready(respond(setup.rl, setup.policy, *inputs)),
        "bytes, parsing, branches, rewards": lambda: jax.block_until_ready(
            score_responses(setup.rl, constants.table, envs, responses, keys[3])
        ),
        "update": learn,
        "the step": step,
    }
    return programs, sum(int(jnp.sum(mask)) for _, mask in responses)


@functools.partial(jax.jit, static_argnums=0)
def make_states(rl: RLStep, envs: Any, key: Any) -> Any:
    """States and their frames."""
    if rl.source.name != "play":
        envs = [walk(rl.source, i, jax.random.fold_in(key, i)) for i in range(len(rl.learner.games))]
    pairs = zip(rl.learner.games, envs, strict=True)
    return envs, [jax.vmap(game.render)(state.states) for game, state in pairs]


@functools.partial(jax.jit, static_argnums=(0, 1))
def respond(rl: RLStep, policy: Any, params: Any, table: Any, frames: Any, key: Any) -> Any:
    """Generates tokens; their bytes are unused, so that part is not compiled."""
    responses = [
        policy.respond(params, table, game, images, jax.random.fold_in(key, i), num_samples=rl.num_samples)
        for i, (game, images) in enumerate(zip(rl.learner.games, frames, strict=True))
    ]
    return [(part.tokens, part.mask, part.logprobs) for part in responses]


@functools.partial(jax.jit, static_argnums=0)
def score_responses(rl: RLStep, table: Any, envs: Any, responses: Any, key: Any) -> Any:
    """Tokens to bytes, actions, branched states, rewards, and a step of the environments."""
    out = []
    n, learner = rl.num_samples, rl.learner
    for game, vec, weights, state, (tokens, mask) in zip(
        learner.games, rl.source.envs, rl.weights, envs, responses, strict=True
    ):
        text = to_bytes(table, tokens, mask, learner.policy.max_bytes(game))
        actions = jax.vmap(game.parse)(text).reshape(-1, n)
        _, results = jax.vmap(game.branch)(state.states, actions, jax.random.split(key, len(actions)))
        rewarded = jax.vmap(jax.vmap(functools.partial(reward, game, weights=weights), (0, None, 0)))
        rewards = rewarded(text.reshape(*actions.shape, -1), state.states, results)
        out.append((rewards, vec.step(state, actions[:, 0], key)[0]))
    return out


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def learn_from(
    rl: RLStep, trained: Any, opt_state: Any, reference: Any, constants: Constants, rollouts: Any, key: Any
) -> Any:
    """The update, with the shardings of its inputs."""
    learner = rl.learner
    trained, opt_state, _ = update(
        learner.policy, rl.algorithm, learner.optimizer, learner.games, trained, opt_state, rollouts, key,
        num_samples=rl.num_samples, minibatching=rl.minibatching, reference=reference,
        full_params=functools.partial(steps.full_params, frozen=constants.frozen, spec=learner.lora),
    )  # fmt: skip
    shardings = learner.placement.param_shardings((trained, opt_state))
    return jax.lax.with_sharding_constraint((trained, opt_state), shardings)


# A step of the cold start by phase


def cold_programs(setup: Setup, state: RunState, constants: Constants) -> Programs:
    cold, key = setup.experiment.cold_start, jax.random.key(0)
    learner, runner = Donated(state), Donated(state)
    arguments = (setup.cold_envs, cold.random_moves, copy(state.cold_envs), key)
    _, made = demonstrations.next_demonstrations(*arguments)

    def tokens() -> Any:
        pairs = zip(setup.games, made, strict=True)
        return tuple(to_batch(setup.policy, game, own, setup.placement.shard_rows) for game, own in pairs)

    learned = tokens()

    def learn() -> Any:
        learner.value, metrics = steps.cold_step(setup.cold, learner.value, constants, learned)
        return jax.block_until_ready((learner.value, metrics))

    def step() -> Any:
        runner.value, metrics, _ = loop._cold_step(setup, runner.value, constants, None, lambda _: None)
        return jax.block_until_ready((runner.value, metrics))

    return {
        "states, frames, the teacher": lambda: jax.block_until_ready(demonstrations.next_demonstrations(*arguments)),
        "tokenizing, on the host": lambda: jax.block_until_ready(tokens()),
        "update": learn,
        "the step": step,
    }
