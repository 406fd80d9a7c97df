"""An iteration of RL whose responses have uneven lengths, with and without the settings made for them.

    python benchmarks/uneven.py                     # one game, 16 states × 8 responses of up to 128 tokens
    python benchmarks/uneven.py --games game_2048 shisen_sho swap --settings 0,1 32,3 32,3,joint

The model is `base` at a high temperature, which writes random tokens, and so many of them stop a response that half of
the responses end within `--half-life` tokens, and half of the others within as many more. The settings run in rotation,
times are medians over the rotations, ratios are to the first row, lengths are those of the first iteration.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from phases import Donated, copy
from vlm import take_turns

from envs import Row, print_machine, print_table
from g1jax.programs.machine import use_cores
from g1jax.training import load_experiment, steps
from g1jax.training.config import RL, Evaluation, Experiment
from g1jax.training.setup import load_params, make_setup
from g1jax.vlm import Sampling, Tokenizer

HEADER = ("compact_every", "length_buckets", "decoding", "ms an iteration", "× as fast", "mean length", "longest")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=["swap"], help="ids (default: swap)")
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="the longest response in tokens")
    parser.add_argument("--half-life", type=int, default=32, help="tokens within which half of the responses end")
    parser.add_argument(
        "--settings", nargs="+", default=["0,1", "0,3", "32,1", "32,3"], help="compact_every,buckets[,joint]"
    )
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    use_cores(args.states)
    experiment = make_experiment(args)
    shorten_responses(args.half_life)
    programs: dict[str, Callable[[], Any]] = {}
    lengths: dict[str, np.ndarray] = {}
    for setting in args.settings:
        programs[setting], lengths[setting] = iteration(with_settings(experiment, *values_of(setting)))
    times = take_turns(programs, args.turns)
    first = times[args.settings[0]]
    rows: list[Row] = []
    for setting in args.settings:
        ratio, mean, longest = first / times[setting], lengths[setting].mean(), lengths[setting].max()
        rows.append(
            (*map(str, values_of(setting)), f"{times[setting] * 1e3:.0f}", f"{ratio:.2f}", f"{mean:.0f}", f"{longest}")
        )
    print_machine()
    print_table(f"RL with uneven lengths: {args.states} states × {args.samples} responses a game", HEADER, rows)


def make_experiment(args: argparse.Namespace) -> Experiment:
    """RL alone, from random walks."""
    small = load_experiment("g0_multigame")
    rl: RL = dataclasses.replace(
        small.rl,
        iterations=1,
        states=args.states,
        num_samples=args.samples,
        source="legal_walk",
        minibatching=dataclasses.replace(small.rl.minibatching, microbatches=args.microbatches),
    )
    return dataclasses.replace(
        small,
        games=tuple(args.games),
        rl=rl,
        max_new_tokens=args.length,
        sampling=Sampling(temperature=100.0),
        evaluation=Evaluation(episodes=0),
    )


def values_of(setting: str) -> tuple[int, int, str]:
    """`32,3` -> 32, 3 and `by_game`."""
    compact_every, buckets, *decoding = setting.split(",")
    return int(compact_every), int(buckets), decoding[0] if decoding else "by_game"


def with_settings(experiment: Experiment, compact_every: int, buckets: int, decoding: str) -> Experiment:
    minibatching = dataclasses.replace(experiment.rl.minibatching, length_buckets=buckets)
    changes: dict[str, Any] = {"minibatching": minibatching, "compact_every": compact_every, "decoding": decoding}
    return dataclasses.replace(experiment, rl=dataclasses.replace(experiment.rl, **changes))


def shorten_responses(half_life: int) -> None:
    """Makes any token stop a response with the probability that gives this half-life, at a high temperature."""
    share = 1 - 0.5 ** (1 / half_life)

    def stop_tokens(self: Tokenizer) -> tuple[int, ...]:
        count = max(1, round(share * self.vocab_size))
        return tuple(int(token) for token in np.random.default_rng(0).choice(self.vocab_size, count, replace=False))

    Tokenizer.stop_tokens = property(stop_tokens)  # type: ignore[assignment]


def iteration(experiment: Experiment) -> tuple[Callable[[], Any], np.ndarray]:
    """An iteration of RL, and the lengths of the responses of the first one."""
    setup = make_setup(experiment)
    with jax.set_mesh(setup.mesh):
        state, constants = steps.init_state(setup, load_params(setup))
        _, _, rollouts = steps.rl_step(setup.rl, copy(state), constants)
        lengths = np.concatenate([np.asarray(rollout.responses.mask).sum(axis=1) for rollout in rollouts])
    runner = Donated(state)

    def run() -> Any:
        with jax.set_mesh(setup.mesh):
            runner.value, *rest = steps.rl_step(setup.rl, runner.value, constants)
            return jax.block_until_ready((runner.value, rest))

    return run, lengths


if __name__ == "__main__":
    main()
