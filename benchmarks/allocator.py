"""The C library's memory during a benchmark."""

from __future__ import annotations

import ctypes

# Of glibc's <malloc.h>.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, rather than give it back to the system.

    By default it gives maps of 32 MiB and more back at once, and others when many are freed. Each
    of their pages then comes anew at the next call, whoever computes: a virtual machine may take as
    long for that as for the convolution, or not, as its host has memory at hand.

    Returns:
        False if the C library has no such settings; then nothing has changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
