"""Which kernel runs an operator: ``"auto"``, ``"cpp"``, ``"triton"`` or ``"reference"``.

``auto`` takes the fastest that this machine has: the C++ kernels on CPU; on a GPU what the table of
:mod:`vgg_fast.dispatch.choices` says for the shape, of Triton, CUDA C++ and PyTorch with cuDNN
(``reference``); elsewhere the plain-PyTorch reference.

The choice holds for the whole process, as ``torch.backends`` does: a backward pass runs in threads
of PyTorch's own, and must reach the same kernels as the forward pass did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vgg_fast.dispatch import route, state
from vgg_fast.dispatch.state import NAMES, get

__all__ = ["NAMES", "get", "set", "use"]


def set(name: str) -> None:
    """Make ``name`` the backend of every operator from now on.

    Args:
        name: one of :data:`NAMES`.

    Raises:
        ValueError: ``name`` is none of :data:`NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"there is no backend {name!r}: choose one of {', '.join(NAMES)}")
    if name != "auto":
        route.route_cpu_through_python()
    state.put(name)


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Make ``name`` the backend inside a ``with`` block.

    Args:
        name: one of :data:`NAMES`.

    Raises:
        ValueError: ``name`` is none of :data:`NAMES`.

    >>> with vgg_fast.backends.use("reference"):
    ...     y = model(x)
    """
    before = get()
    set(name)
    try:
        yield
    finally:
        set(before)
