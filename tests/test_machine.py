"""How many devices a CPU is made into. Each case in a process of its own, since JAX makes its devices once."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
os.sched_getaffinity = lambda pid: set(range({cores}))
import jax
{before}
from g1jax.machine import use_cores
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
        (2, "8, 4", "", {}, 2),  # four do not fit: the mesh will say so
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
        ({"XDG_CACHE_HOME": "/somewhere"}, "/somewhere/g1jax/jax"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": ""}, "/home/a/.cache/g1jax/jax"),
        ({"JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine"),
        ({"JAX_COMPILATION_CACHE_DIR": ""}, ""),
    ],
)
def test_programs_are_kept(environment: dict[str, str], folder: str) -> None:
    known = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    script = "import jax; from g1jax.machine import keep_programs; keep_programs()"
    script += "; print(jax.config.jax_compilation_cache_dir or '')"
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, env=known | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == folder
