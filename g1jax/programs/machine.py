"""Setup of the machine: one CPU device per core, and a persistent compilation cache."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from g1jax.errors import G1Error
from g1jax.files import home_folder, require_writable
from g1jax.terminal import notice
from g1jax.vlm.sharding import make_mesh

_DEVICE_VARIABLES = ("JAX_NUM_CPU_DEVICES", "JAX_NUM_PROCESSES", "SLURM_NTASKS")


def use_cores(rows: int = 0, multiple: int = 1, games: int = 1) -> None:
    """Makes one CPU device per core, or fewer: `multiple` times a divisor of `rows`. `games`: of one program.

    By default, JAX makes one device of all cores and splits only large operations between them; those of a small model
    are too small. On a mesh, each core runs the whole program on its own rows, and a small policy generates nearly as
    many times faster as there are cores.

    Call this before JAX's first use of a device; later it has no effect. It also has none if the environment sets the
    number of devices, or several processes. Accelerators are not affected.
    """
    _use_enough_threads(games)
    if any(os.environ.get(name) for name in _DEVICE_VARIABLES) or "device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fitting = [n for n in range(multiple, cores + 1, multiple) if rows % (n // multiple) == 0]
    try:
        jax.config.update("jax_num_cpu_devices", fitting[-1] if fitting else cores)
    except RuntimeError:  # the devices exist already
        return


def _use_enough_threads(games: int) -> None:
    """Gives XLA's CPU client several threads per core, unless the environment sets their number.

    By default it has one per core. A device may wait in several collectives of a program at once, each blocking a
    thread. Once every thread waits in another collective, none is left to run what they wait for, and XLA aborts the
    process after 40 s. This happened on a busy machine, before the games of a program ran in order (`vlm.ordering`).
    """
    os.environ.setdefault("PJRT_NPROC", str(max(games, 2) * (os.cpu_count() or 1)))


class MachineError(G1Error):
    """The machine lacks something that a program needs; the message is one line."""


def keep_programs() -> None:
    """Sets up JAX's persistent compilation cache in the user's cache folder, unless it is configured already.

    JAX_COMPILATION_CACHE_DIR and JAX's config take precedence, also if empty. An unwritable folder is a notice, not an
    error; the cache is then read-only if the folder can be read, else disabled.
    """
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if folder is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = home_folder()
        caches = os.environ.get("XDG_CACHE_HOME") or (home and home / ".cache")
        if caches is None:
            notice("compiled programs are not cached: there is no home directory; set JAX_COMPILATION_CACHE_DIR")
            return
        folder = str(Path(caches) / "g1jax" / "jax")
        jax.config.update("jax_compilation_cache_dir", folder)
    if folder and "://" not in folder:
        try:
            require_writable(Path(folder), (), MachineError)
        except MachineError as error:
            notice(f"compiled programs are not cached: {error}")
            is_readable = os.access(folder, os.R_OK | os.X_OK) and Path(folder).is_dir()
            if is_readable:
                jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))  # read-only
            else:
                jax.config.update("jax_compilation_cache_dir", None)


def require_devices() -> None:
    """Raises MachineError if JAX finds no device of its configured platforms."""
    try:
        jax.devices()
    except RuntimeError as error:
        raise MachineError(f"JAX finds no device: {error}") from None


@contextlib.contextmanager
def all_devices() -> Iterator[None]:
    """Sets a mesh over all devices, with one device per CPU core and the compilation cache."""
    keep_programs()
    use_cores()
    require_devices()
    with jax.set_mesh(make_mesh(data=len(jax.devices()))):
        yield
