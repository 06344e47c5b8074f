"""Memory whose every fresh byte is 0xFF, so that a value that nobody wrote shows as a NaN."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch

M_PERTURB = -6  # of glibc's <malloc.h>: fresh memory is filled with the complement of this byte


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill PyTorch's fresh tensors with NaN, and the C library's fresh memory with 0xFF.

    A C library without ``mallopt`` leaves it at the tensors.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if mallopt:
        mallopt(M_PERTURB, 0x100)  # not 0, which would mean "off"; the low byte counts
    try:
        yield
    finally:
        if mallopt:
            mallopt(M_PERTURB, 0)
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(deterministic)
