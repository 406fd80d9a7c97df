"""Tests compile far more than they compute, so XLA leaves its optimizations: a step of training compiles in a third of
the time. The processes that tests start inherit this.
"""

import importlib.util
import mmap
import os
from pathlib import Path


def is_known_flag(flag: str) -> bool:
    """Whether this version of XLA has a flag; it ends the process on one that it does not know.

    A flag's name is a C string; a removed flag may still be named in a descriptor, without zeros around it.
    """
    spec = importlib.util.find_spec("jaxlib")
    assert spec is not None
    assert spec.origin is not None
    for library in Path(spec.origin).parent.glob("libjax_common.so"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"\0" + flag.encode() + b"\0") >= 0
    return False


for _flag, _value in (("xla_backend_optimization_level", "0"), ("xla_cpu_use_fusion_emitters", "false")):
    if _flag not in os.environ.get("XLA_FLAGS", "") and is_known_flag(_flag):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_flag}={_value}".strip()

from tests import shape_checks  # noqa: E402, imports JAX, which reads the flags

shape_checks.install()
