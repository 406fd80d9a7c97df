"""Speed of g1jax.vlm and transformers' torch Qwen2.5-VL: the same weights, shapes and batch, in one run.

    python benchmarks/vlm.py            # needs torch and transformers for the ratios
    python benchmarks/vlm.py --quick    # nano only, few repeats

In JAX each core is a device with its part of the batch; torch splits its operations over as many threads. The sides
alternate and each number is a median; only ratios within a run are meaningful. Both generate 64 tokens by sampling at
temperature 1, score them (log-probability and entropy of each) and take an AdamW step on a policy-gradient loss. torch
uses its `sdpa` attention; both use float32 on a CPU and bfloat16 on a GPU.
"""

import argparse
import dataclasses
import functools
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from vlm_sides import NEW_TOKENS, OPTIMIZER, Case, Ours, Theirs, generate, make_case, num_parts, score, train_step

from envs import Row, count, print_machine, print_table  # benchmarks/envs.py
from g1jax import vlm
from g1jax.programs.machine import use_cores
from g1jax.vlm.sharding import make_mesh

TABLES = ("speed", "memory", "budget", "compiling")
ROWS = ("generate", "score", "train")
LONG_BUDGET = 1024
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}  # dense bfloat16 FLOP/s


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="nano only, 3 turns")
    parser.add_argument("--models", help="nano, micro, small, 3B, 7B, comma-separated (default: nano,micro)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, help="default: 7, of --quick 3")
    parser.add_argument("--tables", default=",".join(TABLES), help="which to print (default: %(default)s)")
    parser.add_argument("--rows", default=",".join(ROWS), help="of the table speed (default: %(default)s)")
    parser.add_argument("--attention", choices=("xla", "blockwise", "cudnn"), help="ours (default: xla)")
    parser.add_argument("--no-torch", action="store_true", help="only our own numbers")
    parser.add_argument("--compile-times", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not set(args.tables.split(",")) <= set(TABLES):
        parser.error(f"--tables={args.tables}: {','.join(TABLES)}")
    if not set(args.rows.split(",")) <= set(ROWS):
        parser.error(f"--rows={args.rows}: {','.join(ROWS)}")
    use_cores(args.batch)
    with jax.set_mesh(make_mesh(data=len(jax.devices()))):
        if args.compile_times:
            print_compile_seconds(args.compile_times, args.batch)
        else:
            print_all(args)


def print_all(args: argparse.Namespace) -> None:
    turns = args.turns or (3 if args.quick else 7)
    models = (args.models or ("nano" if args.quick else "nano,micro")).split(",")
    tables = args.tables.split(",")
    print_machine()
    if "memory" in tables:  # first: it reads the peak of the process so far
        rows = [memory_row(name, make_case(name, args.batch, args.attention)) for name in models]
        print_table(f"Memory of a training step, batch {args.batch}", MEMORY_HEADER, rows)
    if "speed" in tables:
        torch = None if args.no_torch else import_torch()
        for name in models:
            rows = speed_rows(make_case(name, args.batch, args.attention), args.rows.split(","), turns, torch)
            print_table(f"{name}, batch {args.batch}", SPEED_HEADER, rows)
    if "budget" in tables:
        print_table("64 tokens under a long budget", BUDGET_HEADER, budget_rows(models, args.batch, turns))
    if "compiling" in tables:
        print_table("Compiling generate and a training step", COMPILE_HEADER, compile_rows(models, args.batch))


def import_torch() -> Any:
    """torch, or None with a printed line if it or transformers is missing."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError:
        print("torch or transformers is not installed: only our own numbers\n")
        return None
    return torch


# Speed

SPEED_HEADER = ("what", "ours, ms", "tokens/s", "model FLOP/s", "of peak", "torch, ms", "tokens/s", "ours is")


def speed_rows(case: Case, whats: Sequence[str], turns: int, torch: Any) -> list[Row]:
    """Generation, scoring and training, with both sides alternating; prints each as it is measured."""
    batch = len(case.tokens)
    sides: dict[str, Any] = {"ours": Ours(case)}
    if torch is not None:
        sides["theirs"] = Theirs(torch, case)
        check_agreement(case, sides["theirs"])
    rows: list[Row] = []
    all_flops = step_flops(case)
    for what in whats:
        flops = all_flops[what]
        medians = take_turns({side: getattr(it, what) for side, it in sides.items()}, turns)
        ours, tokens = medians["ours"], batch * NEW_TOKENS
        row = [what, f"{ours * 1e3:.1f}", count(tokens / ours), count(flops / ours), share_of_peak(flops / ours)]
        if "theirs" in medians:
            theirs = medians["theirs"]
            row += [f"{theirs * 1e3:.1f}", count(tokens / theirs), f"{theirs / ours:.2f}×"]
        rows.append(tuple(row + [""] * (len(SPEED_HEADER) - len(row))))
        print("; ".join(f"{title}: {cell}" for title, cell in zip(SPEED_HEADER, rows[-1], strict=True)), flush=True)
    print()
    sides.clear()
    gc.collect()
    return rows


def check_agreement(case: Case, theirs: Theirs) -> None:
    """Checks that both sides compute the same, and prints how nearly."""
    batch = (case.tokens, case.mask, case.response, case.response_mask, case.frames)
    errors = np.abs(np.asarray(score(case.config, case.params, *batch).logprobs) - theirs.logprobs())
    # bfloat16 rounds each of 36 layers: single tokens differ by up to 0.2, their mean by much less
    error, limit = (errors.max(), 1e-3) if case.config.dtype == "float32" else (errors.mean(), 0.05)
    print(f"log-probabilities of both sides differ by {errors.mean():.2g} on average, {errors.max():.2g} at most\n")
    assert error < limit, f"log-probabilities differ by {error}"


def take_turns(functions: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """The median seconds of each function; they are called in rotation, after a warm-up call each."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds[1:])) for name, seconds in times.items()}


def step_flops(case: Case) -> dict[str, float]:
    """Minimal FLOPs of the model's matrix products; a training step counts as 3 forward passes."""
    text, vision = case.config.text, case.config.vision
    shapes = vlm.param_shapes(dataclasses.replace(case.config, is_scanned=False))
    sizes = {part: sum(x.size for x in jax.tree.leaves(shapes[part]) if x.ndim == 2) for part in ("model", "visual")}
    layers = sizes["model"] - text.vocab_size * text.hidden_size
    rows, prompt = case.tokens.shape
    length = prompt + NEW_TOKENS
    patches = (case.frames.shape[1] // vision.patch_size) ** 2
    vision_flops = 2 * rows * patches * sizes["visual"] + 4 * rows * patches**2 * vision.hidden_size * len(
        vision.full_attention_blocks
    )
    text_flops = 2 * rows * length * layers + 2 * rows * length**2 * text.hidden_size * text.num_layers
    forward = float(vision_flops + text_flops + 2 * rows * NEW_TOKENS * text.hidden_size * text.vocab_size)
    return {"generate": forward, "score": forward, "train": 3 * forward}


def share_of_peak(rate: float) -> str:
    """Model FLOPs utilization, if the device's peak is known."""
    kind = jax.devices()[0].device_kind
    peaks = [peak for name, peak in PEAK.items() if name in kind]
    return f"{rate / peaks[0]:.1%}" if peaks else ""


# Memory

MEMORY_HEADER = ("model", "planned by the compiler, GiB", "peak of the device, GiB", "ratio")


def memory_row(name: str, case: Case) -> Row:
    """The compiler's plan for a training step beside the device's peak so far, where the device counts it.

    The peak is that of the process: run it in one that has done nothing larger, such as generation by torch.
    """
    state = OPTIMIZER.init(case.params)
    whole = (case.tokens, case.mask, case.response, case.response_mask, case.frames, case.advantages)
    compiled = train_step.lower(case.config, num_parts(case), case.params, state, whole).compile()
    memory: Any = compiled.memory_analysis()
    planned = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    planned += memory.output_size_in_bytes - memory.alias_size_in_bytes
    jax.block_until_ready(train_step(case.config, num_parts(case), case.params, state, whole))
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use", 0)
    measured = (f"{peak / 2**30:.2f}", f"{peak / planned:.2f}") if peak else ("", "")
    return (name, f"{planned / 2**30:.2f}", *measured)


# A long budget

BUDGET_HEADER = ("model", "tokens written", f"budget {NEW_TOKENS}, ms", f"budget {LONG_BUDGET}, ms", "costs")


def budget_rows(models: Sequence[str], batch: int, turns: int) -> list[Row]:
    """The same responses, none longer than 64 tokens, under both budgets."""
    rows: list[Row] = []
    for name in models:
        case = make_case(name, batch)
        vocab = case.config.text.vocab_size
        stop = tuple(range(0, vocab, 12)) if vocab < 10_000 else tuple(range(0, vocab, 1024))
        args = (case.config, case.params, case.tokens, case.mask, case.frames)
        run = functools.partial(generate, *args, stop_tokens=stop)
        key, longest = find_key(run)
        short, long = (functools.partial(run_ready, run, key, budget) for budget in (NEW_TOKENS, LONG_BUDGET))
        assert int(long().response_mask.sum(axis=1).max()) == longest, "the responses differ"
        medians = take_turns({"short": short, "long": long}, turns)
        rows.append((name, str(longest), f"{medians['short'] * 1e3:.1f}", f"{medians['long'] * 1e3:.1f}",
                     f"{medians['long'] / medians['short']:.2f}×"))  # fmt: skip
    return rows


def run_ready(run: Callable[..., vlm.Response], key: jax.Array, budget: int) -> vlm.Response:
    response: vlm.Response = jax.block_until_ready(run(key, budget))
    return response


def find_key(run: Callable[..., vlm.Response]) -> tuple[jax.Array, int]:
    """A key for which every row stops, the longest near 64 tokens."""
    for seed in range(200):
        response = run(jax.random.key(seed), NEW_TOKENS)
        lengths = np.asarray(response.response_mask.sum(axis=1))
        if 56 <= lengths.max() < NEW_TOKENS:
            return jax.random.key(seed), int(lengths.max())
    raise RuntimeError("no key found: every batch has responses that are too long or too short")


# Compiling

COMPILE_HEADER = ("model", "cold, s", "from the cache, s")


def compile_rows(models: Sequence[str], batch: int) -> list[Row]:
    """In fresh processes, including tracing: the first fills the persistent cache, the second reads it."""
    rows: list[Row] = []
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--compile-times", name, "--batch", str(batch)]
            cache = {
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            seconds = [
                float(
                    subprocess.run(command, env=os.environ | cache, capture_output=True, check=True, text=True).stdout
                )
                for _ in range(2)
            ]
        rows.append((name, *(f"{time:.1f}" for time in seconds)))
    return rows


def print_compile_seconds(name: str, batch: int) -> None:
    case = make_case(name, batch)
    state = OPTIMIZER.init(case.params)
    whole = (case.tokens, case.mask, case.response, case.response_mask, case.frames, case.advantages)
    start = time.perf_counter()
    prompts = (case.tokens, case.mask, case.frames, jax.random.key(0), NEW_TOKENS)
    generate.lower(case.config, case.params, *prompts).compile()
    train_step.lower(case.config, num_parts(case), case.params, state, whole).compile()
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
