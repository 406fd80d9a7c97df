"""No two random draws of a run share a key: all keys of its first steps are collected and compared."""

import collections
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from g1jax import keys
from g1jax.evaluation import protocol
from g1jax.evaluation.players import random_player
from g1jax.rl.minibatching import Minibatching
from g1jax.sft.demonstrations import next_demonstrations
from g1jax.training.setup import load_params, make_setup
from g1jax.training.steps import init_state, rl_step, start_rl
from tests.training import tiny

DRAWS = (
    "bits",
    "uniform",
    "normal",
    "bernoulli",
    "randint",
    "permutation",
    "categorical",
    "gumbel",
    "truncated_normal",
)


@dataclasses.dataclass
class Collected:
    """Every use of a key: its bits, the function that used it, and where."""

    uses: list[tuple[bytes, tuple[str, str]]] = dataclasses.field(default_factory=list)

    def add(self, bits: np.ndarray, name: str, place: str) -> None:
        self.uses.append((np.asarray(bits).tobytes(), (name, place)))

    def check(self) -> None:
        """A key is drawn from or split once, or only folded, in a single place."""
        by_key = collections.defaultdict(list)
        for key, use in self.uses:
            by_key[key].append(use)
        for uses in by_key.values():
            is_folded = {name == "fold_in" for name, _ in uses} == {True}
            assert len(uses) == 1 or (is_folded and len(set(uses)) == 1), uses


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collected]:
    """Records the key of every call of `jax.random` in g1jax, whenever it runs."""
    found = Collected()

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(key: Any, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            place = f"{caller.f_code.co_filename}:{caller.f_code.co_name}"
            jax.debug.callback(lambda bits: found.add(bits, name, place), jax.random.key_data(key))
            return function(key, *args, **kwargs)

        return call

    for name in ("split", "fold_in", *DRAWS):
        monkeypatch.setattr(jax.random, name, recorded(name, getattr(jax.random, name)))
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)
    yield found
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.mark.slow
def test_the_first_steps_of_a_run_use_no_key_twice(collected: Collected) -> None:
    experiment = tiny.make_experiment(
        "nano", "unused", games=("shisen_sho",), levels={"shisen_sho": tiny.LEVELS["shisen_sho"]}, max_new_tokens=2,
        cold_start__steps=1, cold_start__states=2, rl__states=2, rl__num_samples=2,
        rl__minibatching=Minibatching(minibatches=2),
        rl__walk_steps={},
    )  # fmt: skip
    small = dataclasses.replace(tiny.CONFIG, text=dataclasses.replace(tiny.CONFIG.text, max_length=512))
    setup = make_setup(experiment)
    setup = dataclasses.replace(setup, policy=dataclasses.replace(setup.policy, config=small))
    collected.uses.clear()  # of the demonstrations that set the length of responses
    with jax.set_mesh(setup.mesh):
        state, constants = init_state(setup, load_params(setup))
        key = keys.of_step(state.key, state.step, keys.OfStep.TEACH)
        next_demonstrations(setup.cold_envs, 0.5, state.cold_envs, key)
        state = dataclasses.replace(state, step=state.step + 1)
        state = start_rl(setup, state)
        jax.block_until_ready(rl_step(setup.rl, state, constants)[0])
    jax.effects_barrier()
    names = {use[0] for _, use in collected.uses}
    assert {"split", "fold_in", "bits", "uniform", "normal", "randint", "bernoulli", "permutation"} <= names
    collected.check()

    run = {key for key, _ in collected.uses}
    collected.uses.clear()
    protocol.play(setup.games[0], random_player(), 3, 2, experiment.seed)
    jax.effects_barrier()
    collected.check()
    evaluation = {key for key, _ in collected.uses}
    assert len(evaluation) > 2 * 3
    assert run & evaluation <= {np.asarray(jax.random.key_data(jax.random.key(experiment.seed))).tobytes()}


def test_every_name_has_its_own_key() -> None:
    """Over three steps, with the keys of games."""
    seen = [keys.of_run(7, use) for use in keys.OfRun]
    for use in (keys.OfRun.COLD_ENVS, keys.OfRun.PLAY_ENVS, keys.OfRun.HEADS):
        seen += [keys.of_game(keys.of_run(7, use), i) for i in range(4)]
    for step in range(3):
        for name in keys.OfStep:
            key = keys.of_step(keys.of_run(7, keys.OfRun.STEPS), step, name)
            seen += [key, *(keys.of_game(key, i) for i in range(4))]
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for key in seen}) == len(seen) == 6 + 12 + 3 * 6 * 5
