"""The host memory of a process that runs for days."""

import ctypes


def release_memory() -> bool:
    """Gives what the allocator keeps free to the operating system; whether there was any. Without glibc, nothing.

    glibc alone does so only for the end of its heap: what compiling took, hundreds of megabytes, stayed for hundreds of
    steps, then went at once. Takes some 20 ms.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
