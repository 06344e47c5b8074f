"""Which kernel runs an operator: ``"auto"``, ``"cpp"``, ``"triton"`` or ``"reference"``.

``auto`` takes the fastest that this machine has: the C++ kernels on CPU; on a GPU what the table of
choices.py says for the shape, of Triton, CUDA C++ and PyTorch with cuDNN (``reference``); elsewhere
the plain-PyTorch reference.

The choice holds for the whole process, as ``torch.backends`` does: a backward pass runs in threads
of PyTorch's own, and has to meet the same kernels as the forward pass did.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

NAMES = ("auto", "cpp", "triton", "reference")

_current = "auto"


def get() -> str:
    """The backend in force."""
    return _current


def set(name: str) -> None:
    """Make ``name`` the backend of every operator from now on.

    Raises:
        ValueError: ``name`` is none of :data:`NAMES`.
    """
    global _current
    if name not in NAMES:
        raise ValueError(f"there is no backend {name!r}: choose one of {', '.join(NAMES)}")
    from vgg_fast.dispatch import registry

    if name != "auto":
        registry.route_cpu_through_python()
    _current = name


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Make ``name`` the backend inside a ``with`` block.

    >>> with vgg_fast.backends.use("reference"):
    ...     y = model(x)
    """
    before = get()
    set(name)
    try:
        yield
    finally:
        set(before)


def from_environment() -> None:
    """Take the backend that ``VGG_FAST_BACKEND`` names, if it is set. Called once, at import."""
    name = os.environ.get("VGG_FAST_BACKEND", "").strip()
    if name and name not in NAMES:
        raise ValueError(
            f"VGG_FAST_BACKEND={name!r} names no backend: choose one of {', '.join(NAMES)}"
        )
    if name:
        set(name)
