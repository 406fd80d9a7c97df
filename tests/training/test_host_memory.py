"""Freed memory returns to the operating system, even below a block that is still in use."""

import os
import sys
from pathlib import Path

import pytest

from g1jax.training.host_memory import release_memory

STATM = Path("/proc/self/statm")
BLOCK, COUNT = 100_000, 1000  # bytes; small enough to lie in the heap


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap, and Linux's count of its pages")
def test_free_memory_is_released() -> None:
    blocks = [bytearray(b"x" * BLOCK) for _ in range(COUNT)]
    kept = blocks[-1]
    blocks.clear()
    before = resident_bytes()
    assert release_memory()
    assert before - resident_bytes() > 0.5 * BLOCK * COUNT
    assert kept == b"x" * BLOCK
    again = resident_bytes()
    release_memory()
    assert abs(again - resident_bytes()) < 0.1 * BLOCK * COUNT, "nothing is left to release"
