"""Speed of g1jax.vlm beside transformers' torch Qwen2.5-VL: the same weights, shapes and batch, in one run.

    python benchmarks/vlm.py            # needs torch and transformers for the ratios
    python benchmarks/vlm.py --quick    # nano only, few repeats

Each core is a device of ours, and runs its part of the batch; torch divides its operations among as many threads.
Both sides take turns, and a figure is the median of its turns; ratios within a run mean something, figures of two runs
do not. Both write 64 tokens by sampling at temperature 1, score them (log-probability and entropy of each) and take an
AdamW step on a policy-gradient loss. torch runs its `sdpa` attention, float32 on a CPU and bfloat16 on a GPU, as we do.
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
import jax.numpy as jnp
import numpy as np
import optax

from envs import Row, count, print_machine, print_table  # the benchmark beside this one
from g1jax import vlm
from g1jax.programs.machine import use_cores
from g1jax.vlm import qwen, weights
from g1jax.vlm.accumulation import accumulated_grad
from g1jax.vlm.sharding import make_mesh, placer, shard_batch

TABLES = ("speed", "budget", "compiling")
NEW_TOKENS = 64
LONG_BUDGET = 1024
GRID = 6  # visual tokens along a side of the image
TEXT_BEFORE, TEXT_AFTER = 4, 20
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}  # dense bfloat16 FLOP/s of a card


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="nano only, 3 turns")
    parser.add_argument("--models", help="nano, micro, small, 3B, 7B, comma-separated (default: nano,micro)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, help="default: 7, of --quick 3")
    parser.add_argument("--tables", default=",".join(TABLES), help="which to print (default: %(default)s)")
    parser.add_argument("--no-torch", action="store_true", help="only our own figures")
    parser.add_argument("--compile-times", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not set(args.tables.split(",")) <= set(TABLES):
        parser.error(f"--tables={args.tables}: {','.join(TABLES)}")
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
    if "speed" in tables:
        torch = None if args.no_torch else import_torch()
        for name in models:
            print_table(f"{name}, batch {args.batch}", SPEED_HEADER, speed_rows(name, args.batch, turns, torch))
    if "budget" in tables:
        print_table("64 tokens under a long budget", BUDGET_HEADER, budget_rows(models, args.batch, turns))
    if "compiling" in tables:
        print_table("Compiling generate and a training step", COMPILE_HEADER, compile_rows(models, args.batch))


def import_torch() -> Any:
    """torch, or None where it or transformers is missing, which a line says."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError:
        print("torch or transformers is not installed: only our own figures\n")
        return None
    return torch


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its weights, and a batch to write for, score and learn from."""

    config: vlm.Config
    params: vlm.Params
    tokens: jax.Array  # int32[B, P]
    mask: jax.Array  # bool[B, P]
    frames: jax.Array  # uint8[B, H, W, 3]
    response: jax.Array  # int32[B, N]
    advantages: jax.Array  # float32[B]

    @property
    def response_mask(self) -> jax.Array:
        return jnp.ones_like(self.response, bool)


def make_config(name: str) -> vlm.Config:
    on_gpu: dict[str, Any] = {"dtype": "bfloat16", "param_dtype": "bfloat16"} if jax.default_backend() == "gpu" else {}
    if name in ("3B", "7B"):
        return qwen.shape_of(name, **on_gpu, is_remat=True)
    config = vlm.preset(name, **on_gpu)
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, num_places=0))  # torch's has none


def make_case(name: str, batch: int) -> Case:
    config = make_config(name)
    side = GRID * config.vision.token_size
    start, end = config.vision_start_token_id, config.vision_end_token_id
    rng = np.random.default_rng(0)
    before, after = (rng.integers(8, 500, (batch, length)) for length in (TEXT_BEFORE, TEXT_AFTER))
    image = np.tile(np.array([start, *[config.image_token_id] * GRID**2, end]), (batch, 1))
    tokens = np.concatenate([before, image, after], axis=1).astype(np.int32)
    mesh = make_mesh(data=len(jax.devices()))
    spread = functools.partial(shard_batch, mesh)
    return Case(
        config=config,
        params=vlm.init(config, jax.random.key(0), place=placer(config, mesh)),
        tokens=spread(tokens),
        mask=spread(np.ones(tokens.shape, bool)),
        frames=spread(rng.integers(0, 256, (batch, side, side, 3)).astype(np.uint8)),
        response=spread(rng.integers(8, 500, (batch, NEW_TOKENS)).astype(np.int32)),
        advantages=spread(rng.standard_normal(batch).astype(np.float32)),
    )


# Ours

OPTIMIZER = optax.adamw(1e-6, weight_decay=1e-2)


@functools.partial(jax.jit, static_argnums=(0, 6), static_argnames=("stop_tokens",))
def generate(
    config: vlm.Config, params: Any, tokens: Any, mask: Any, frames: Any, key: Any, budget: int,
    stop_tokens: tuple[int, ...] = (),
) -> vlm.Response:  # fmt: skip
    return vlm.generate(config, params, tokens, mask, frames, key, max_new_tokens=budget, stop_tokens=stop_tokens)


score = jax.jit(vlm.score, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def train_step(config: vlm.Config, parts: int, params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
    """The batch in so many parts: the same step, and on a CPU a faster one."""

    def loss(params: Any, batch: Any) -> tuple[jax.Array, None]:
        *scored, advantages = batch
        return -jnp.mean(vlm.score(config, params, *scored).logprobs * advantages[:, None]), None

    _, gradient = accumulated_grad(loss, parts)(params, batch)
    updates, state = OPTIMIZER.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def num_parts(case: Case) -> int:
    """Into how many parts a training step is cut: of 8 rows a CPU core, whose caches hold them."""
    rows = len(case.tokens) // len(jax.devices())
    return rows // 8 if jax.default_backend() == "cpu" and rows % 8 == 0 else 1


class Ours:
    """Our three programs, ready to be called again and again."""

    def __init__(self, case: Case) -> None:
        self.case, self.turn = case, 0
        self.batch = (case.tokens, case.mask, case.response, case.response_mask, case.frames)
        self.params = jax.tree.map(jnp.copy, case.params)
        self.state = OPTIMIZER.init(self.params)

    def generate(self) -> None:
        case, self.turn = self.case, self.turn + 1
        key = jax.random.key(self.turn)
        found = generate(case.config, case.params, case.tokens, case.mask, case.frames, key, NEW_TOKENS)
        jax.block_until_ready(found)

    def score(self) -> None:
        jax.block_until_ready(score(self.case.config, self.case.params, *self.batch))

    def train(self) -> None:
        case = self.case
        batch = (*self.batch, case.advantages)
        self.params, self.state = train_step(case.config, num_parts(case), self.params, self.state, batch)
        jax.block_until_ready(self.params)


# Theirs


class Theirs:
    """transformers' model with the same weights, doing the same."""

    def __init__(self, torch: Any, case: Case) -> None:
        from transformers import Qwen2_5_VLForConditionalGeneration
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()

        self.torch, self.case = torch, case
        self.device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            weights.save(case.config, case.params, f"{folder}/model")
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                f"{folder}/model", attn_implementation="sdpa", dtype=getattr(torch, case.config.param_dtype)
            ).to(self.device)
        self.model.generation_config.pad_token_id = 0
        if case.config.vision.depth > 8:
            self.model.gradient_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=1e-2)
        self.prompt = self._inputs(np.asarray(case.tokens))
        self.whole = self._inputs(np.concatenate([case.tokens, case.response], axis=1))
        self.response = self.whole["input_ids"][:, -NEW_TOKENS:]
        self.advantages = torch.tensor(np.asarray(case.advantages), device=self.device)

    def _inputs(self, tokens: np.ndarray) -> dict[str, Any]:
        torch, case, side = self.torch, self.case, self.case.config.vision.patch_size
        ids = torch.tensor(tokens, dtype=torch.long)
        rows, columns = (length // side for length in case.frames.shape[1:3])
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.tensor(np.asarray(vlm.pixel_values(case.config.vision, case.frames))),
            "image_grid_thw": torch.tensor([[1, rows, columns]] * len(tokens)),
        }
        if case.config.text.positions == "mrope":  # without it, positions are the sequence's
            inputs["mm_token_type_ids"] = (ids == case.config.image_token_id).int()
        return {name: value.to(self.device) for name, value in inputs.items()}

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def generate(self) -> None:
        with self.torch.inference_mode():
            self.model.generate(
                **self.prompt, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=True, top_k=0,
                top_p=1.0, temperature=1.0, use_cache=True,
            )  # fmt: skip
        self._wait()

    def _scores(self) -> tuple[Any, Any]:
        torch = self.torch
        logits = self.model(**self.whole, logits_to_keep=NEW_TOKENS + 1, use_cache=False).logits[:, :-1].float()
        logprobs = torch.log_softmax(logits, dim=-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, self.response[..., None])[..., 0], entropy

    def score(self) -> None:
        with self.torch.inference_mode():
            self._scores()
        self._wait()

    def logprobs(self) -> np.ndarray:
        with self.torch.inference_mode():
            return np.asarray(self._scores()[0].cpu())

    def train(self) -> None:
        self.model.train()
        loss = -(self._scores()[0] * self.advantages[:, None]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._wait()
        self.model.eval()


# Speed

SPEED_HEADER = ("what", "ours, ms", "tokens/s", "model FLOP/s", "of peak", "torch, ms", "tokens/s", "ours is")


def speed_rows(name: str, batch: int, turns: int, torch: Any) -> list[Row]:
    """Generation, scoring and training, ours and theirs turn by turn."""
    case = make_case(name, batch)
    sides: dict[str, Any] = {"ours": Ours(case)}
    if torch is not None:
        sides["theirs"] = Theirs(torch, case)
        check_agreement(case, sides["theirs"])
    rows: list[Row] = []
    for what, flops in step_flops(case).items():
        medians = take_turns({side: getattr(it, what) for side, it in sides.items()}, turns)
        ours, tokens = medians["ours"], batch * NEW_TOKENS
        row = [what, f"{ours * 1e3:.1f}", count(tokens / ours), count(flops / ours), share_of_peak(flops / ours)]
        if "theirs" in medians:
            theirs = medians["theirs"]
            row += [f"{theirs * 1e3:.1f}", count(tokens / theirs), f"{theirs / ours:.2f}×"]
        rows.append(tuple(row + [""] * (len(SPEED_HEADER) - len(row))))
    sides.clear()
    gc.collect()
    return rows


def check_agreement(case: Case, theirs: Theirs) -> None:
    """Both sides compute the same, or the figures mean nothing."""
    batch = (case.tokens, case.mask, case.response, case.response_mask, case.frames)
    error = np.abs(np.asarray(score(case.config, case.params, *batch).logprobs) - theirs.logprobs()).max()
    limit = 1e-3 if case.config.dtype == "float32" else 0.2
    assert error < limit, f"log-probabilities differ by {error}"


def take_turns(functions: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """The median seconds of each, called one after the other, after one call each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds[1:])) for name, seconds in times.items()}


def step_flops(case: Case) -> dict[str, float]:
    """Multiplications and additions that the model needs at least, in matrix products; 3 forward passes for a step."""
    text, vision = case.config.text, case.config.vision
    sizes = {
        part: sum(x.size for x in jax.tree.leaves(case.params[part]) if x.ndim == 2) for part in ("model", "visual")
    }
    layers = sizes["model"] - text.vocab_size * text.hidden_size
    rows, prompt = case.tokens.shape
    length = prompt + NEW_TOKENS
    patches = (case.frames.shape[1] // vision.patch_size) ** 2
    seeing = 2 * rows * patches * sizes["visual"] + 4 * rows * patches**2 * vision.hidden_size * len(
        vision.full_attention_blocks
    )
    reading = 2 * rows * length * layers + 2 * rows * length**2 * text.hidden_size * text.num_layers
    forward = float(seeing + reading + 2 * rows * NEW_TOKENS * text.hidden_size * text.vocab_size)
    return {"generate": forward, "score": forward, "train": 3 * forward}


def share_of_peak(rate: float) -> str:
    """Model-FLOPs utilisation, where the card's peak is known."""
    kind = jax.devices()[0].device_kind
    peaks = [peak for name, peak in PEAK.items() if name in kind]
    return f"{rate / peaks[0]:.1%}" if peaks else ""


# A long budget

BUDGET_HEADER = ("model", "tokens written", f"budget {NEW_TOKENS}, ms", f"budget {LONG_BUDGET}, ms", "costs")


def budget_rows(models: Sequence[str], batch: int, turns: int) -> list[Row]:
    """The same answers, none longer than 64 tokens, under both budgets."""
    rows: list[Row] = []
    for name in models:
        case = make_case(name, batch)
        vocab = case.config.text.vocab_size
        stop = tuple(range(0, vocab, 12)) if vocab < 10_000 else tuple(range(0, vocab, 1024))
        args = (case.config, case.params, case.tokens, case.mask, case.frames)
        run = functools.partial(generate, *args, stop_tokens=stop)
        key, longest = find_key(run)
        short, long = (functools.partial(run_ready, run, key, budget) for budget in (NEW_TOKENS, LONG_BUDGET))
        assert int(long().response_mask.sum(axis=1).max()) == longest, "the answers differ"
        medians = take_turns({"short": short, "long": long}, turns)
        rows.append((name, str(longest), f"{medians['short'] * 1e3:.1f}", f"{medians['long'] * 1e3:.1f}",
                     f"{medians['long'] / medians['short']:.2f}×"))  # fmt: skip
    return rows


def run_ready(run: Callable[..., vlm.Response], key: jax.Array, budget: int) -> vlm.Response:
    response: vlm.Response = jax.block_until_ready(run(key, budget))
    return response


def find_key(run: Callable[..., vlm.Response]) -> tuple[jax.Array, int]:
    """A key with which every row stops, the last of them near the 64th token."""
    for seed in range(200):
        response = run(jax.random.key(seed), NEW_TOKENS)
        lengths = np.asarray(response.response_mask.sum(axis=1))
        if 56 <= lengths.max() < NEW_TOKENS:
            return jax.random.key(seed), int(lengths.max())
    raise RuntimeError("no key found: every batch has answers that are too long or too short")


# Compiling

COMPILE_HEADER = ("model", "cold, s", "from the cache, s")


def compile_rows(models: Sequence[str], batch: int) -> list[Row]:
    """In fresh processes, tracing included: the first fills the persistent cache, the second reads it."""
    rows: list[Row] = []
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--compile-times", name, "--batch", str(batch)]
            how = {
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            seconds = [
                float(subprocess.run(command, env=os.environ | how, capture_output=True, check=True, text=True).stdout)
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
