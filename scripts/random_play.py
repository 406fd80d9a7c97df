"""Plays the random player and the experts for 100 steps; prints the table of docs/random_play.md.

    python scripts/random_play.py --games 2000

The paper's protocol: 100 steps; 2048 counts its raw score, the others count steps with a reward above 0. Random play
samples uniformly from all actions, legal or not. With `same_step` a finished board is reset, with `none` it stops.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax import envs

PUBLISHED = {"game_2048": "701; 693", "shisen_sho": "0.4; 1.25", "shisen_sho_cifar10": "0.4; –", "swap": "1; 0.23"}


def main() -> None:
    """Plays and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=2000, help="episodes per game (default: 2000)")
    parser.add_argument(
        "--expert-games", type=int, default=200, help="episodes per game of the slower experts (default: 200)"
    )
    parser.add_argument("--steps", type=int, default=100, help="steps per episode (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| game | counts | random, goes on | random, stops | expert, goes on | published; measured on the release |")
    print("| --- | --- | --- | --- | --- | --- |")
    for game_id in envs.game_ids():
        keys = {"images": "digits"} if game_id == "shisen_sho_cifar10" else {}
        cells = [
            interval(play(envs.make(game_id, **keys), player, games, args.steps, autoreset, args.seed))
            for player, games, autoreset in (
                ("random", args.games, "same_step"),
                ("random", args.games, "none"),
                ("expert", args.expert_games, "same_step"),
            )
        ]
        counts = "score" if game_id == "game_2048" else "steps with reward > 0"
        print(f"| {game_id} | {counts} | {' | '.join(cells)} | {PUBLISHED[game_id]} |", flush=True)


def play(game: Any, player: str, num_games: int, num_steps: int, autoreset: Any, seed: int) -> np.ndarray:
    """Each episode's score: float[num_games]."""
    vec = envs.make_vec(game, num_games, autoreset=autoreset)

    @jax.jit
    def run(key: Any) -> Any:
        def advance(state: Any, key: Any) -> Any:
            action_key, step_key = jax.random.split(key)
            random = functools.partial(vec.sample_actions, legal=False)
            actions = (random if player == "random" else vec.expert)(state, action_key)
            state, result = vec.step(state, actions, step_key)
            score = result.reward if game.id == "game_2048" else (result.reward > 0).astype(jnp.float32)
            return state, score

        reset_key, play_key = jax.random.split(key)
        return jnp.sum(jax.lax.scan(advance, vec.reset(reset_key), jax.random.split(play_key, num_steps))[1], axis=0)

    return np.asarray(run(jax.random.key(seed)))


def interval(scores: np.ndarray, resamples: int = 10_000) -> str:
    """The mean and its 95% bootstrap interval."""
    rng = np.random.default_rng(0)
    means = [scores[rng.integers(0, len(scores), len(scores))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    digits = 0 if scores.mean() >= 100 else 2
    return f"{scores.mean():.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


if __name__ == "__main__":
    main()
