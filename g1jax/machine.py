"""What a program of ours asks of the machine it runs on: a device a CPU core, and compiled programs kept."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from g1jax.vlm.sharding import make_mesh

_SAID_ELSEWHERE = ("JAX_NUM_CPU_DEVICES", "JAX_NUM_PROCESSES", "SLURM_NTASKS")


def use_cores(rows: int = 0, multiple: int = 1) -> None:
    """Makes as many CPU devices as there are cores, or fewer, so that their number over `multiple` divides `rows`.

    Left alone, JAX makes one device of all cores and divides only large operations among them; those of a small model
    are too small for that. Split over a mesh, each core runs the whole program on its rows, and a small policy writes
    nearly as many times as fast as there are cores.

    To be called before JAX's first use of a device; later it does nothing. Nor does it where the environment says how
    many devices there are to be, or there are other processes. Accelerators are as they are.
    """
    if any(os.environ.get(name) for name in _SAID_ELSEWHERE) or "device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fitting = [n for n in range(multiple, cores + 1, multiple) if rows % (n // multiple) == 0]
    try:
        jax.config.update("jax_num_cpu_devices", fitting[-1] if fitting else cores)
    except RuntimeError:  # JAX has its devices already
        return


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache, so that a run goes on, or begins again, without compiling anew.

    Where JAX_COMPILATION_CACHE_DIR or JAX's config names a folder, or says there shall be none, that stands.
    """
    known = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if known is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "g1jax" / "jax"))


@contextlib.contextmanager
def all_devices() -> Iterator[None]:
    """Splits what runs within over all devices there are, each CPU core one of them; compiled programs are kept."""
    keep_programs()
    use_cores()
    with jax.set_mesh(make_mesh(data=len(jax.devices()))):
        yield
