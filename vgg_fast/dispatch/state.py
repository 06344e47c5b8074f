"""The backend in force, for the whole process. Imports nothing of vgg_fast.

Of the process, not of a thread: a backward pass runs in threads of PyTorch's own, and must reach
the same kernels as the forward pass did.
"""

from __future__ import annotations

NAMES = ("auto", "cpp", "triton", "reference")
"""What a backend may be called."""

_backend = "auto"


def get() -> str:
    """The backend in force, one of :data:`NAMES`."""
    return _backend


def put(name: str) -> None:
    """Put the backend ``name``, one of :data:`NAMES`, in force."""
    global _backend
    _backend = name
