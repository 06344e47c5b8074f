"""How the CPU kernels work: by which algorithm, and with how much memory beside the tensors.

Winograd's algorithms transform the weight first. A weight that comes with the same contents again,
as in inference, is kept transformed, and freed with its layer; one that changes, as in training,
isn't.

The kernels choose by themselves, per shape; what is set here overrides them, for the whole process.
``direct`` follows the definition; ``winograd4`` needs a quarter of its multiplications and rounds
about twice as coarsely (relative error 10⁻⁶ instead of 5·10⁻⁷ in float32); ``winograd2`` lies
between the two, and suits the smallest images. ``matrix`` follows the definition for bfloat16 on a
processor's matrix tiles (AMX), and is ``direct`` elsewhere. float64 is always computed directly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

import vgg_fast.ops  # noqa: F401  (loads the operators)
from vgg_fast import _bindings

__all__ = [
    "ALGORITHMS",
    "Settings",
    "frozen",
    "frozen_weights",
    "get",
    "kept_weights",
    "plan",
    "release_workspaces",
    "set",
    "use",
]

ALGORITHMS = ("auto", "direct", "winograd2", "winograd4", "matrix")

_MEBIBYTE = 1 << 20
_MOST_MEBIBYTES = 10**9  # as in the environment variables
_STORAGES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Settings(NamedTuple):
    """What overrides the kernels' own choice."""

    algorithm: str = "auto"
    """One of :data:`ALGORITHMS`."""

    workspace: int | None = None
    """MiB that one call may take beside its tensors; None: as many as it likes."""

    weight_cache: int = 512
    """MiB of transformed weights that are kept between calls; 0 keeps none."""


def get() -> Settings:
    """The settings in force.

    They begin as the environment variables VGG_FAST_ALGORITHM, VGG_FAST_WORKSPACE and
    VGG_FAST_WEIGHT_CACHE (both in MiB) say.

    Raises:
        RuntimeError: one of the variables makes no sense.
    """
    algorithm, workspace, weight_cache = torch.ops.vgg_fast.cpu_settings()
    return Settings(
        ALGORITHMS[algorithm],
        None if workspace < 0 else workspace // _MEBIBYTE,
        weight_cache // _MEBIBYTE,
    )


def set(
    algorithm: str = Settings().algorithm,
    workspace: int | None = Settings().workspace,
    weight_cache: int = Settings().weight_cache,
) -> None:
    """Override the kernels' choice from now on; without arguments, leave it to them again.

    Args:
        algorithm: one of :data:`ALGORITHMS`.
        workspace: MiB that one call may take beside its tensors. Where Winograd needs more, the
            direct algorithm is taken, and says so once in a process. None: no limit.
        weight_cache: MiB of transformed weights that are kept between calls, four times their size;
            beyond it, those that were used longest ago are freed. 0: none is kept.

    Raises:
        ValueError: there is no such algorithm, or a number of MiB is negative, or has more
            than nine digits.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"there is no algorithm {algorithm!r}: choose one of {', '.join(ALGORITHMS)}"
        )
    if workspace is not None and not 0 <= workspace < _MOST_MEBIBYTES:
        raise ValueError(
            f"workspace must be a number of MiB below {_MOST_MEBIBYTES} or None, "
            f"but it is {workspace}"
        )
    if not 0 <= weight_cache < _MOST_MEBIBYTES:
        raise ValueError(
            f"weight_cache must be a number of MiB below {_MOST_MEBIBYTES}, "
            f"but it is {weight_cache}"
        )
    torch.ops.vgg_fast.set_cpu_settings(
        ALGORITHMS.index(algorithm),
        -1 if workspace is None else workspace * _MEBIBYTE,
        weight_cache * _MEBIBYTE,
    )


@contextlib.contextmanager
def use(
    algorithm: str = Settings().algorithm,
    workspace: int | None = Settings().workspace,
    weight_cache: int = Settings().weight_cache,
) -> Iterator[None]:
    """Override the kernels' choice inside a ``with`` block.

    >>> with vgg_fast.cpu.use("direct"):
    ...     y = model(x)
    """
    before = get()
    set(algorithm, workspace, weight_cache)
    try:
        yield
    finally:
        set(*before)


@contextlib.contextmanager
def frozen(*modules: torch.nn.Module) -> Iterator[None]:
    """Promise that the convolutions' weights of ``modules`` don't change inside a ``with`` block.

    Otherwise whatever writes to a weight is noticed, because its contents are compared at every
    call. Here they aren't: each weight is kept transformed from its first call on, and what writes
    to it has no effect until the block ends. Weights beyond ``weight_cache`` aren't kept.

    >>> with vgg_fast.cpu.frozen(model), torch.inference_mode():
    ...     y = model(x)
    """
    held = [  # alive, so that nothing else comes to lie at their addresses
        weight.detach()
        for module in modules
        for weight in module.parameters()
        if weight.device.type == "cpu" and weight.dim() == 4
    ]
    for weight in held:
        torch.ops.vgg_fast.freeze_cpu_weight(weight.data_ptr(), True)
    try:
        yield
    finally:
        for weight in held:
            torch.ops.vgg_fast.freeze_cpu_weight(weight.data_ptr(), False)


def frozen_weights() -> int:
    """How many weights :func:`frozen` holds now."""
    return int(torch.ops.vgg_fast.frozen_cpu_weights())


def kept_weights() -> int:
    """Bytes of transformed weights that are kept now."""
    return int(torch.ops.vgg_fast.kept_cpu_weights())


def release_workspaces() -> int:
    """Give memory that the kernels keep for their next call, transformed weights too, back to the
    system.

    Returns:
        the number of bytes.
    """
    return int(torch.ops.vgg_fast.release_cpu_workspaces())


def plan(
    images: int,
    in_channels: int,
    height: int,
    width: int,
    out_channels: int,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> dict[str, dict[str, Any]]:
    """What the kernels would do for a convolution of this shape, under the settings in force.

    Args:
        images, in_channels, height, width: N, C, H and W of the input.
        out_channels: K.
        dtype: of the tensors.
        threads: None: as many as torch uses.

    Returns:
        for "forward", "input gradient" and "weight gradient": the "algorithm", into how many
        "pieces" the work is cut, what the largest of them spans, and its "workspace" in bytes.
        A few pixels are convolved directly "by" dot products, in any dense layout of the weight.

    Raises:
        ValueError: a number is less than 1, or the dtype isn't served.
    """
    numbers = (images, in_channels, height, width, out_channels)
    threads = torch.get_num_threads() if threads is None else threads
    if min(*numbers, threads) < 1:
        raise ValueError(
            f"a plan needs sizes and threads of at least 1, but got {numbers}, {threads}"
        )
    if dtype not in _STORAGES:
        raise ValueError(f"the kernels serve {', '.join(map(str, _STORAGES))}, but not {dtype}")
    algorithm, workspace, _ = torch.ops.vgg_fast.cpu_settings()
    options = (_STORAGES.index(dtype), threads, algorithm, workspace)
    size = (height, width)
    return {
        "forward": _bindings.plan_convolution(
            images, in_channels, out_channels, *size, *options, False
        ),
        "input gradient": _bindings.plan_convolution(
            images, out_channels, in_channels, *size, *options, True
        ),
        "weight gradient": _bindings.plan_weight_gradient(
            images, in_channels, out_channels, *size, *options, False
        ),
    }
