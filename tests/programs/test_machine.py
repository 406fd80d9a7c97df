"""The number of CPU devices, and the compilation cache. Each case is a process, since JAX makes its devices once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os
os.sched_getaffinity = lambda pid: set(range({cores}))
import jax
{before}
from g1jax.programs.machine import use_cores
use_cores({arguments})
print(len(jax.devices()))
"""


@pytest.mark.parametrize(
    ("cores", "arguments", "before", "environment", "devices"),
    [
        (6, "", "", {}, 6),
        (6, "8", "", {}, 4),  # 8 rows do not divide among 6 or 5
        (6, "9, 2", "", {}, 6),  # 3 copies of 2
        (4, "9, 2", "", {}, 2),
        (2, "8, 4", "", {}, 2),  # four do not fit: the mesh raises
        (6, "8", "jax.devices()", {}, 1),
        (6, "8", "", {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3),
        (6, "8", "", {"JAX_NUM_CPU_DEVICES": "5"}, 5),
    ],
)
def test_devices(cores: int, arguments: str, before: str, environment: dict[str, str], devices: int) -> None:
    known = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    script = SCRIPT.format(cores=cores, arguments=arguments, before=before)
    command = [sys.executable, "-W", "error", "-c", script]
    environment = {**known, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(devices)]


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"XDG_CACHE_HOME": "{}/somewhere"}, "{}/somewhere/g1jax/jax"),
        ({"HOME": "{}/home", "XDG_CACHE_HOME": ""}, "{}/home/.cache/g1jax/jax"),
        ({"JAX_COMPILATION_CACHE_DIR": "{}/mine"}, "{}/mine"),
        ({"JAX_COMPILATION_CACHE_DIR": ""}, ""),
    ],
)
def test_programs_are_cached(environment: dict[str, str], folder: str, tmp_path: Path) -> None:
    done = keep({key: value.format(tmp_path) for key, value in environment.items()})
    assert done.stdout.strip() == folder.format(tmp_path)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("environment", "notice"),
    [
        ({}, "note: compiled programs are not cached: there is no home directory"),
        (
            {"HOME": "{}/file"},
            "note: compiled programs are not cached: {}/file/.cache/g1jax/jax cannot be written: Not a",
        ),
        ({"JAX_COMPILATION_CACHE_DIR": "{}/file"}, "note: compiled programs are not cached: {}/file cannot be written"),
    ],
)
def test_without_a_writable_folder_programs_are_not_cached(
    environment: dict[str, str], notice: str, tmp_path: Path
) -> None:
    """That is not an error, nor is a missing home, as for a user unknown to the system."""
    (tmp_path / "file").write_text("mine")
    done = keep({key: value.format(tmp_path) for key, value in environment.items()})
    assert done.stdout.strip() == ""
    assert done.stderr.startswith(notice.format(tmp_path))
    assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def keep(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Sets up the cache in a process of a user without a home, with this environment; prints its folder."""
    known = {
        key: os.environ[key] for key in os.environ.keys() - {"JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"}
    }
    script = "import pwd; pwd.getpwuid = {}.__getitem__; import jax; from g1jax.programs.machine import keep_programs"
    script += "; keep_programs(); print(jax.config.jax_compilation_cache_dir or '')"
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, env=known | environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_no_device_is_one_line() -> None:
    script = "from g1jax.programs.machine import MachineError, require_devices\n"
    script += "try: require_devices()\nexcept MachineError as error: print(error)"
    environment = {**os.environ, "JAX_PLATFORMS": "nonesuch"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("JAX finds no device: ")
    assert done.stdout.count("\n") == 1


THREADS = """
import os
from collections import Counter
import jax
from g1jax.programs.machine import use_cores
use_cores(games={games})
jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((300, 300))))
names = Counter(open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task"))
print(names["tf_XLAEigen"] / os.cpu_count())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("environment", "games", "per_core"),
    [({}, 4, 4), ({}, 1, 2), ({"PJRT_NPROC": str(3 * (os.cpu_count() or 1))}, 4, 3)],
)
def test_threads_suffice_for_collectives_that_block(environment: dict[str, str], games: int, per_core: int) -> None:
    known = {key: value for key, value in os.environ.items() if key not in ("PJRT_NPROC", "NPROC")}
    environment = {**known, "JAX_PLATFORMS": "cpu", **environment}
    script = THREADS.replace("{games}", str(games))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == per_core
