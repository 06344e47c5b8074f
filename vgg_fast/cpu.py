"""How the CPU kernels work: by which algorithm, and with how much extra memory.

Winograd's algorithms transform the weight first. A weight that comes with the same contents again,
as in inference, is kept transformed, and freed with its layer; one that changes, as in training,
isn't.

The kernels choose by themselves, per shape; what is set here overrides them, for the whole process.
``direct`` follows the definition; ``winograd4`` needs a quarter of its multiplications and rounds
more (over VGG-11's layers a relative L2 error of 3.2·10⁻⁷ instead of 2.2·10⁻⁷ in float32);
``winograd2`` needs less than half, rounds as finely as ``direct``, and suits the smallest images.
``amx`` follows the definition for bfloat16 on a processor's matrix tiles (Intel AMX), and is
``direct`` elsewhere. ``winograd4_amx`` is ``winograd4`` for float32 on such tiles, by six products
of bfloat16 terms, which round no more than it does; elsewhere, and for a weight's gradient, it is
``winograd4``. float64 is always computed directly.

With matrix tiles, ``torch.backends.mkldnn.conv.fp32_precision`` counts, a permission that is looked
up at each call: ``"tf32"`` lets float32 be multiplied by three products (a relative error of
2·10⁻⁵), and ``"bf16"`` as bfloat16 (2·10⁻³). Sums and results stay float32. Without tiles it would
gain nothing, and changes nothing.
"""

from __future__ import annotations

import contextlib
import enum
import operator
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

ALGORITHMS = tuple(_bindings.cpu_algorithms())
"""The names that :func:`set` takes for an algorithm; "auto" leaves the choice to the kernels."""

_MEBIBYTE = 1 << 20
_MOST_MEBIBYTES = 10**9  # as in the environment variables
_MOST_ELEMENTS = 1 << 46  # of an address space of 48 bits
_MOST_THREADS = 1 << 16
_STORAGES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PRECISIONS = ("ieee", "tf32", "bf16")  # and "none", which is "ieee"


class Settings(NamedTuple):
    """What overrides the kernels' own choice."""

    algorithm: str = "auto"
    """One of :data:`ALGORITHMS`."""

    workspace: int | None = None
    """MiB that one call may take in addition to its tensors; None: no limit."""

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


class _Unchanged(enum.Enum):
    """The default of what isn't named: None has a meaning of its own."""

    UNCHANGED = enum.auto()

    def __repr__(self) -> str:
        return "unchanged"


_UNCHANGED = _Unchanged.UNCHANGED


def set(
    algorithm: str | _Unchanged = _UNCHANGED,
    workspace: int | _Unchanged | None = _UNCHANGED,
    weight_cache: int | _Unchanged = _UNCHANGED,
) -> None:
    """Override the kernels' choice from now on. What isn't named stays as it is.

    Args:
        algorithm: one of :data:`ALGORITHMS`; ``"auto"`` leaves the choice to the kernels again.
        workspace: MiB that one call may take in addition to its tensors. Where an algorithm needs
            more, the direct algorithm runs, with one warning in a process. None: no limit.
        weight_cache: MiB of transformed weights that are kept between calls, four times their size;
            beyond it, those that were used longest ago are freed. 0: none is kept.

    Raises:
        ValueError: there is no such algorithm, or a number of MiB is negative, or has more
            than nine digits.
        TypeError: a number of MiB isn't a whole number.
    """
    now = get()
    if isinstance(algorithm, _Unchanged):
        algorithm = now.algorithm
    elif algorithm not in ALGORITHMS:
        raise ValueError(
            f"there is no algorithm {algorithm!r}: choose one of {', '.join(ALGORITHMS)}"
        )
    if isinstance(workspace, _Unchanged):
        workspace = now.workspace
    elif workspace is not None:
        workspace = _mebibytes("workspace", workspace, " or None")
    if isinstance(weight_cache, _Unchanged):
        weight_cache = now.weight_cache
    else:
        weight_cache = _mebibytes("weight_cache", weight_cache)
    torch.ops.vgg_fast.set_cpu_settings(
        ALGORITHMS.index(algorithm),
        -1 if workspace is None else workspace * _MEBIBYTE,
        weight_cache * _MEBIBYTE,
    )


def _mebibytes(name: str, value: object, alternative: str = "") -> int:
    number = _whole_number(name, value, f" of MiB{alternative}")
    if not 0 <= number < _MOST_MEBIBYTES:
        raise ValueError(
            f"{name} must be a number of MiB below {_MOST_MEBIBYTES}{alternative}, "
            f"but it is {number}"
        )
    return number


@contextlib.contextmanager
def use(
    algorithm: str | _Unchanged = _UNCHANGED,
    workspace: int | _Unchanged | None = _UNCHANGED,
    weight_cache: int | _Unchanged = _UNCHANGED,
) -> Iterator[None]:
    """Override the kernels' choice inside a ``with`` block. What isn't named stays as it is.

    Args:
        algorithm: as in :func:`set`.
        workspace: as in :func:`set`.
        weight_cache: as in :func:`set`.

    Raises:
        ValueError: as :func:`set`.
        TypeError: as :func:`set`.

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

    Args:
        *modules: whose weights on the CPU are meant; on a GPU nothing is kept.

    >>> with vgg_fast.cpu.frozen(model), torch.inference_mode():
    ...     y = model(x)

    Raises:
        TypeError: one of ``modules`` isn't an ``nn.Module``.
        ValueError: one of them is lazy, and its weights don't exist yet.
    """
    for module in modules:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"frozen: takes models (nn.Module), but got {module!r}")
        for name, parameter in module.named_parameters():
            if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
                raise ValueError(
                    f"frozen: {name} is lazy and not initialised yet; run one batch through the "
                    "model first"
                )
    held = [  # alive, so that nothing else comes to lie at their addresses
        weight.detach()
        for module in modules
        for weight in module.parameters()
        if weight.device.type == "cpu" and weight.layout == torch.strided and weight.dim() == 4
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
    """Free the memory that the kernels keep for their next call, transformed weights included.

    Returns:
        The number of bytes freed.
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
        images: N.
        in_channels: C.
        height: H, of input and output alike.
        width: W, likewise.
        out_channels: K.
        dtype: of the tensors.
        threads: how many share the work; None: as many as torch uses.

    Returns:
        for "forward", "input gradient" and "weight gradient": the "algorithm", into how many
        "pieces" the work is cut, what the largest of them spans, and its "workspace" in bytes.
        A direct convolution of 16 pixels or fewer has "by": "gemv", dot products with the weight
        in any dense layout. "winograd4_amx" has its number of "products", 6 or 3. A weight gradient
        says how its "sums" are kept: "shared" by all threads, "in parts" (and how many "parts") or
        "in blocks".

    Raises:
        ValueError: a number is less than 1, a tensor of that shape has more elements than a
            machine can address, or the dtype isn't served.
        TypeError: a number isn't a whole one.
    """
    numbers = [
        _whole_number(name, number)
        for name, number in (
            ("images", images),
            ("in_channels", in_channels),
            ("height", height),
            ("width", width),
            ("out_channels", out_channels),
        )
    ]
    images, in_channels, height, width, out_channels = numbers
    threads = torch.get_num_threads() if threads is None else _whole_number("threads", threads)
    if min(*numbers, threads) < 1:
        raise ValueError(
            f"a plan needs sizes and threads of at least 1, but got {tuple(numbers)}, {threads}"
        )
    largest = max(
        images * height * width * max(in_channels, out_channels), 9 * in_channels * out_channels
    )
    for what, number, most in (
        ("elements in a tensor", largest, _MOST_ELEMENTS),
        ("threads", threads, _MOST_THREADS),
    ):
        if number > most:
            raise ValueError(f"a plan is made for {most} {what} at most, but got {number}")
    if dtype not in _STORAGES:
        raise ValueError(f"the kernels serve {', '.join(map(str, _STORAGES))}, but not {dtype}")
    algorithm, workspace, _ = torch.ops.vgg_fast.cpu_settings()
    # torch's module of these switches is an object without types.
    switches: Any = torch.backends.mkldnn
    allowed = switches.conv.fp32_precision
    precision = _PRECISIONS.index(allowed) if allowed in _PRECISIONS else 0
    options = (_STORAGES.index(dtype), precision, threads, algorithm, workspace)
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


def _whole_number(name: str, value: object, of_what: str = "") -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be a whole number{of_what}, but it is {value!r}") from None
