"""How the C library hands out memory while a model trains on CPU."""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_LARGE = 2_000_000_000
_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors for the next ones, for the rest of the process.

    It gives back to the system what is larger than 32 MB, and the end of its heap, each time it is freed. The same
    tensors are needed again in the next micro-batch, and then every page of them is a page fault.

    Settings that the user made in the environment stay as they are.

    Returns:
        whether it was done; not without glibc (macOS, Windows, Alpine).
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    settings = {_M_MMAP_THRESHOLD: _LARGE, _M_TRIM_THRESHOLD: _LARGE, _M_TOP_PAD: _PAD}
    mallopt = ctypes.CDLL(None).mallopt
    taken = [mallopt(key, value) for key, value in settings.items()]  # all of them, also behind one that is refused
    return all(taken)
