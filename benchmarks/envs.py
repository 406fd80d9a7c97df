"""Speed of g1jax.envs and comparable libraries, one table from one run.

    python benchmarks/envs.py            # pip install -e .[bench] for the peers
    python benchmarks/envs.py --quick    # a minute, small batches
    python benchmarks/envs.py --tables=games --batches=16384

Only ratios within a run are meaningful: machines differ and drift. Every frame counted is an output of the compiled
program, so it is computed and written in full. The copy is NumPy's, from one warm buffer to another, of as many bytes
as the frames have.
"""

import argparse
import functools
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from g1jax import envs

HUGE_PAGES = "glibc.malloc.hugetlb=1"
STEPS = 32
TABLES = ("games", "sizes", "peers", "pixels", "costs")
Row = tuple[str, ...]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batches 64 and 1024 only, fewer repeats")
    parser.add_argument("--batches", help="batch sizes, comma-separated (default: 64,1024,4096,16384)")
    parser.add_argument("--games", default=",".join(envs.game_ids()), help="game ids, comma-separated")
    parser.add_argument("--tables", default=",".join(TABLES), help="which to print (default: %(default)s)")
    parser.add_argument(
        "--small-pages", action="store_true", help="keep 4 KB pages (default: huge pages on Linux CPUs)"
    )
    args = parser.parse_args()
    if not args.small_pages and jax.default_backend() == "cpu":
        use_huge_pages()
    batches = [int(b) for b in (args.batches or ("64,1024" if args.quick else "64,1024,4096,16384")).split(",")]
    games = [envs.make(game_id) for game_id in args.games.split(",")]
    tables = args.tables.split(",")
    if not set(tables) <= set(TABLES):
        parser.error(f"--tables={args.tables}: {','.join(TABLES)}")
    repeats = 3 if args.quick else 7
    large = [b for b in batches if b >= 1024] or batches
    print_machine()
    if "games" in tables:
        print_table(
            "Games: random play, and frames at the default size", GAME_HEADER, game_rows(games, batches, repeats)
        )
    if "sizes" in tables:
        print_table("Frame sizes, batch 1024", SIZE_HEADER, size_rows(repeats, batch=256 if args.quick else 1024))
    if "peers" in tables:
        print_table("2048 and other libraries", PEER_HEADER, peer_rows(large, repeats))
    if "pixels" in tables:
        print_table("2048 with pixels and gymnasium-2048", PIXEL_HEADER, pixel_rows(repeats))
    if "costs" in tables:
        print_table("Starting up and memory", ("what", "value"), cost_rows(games, max(batches)))


def use_huge_pages() -> None:
    """Restarts the process with 2 MB pages in glibc: fresh 4 KB pages cost more than writing frames to them."""
    if sys.platform == "linux" and HUGE_PAGES not in os.environ.get("GLIBC_TUNABLES", ""):
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.argv])


def print_machine() -> None:
    device = jax.devices()[0]
    pages = "2 MB pages" if HUGE_PAGES in os.environ.get("GLIBC_TUNABLES", "") else "default pages"
    print(
        f"jax {jax.__version__}, {device.device_kind} ({jax.default_backend()}), {os.cpu_count()} CPU cores, {pages}\n"
    )


def print_table(title: str, header: Row, rows: Sequence[Row]) -> None:
    """Prints a Markdown table; the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(f"### {title}\n")
    for row in [header, tuple("-" * w for w in widths), *rows]:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """The median seconds of a call until its result is ready, after a warm-up call."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def count(number: float) -> str:
    """12345678 -> `12.3M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


# Each game and the mix

GAME_HEADER = (
    "game", "batch", "steps/s", "µs/step", "frames/s", "GB/s", "copy GB/s", "of copy", "step+frame/s", "µs",
)  # fmt: skip


def game_rows(games: Sequence[Any], batches: Sequence[int], repeats: int) -> list[Row]:
    rows: list[Row] = []
    one_size = [envs.make(game.id, frame_size=(224, 224)) for game in games]
    for batch in batches:
        times = []
        for game in games:
            row, logic, _ = game_row(game.id, envs.make_vec(game, batch, autoreset="none"), repeats)
            rows.append(row)
            times.append(logic)
        if len(games) > 1:
            row, mix_logic, mix_frame = game_row("mix", envs.make_vec(games, batch, autoreset="none"), repeats)
            rows.append(row)
            share = batch // len(games)
            parts = [game_row("", envs.make_vec(game, share, autoreset="none"), repeats) for game in one_size]
            logic, frame = sum(part[1] for part in parts) * share, sum(part[2] for part in parts) * share
            rows.append(("  of one after another", str(batch), f"{logic / (mix_logic * batch):.0%}", "", "", "", "", "",
                         f"{frame / (mix_frame * batch):.0%}", ""))  # fmt: skip
    return rows


def game_row(name: str, vec: envs.VecEnv, repeats: int) -> tuple[Row, float, float]:
    """A row, and the seconds of a step of one environment without and with its frame."""
    batch = vec.num_envs
    state = jax.jit(vec.reset)(jax.random.key(0))
    play = jax.jit(functools.partial(play_random, vec))
    logic = seconds(lambda: play(state, jax.random.key(1)), repeats) / STEPS
    render = jax.jit(vec.render)
    frame = seconds(lambda: render(state), repeats)
    num_bytes = batch * int(np.prod(vec.frame_shape))
    copied = copy_seconds(num_bytes, repeats)

    step_with_frame = jax.jit(functools.partial(random_step_and_render, vec))
    both = seconds(lambda: step_with_frame(state, jax.random.key(2)), repeats)
    row = (
        name, str(batch), count(batch / logic), f"{logic / batch * 1e6:.2f}", count(batch / frame),
        f"{num_bytes / frame / 1e9:.2f}", f"{num_bytes / copied / 1e9:.2f}", f"{copied / frame:.0%}",
        count(batch / both), f"{both / batch * 1e6:.2f}",
    )  # fmt: skip
    return row, logic / batch, both / batch


def random_step(vec: envs.VecEnv, state: Any, key: Any) -> tuple[Any, Any]:
    action_key, step_key = jax.random.split(key)
    return vec.step(state, vec.sample_actions(state, action_key, legal=False), step_key)


def random_step_and_render(vec: envs.VecEnv, state: Any, key: Any) -> tuple[Any, Any]:
    state, _ = random_step(vec, state, key)
    return state, vec.render(state)


def play_random(vec: envs.VecEnv, state: Any, key: Any) -> Any:
    return jax.lax.scan(lambda s, k: (random_step(vec, s, k)[0], None), state, jax.random.split(key, STEPS))[0]


def copy_seconds(num_bytes: int, repeats: int) -> float:
    """The seconds of a plain copy of `num_bytes` on the device of the frames: the CPU or the accelerator."""
    if jax.default_backend() == "cpu":
        source, target = np.full(num_bytes, 1, np.uint8), np.full(num_bytes, 2, np.uint8)
        return seconds(lambda: np.copyto(target, source), repeats)
    array = jnp.ones(num_bytes, jnp.uint8)
    copy = jax.jit(lambda x: x ^ jnp.uint8(1))
    return seconds(lambda: copy(array), repeats)


# Frame sizes

SIZE_HEADER = ("game", "cell px", "frame", "frames/s", "GB/s", "copy GB/s", "of copy")


def size_rows(repeats: int, batch: int) -> list[Row]:
    rows: list[Row] = []
    for game_id in ("game_2048", "shisen_sho"):
        for cell in (8, 16, 20, 28, 36, 56, 80):
            vec = envs.make_vec(envs.make(game_id, cell_size=cell), batch)
            state = jax.jit(vec.reset)(jax.random.key(0))
            render = jax.jit(vec.render)
            num_bytes = batch * int(np.prod(vec.frame_shape))
            frame, copied = seconds(lambda: render(state), repeats), copy_seconds(num_bytes, repeats)  # noqa: B023
            rows.append((
                game_id, str(cell), f"{vec.frame_shape[1]}×{vec.frame_shape[0]}", count(batch / frame),
                f"{num_bytes / frame / 1e9:.2f}", f"{num_bytes / copied / 1e9:.2f}", f"{copied / frame:.0%}",
            ))  # fmt: skip
    return rows


# Peers

PEER_HEADER = ("2048, random play", "batch", "steps/s", "g1jax is")


def peer_rows(batches: Sequence[int], repeats: int) -> list[Row]:
    """The same loop around every library's environment: uniform actions, no resets. Medians of alternating runs."""
    rows: list[Row] = []
    for batch in batches:
        runs = {name: peer_loop(reset, step, batch) for name, (reset, step) in peers().items()}
        rates = {name: [] for name in runs}  # type: dict[str, list[float]]
        for repeat in range(repeats + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                jax.block_until_ready(run(jax.random.key(repeat)))
                rates[name].append(batch * STEPS / (time.perf_counter() - start))
        medians = {name: float(np.median(rate[1:])) for name, rate in rates.items()}
        ours = medians["g1jax"]
        rows += [(name, str(batch), count(rate), f"{ours / rate:.1f}×") for name, rate in medians.items()]
    return rows


def peers() -> dict[str, tuple[Any, Any]]:
    """(reset, step) of each installed library."""
    game = envs.make("game_2048")
    found: dict[str, tuple[Any, Any]] = {"g1jax": (game.reset, lambda s, a, k: game.step(s, a, k)[0])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import pgx

            pgx_game = pgx.make("2048")
            found["pgx"] = (pgx_game.init, pgx_game.step)
        except ImportError:
            print("pgx is not installed: pip install -e .[bench]\n")
        try:
            import jumanji

            jumanji_game = jumanji.make("Game2048-v1")
            found["jumanji"] = (lambda k: jumanji_game.reset(k)[0], lambda s, a, k: jumanji_game.step(s, a)[0])
        except ImportError:
            print("jumanji is not installed: pip install -e .[bench]\n")
    return found


def peer_loop(reset: Any, step: Any, batch: int) -> Any:
    state = jax.jit(jax.vmap(reset))(jax.random.split(jax.random.key(0), batch))

    @jax.jit
    def run(state: Any, key: Any) -> Any:
        def body(state: Any, key: Any) -> Any:
            action_key, step_key = jax.random.split(key)
            actions = jax.random.randint(action_key, (batch,), 0, 4)
            return jax.vmap(step)(state, actions, jax.random.split(step_key, batch)), None

        return jax.lax.scan(body, state, jax.random.split(key, STEPS))[0]

    return lambda key: run(state, key)


PIXEL_HEADER = ("2048, step and frame", "frame", "frames/s", "relative to gymnasium-2048")


def pixel_rows(repeats: int) -> list[Row]:
    theirs = gymnasium_rate()
    own_size = envs.make("game_2048", cell_size=100, frame_size=(460, 400))
    rows: list[Row] = [("gymnasium-2048, pygame", "400×460", count(theirs), "1×")] if theirs else []
    for name, game in (("g1jax, its size", own_size), ("g1jax, default size", envs.make("game_2048"))):
        vec = envs.make_vec(game, 1024, autoreset="none")
        *_, both = game_row("", vec, repeats)
        rows.append((f"{name}, batch 1024", f"{vec.frame_shape[1]}×{vec.frame_shape[0]}", count(1 / both),
                     f"{1 / both / theirs:.1f}×" if theirs else ""))  # fmt: skip
    for name, game in (("g1jax, its size", own_size), ("g1jax, default size", envs.make("game_2048"))):
        rate = python_loop_rate(game)
        rows.append((f"{name}, one in a Python loop", f"{game.frame_shape[1]}×{game.frame_shape[0]}", count(rate),
                     f"{rate / theirs:.1f}×" if theirs else ""))  # fmt: skip
    return rows


def gymnasium_rate(num_steps: int = 500) -> float:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import gymnasium
            import gymnasium_2048  # noqa: F401  (registers the game)

            env = gymnasium.make("gymnasium_2048/TwentyFortyEight-v0", render_mode="rgb_array")
            env.reset(seed=0)
            env.render()
            rng = np.random.default_rng(0)
            start = time.perf_counter()
            for _ in range(num_steps):
                _, _, terminated, truncated, _ = env.step(int(rng.integers(4)))
                env.render()
                if terminated or truncated:
                    env.reset()
            return num_steps / (time.perf_counter() - start)
    except ImportError:
        print("gymnasium-2048 is not installed: pip install -e .[bench]\n")
        return 0.0


def python_loop_rate(game: Any, num_steps: int = 500) -> float:
    step = jax.jit(functools.partial(step_and_render, game))
    state, keys = game.reset(jax.random.key(0)), jax.random.split(jax.random.key(1), num_steps)
    jax.block_until_ready(step(state, 0, keys[0]))
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for i in range(num_steps):
        state, _, frame = step(state, int(rng.integers(4)), keys[i])
        np.asarray(frame)
    return num_steps / (time.perf_counter() - start)


# Starting up and memory


def cost_rows(games: Sequence[Any], most: int) -> list[Row]:
    rows: list[Row] = [("import g1jax.envs", f"{import_seconds():.2f} s")]
    for game in games:
        vec = envs.make_vec(game, 1024)
        keys = jax.random.split(jax.random.key(0), 1024)
        states = jax.jit(jax.vmap(game.reset))(keys)
        one_by_one = jax.vmap(functools.partial(step_and_render, game))
        rows.append((f"{game.id}: compile step and frame",
                     compile_time(one_by_one, states, jnp.zeros(1024, jnp.int32), keys)))  # fmt: skip
        state = jax.jit(vec.reset)(keys[0])
        rows.append((f"{game.id}: compile sampling, step, autoreset and frame",
                     compile_time(functools.partial(random_step_and_render, vec), state, keys[0])))  # fmt: skip
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(states)) / 1024
        rows.append((f"{game.id}: a state without its frame", f"{size:.0f} bytes"))
    for names in [*([game.id] for game in games), [game.id for game in games]]:
        name = names[0] if len(names) == 1 else "mix"
        rows.append((f"{name}: peak memory of a process, {most} environments with frames", peak_memory(names, most)))
    return rows


def peak_memory(game_ids: Sequence[str], batch: int) -> str:
    """Of a process that resets, steps and renders a batch three times, with frames and states kept alive."""
    program = f"""
import jax, resource
from g1jax import envs
vec = envs.make_vec({list(game_ids)!r}, {batch})
state = jax.jit(vec.reset)(jax.random.key(0))
@jax.jit
def step(state, key):
    state, result = vec.step(state, vec.sample_actions(state, key, legal=False), key)
    return state, result.reward, vec.render(state)
for i in range(3):
    state, reward, frames = jax.block_until_ready(step(state, jax.random.key(i)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    return f"{float(out):.1f} GB"


def compile_time(function: Callable[..., Any], *args: Any) -> str:
    """The time from a Python function to a compiled program, without a cache."""
    start = time.perf_counter()
    jax.jit(function).lower(*args).compile()
    return f"{time.perf_counter() - start:.1f} s"


def step_and_render(game: Any, state: Any, action: Any, key: Any) -> Any:
    state, result = game.step(state, action, key)
    return state, result, game.render(state)


def import_seconds() -> float:
    program = "import time; t = time.perf_counter(); import g1jax.envs; print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout) for _ in range(3)
    ]
    return float(np.median(times))


if __name__ == "__main__":
    main()
