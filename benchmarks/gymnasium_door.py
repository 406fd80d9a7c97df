"""Speed of the Gymnasium vector environments relative to a native loop that does the same work.

    python benchmarks/gymnasium_door.py            # pip install -e ".[gym]"
    python benchmarks/gymnasium_door.py --games=swap --batch=256

All step every environment with actions from the host and bring frames, rewards and ends of episodes to the host. The
native loop is one jitted program of `envs.make_vec` and `np.asarray`; the others have Gymnasium's interface around it.
They take turns within one run, and each ratio is to the native loop.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np

import g1jax.adapters.gymnasium  # noqa: F401  (registers the games)
from envs import count, print_machine, print_table, use_huge_pages
from g1jax import envs

HEADER = ("game", "interface", "step+frame/s", "ms/step", "of native")
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no action mask": {"action_mask": False},
    "board text": {"board_text": True},
    "SAME_STEP": {"autoreset_mode": "SameStep"},
    "arrays=jax": {"arrays": "jax"},
}
Step = Callable[[np.ndarray], Any]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", default="Game2048,ShisenSho,Swap", help="class names, comma-separated")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5, help="steps of a variant before the next one's turn")
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    if jax.default_backend() == "cpu":
        use_huge_pages()
    print_machine()
    rows = [row for name in args.games.split(",") for row in game_rows(name, args.batch, args.steps, args.turns)]
    print_table(f"Through Gymnasium, batch {args.batch}", HEADER, rows)


def game_rows(name: str, batch: int, steps: int, turns: int) -> list[tuple[str, ...]]:
    game = envs.make(gymnasium.spec(f"g1jax/{name}-v0").kwargs["game"])
    generator = np.random.default_rng(0)
    actions = [generator.integers(game.num_actions, size=batch) for _ in range(steps)]
    loops = {"native": native(game, batch)} | {key: adapted(name, batch, keys) for key, keys in VARIANTS.items()}
    times = alternate(loops, actions, turns)
    rows: list[tuple[str, ...]] = []
    for key, per_step in times.items():
        median = float(np.median(per_step))
        share = float(np.median(times["native"] / per_step))
        rows.append((name, key, count(batch / median), f"{median * 1e3:.1f}", f"{share:.0%}"))
    return rows


def native(game: Any, batch: int) -> Step:
    vec = envs.make_vec(game, batch, autoreset="next_step", max_steps=100)

    @jax.jit
    def advance(state: Any, actions: Any, key: Any, i: Any) -> Any:
        state, result = vec.step(state, actions, jax.random.fold_in(key, i))
        return state, (vec.render(state), result.reward, result.terminated, result.truncated, result.is_legal)

    state, i, key = jax.jit(vec.reset)(jax.random.key(0)), 0, jax.random.key(1)

    def step(actions: np.ndarray) -> Any:
        nonlocal state, i
        i += 1
        state, seen = advance(state, actions.astype(np.int32), key, np.int32(i))
        return [np.asarray(value) for value in seen]

    return step


def adapted(name: str, batch: int, keys: dict[str, Any]) -> Step:
    env = gymnasium.make_vec(f"g1jax/{name}-v0", batch, vectorization_mode="vector_entry_point", **keys)
    env.reset(seed=0)
    return lambda actions: jax.block_until_ready(env.step(actions)[:4])


def alternate(loops: dict[str, Step], actions: Sequence[np.ndarray], turns: int) -> dict[str, np.ndarray]:
    """Seconds of a step of each loop in every turn. The first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(turns + 1):
        for name, step in loops.items():
            start = time.perf_counter()
            for action in actions:
                step(action)
            times[name].append((time.perf_counter() - start) / len(actions))
    return {name: np.array(values[1:]) for name, values in times.items()}


if __name__ == "__main__":
    main()
