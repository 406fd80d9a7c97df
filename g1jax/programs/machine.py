"""What a program of ours asks of the machine it runs on: a device a CPU core, and compiled programs kept."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from g1jax.errors import G1Error
from g1jax.files import home_folder, require_writable
from g1jax.terminal import notice
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


class MachineError(G1Error):
    """The machine lacks what a program needs; the message says what, in one line."""


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache, so that a run resumes, or starts over, without compiling again.

    Where JAX_COMPILATION_CACHE_DIR or JAX's config names a folder, or says there shall be none, that stands. A folder
    that cannot be written is a notice, not an error: programs are compiled, and read from it if that can be.
    """
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if folder is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = home_folder()
        caches = os.environ.get("XDG_CACHE_HOME") or (home and home / ".cache")
        if caches is None:
            notice("compiled programs are not kept, as there is no home directory: set JAX_COMPILATION_CACHE_DIR")
            return
        folder = str(Path(caches) / "g1jax" / "jax")
        jax.config.update("jax_compilation_cache_dir", folder)
    if folder and "://" not in folder:
        try:
            require_writable(Path(folder), (), MachineError)
        except MachineError as error:
            notice(f"compiled programs are not kept: {error}")
            is_readable = os.access(folder, os.R_OK | os.X_OK) and Path(folder).is_dir()
            if is_readable:
                jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))  # reads alone
            else:
                jax.config.update("jax_compilation_cache_dir", None)


def require_devices() -> None:
    """Refuses a machine on which JAX finds no device.

    Raises:
        MachineError: there is none of the platforms that JAX is told to use.
    """
    try:
        jax.devices()
    except RuntimeError as error:
        raise MachineError(f"JAX finds no device: {error}") from None


@contextlib.contextmanager
def all_devices() -> Iterator[None]:
    """Splits what runs within over all devices there are, each CPU core one of them; compiled programs are kept."""
    keep_programs()
    use_cores()
    require_devices()
    with jax.set_mesh(make_mesh(data=len(jax.devices()))):
        yield
