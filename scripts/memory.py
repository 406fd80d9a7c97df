"""Prints a Markdown table of the memory per device of Qwen2.5-VL: on 1, 4 and 8 devices, full training and LoRA.

    python scripts/memory.py                  # 3B and 7B; a few minutes, most of it compiling
    python scripts/memory.py --sizes 7B --devices 8 --rows 16 --response-length 1024

Nothing is allocated, so it runs on a laptop, with simulated CPU devices.
"""

import argparse
import os

MAX_DEVICES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="3B,7B", help="comma-separated (default: 3B,7B)")
    parser.add_argument("--devices", default="1,4,8", help=f"comma-separated, up to {MAX_DEVICES} (default: 1,4,8)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a training step, over all devices")
    parser.add_argument("--samples", type=int, default=64, help="responses generated at once, over all devices")
    parser.add_argument("--prompt-length", type=int, default=512)
    parser.add_argument("--response-length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16, help="rank of LoRA")
    parser.add_argument("--no-compile", action="store_true", help="skip compilation and leave activations out")
    args = parser.parse_args()

    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={MAX_DEVICES}"
    from g1jax.vlm import memory_plan, qwen
    from g1jax.vlm.lora import LoRA

    work = memory_plan.Work(
        rows=args.rows,
        samples=args.samples,
        prompt_length=args.prompt_length,
        response_length=args.response_length,
    )
    print(
        "GiB per device; bfloat16 weights, remat, weights sharded by fsdp; "
        f"{work.prompt_length} + {work.response_length} tokens, {work.rows} rows a microbatch, "
        f"{work.samples} responses generated at once, with a reference.\n"
    )
    header = (
        "model", "trained", "devices", "weights", "master", "moments", "reference", "gradients", "activations ≤",
        "KV cache", "training ≤", "RL generation", "inference",
    )  # fmt: skip
    print("| " + " | ".join(header) + " |")
    print("|---|---|" + "---:|" * (len(header) - 2))
    for size in args.sizes.split(","):
        config = qwen.shape_of(size, dtype="bfloat16", param_dtype="bfloat16", is_remat=True, is_scanned=True)
        for trained, lora in (("all", None), (f"LoRA, rank {args.rank}", LoRA(rank=args.rank))):
            for count in map(int, args.devices.split(",")):
                found = memory_plan.estimate(
                    config, work, mesh=(1, count, 1), lora=lora, is_compiled=not args.no_compile
                )
                numbers = (
                    found.params, found.master, found.moments, found.reference, found.gradients, found.activations,
                    found.cache, found.training, found.writing, found.inference,
                )  # fmt: skip
                print("| " + " | ".join([size, trained, str(count), *map(gib, numbers)]) + " |", flush=True)


def gib(size: int | None) -> str:
    """Bytes as GiB; empty for None."""
    return "" if size is None else f"{size / 2**30:.2f}"


if __name__ == "__main__":
    main()
