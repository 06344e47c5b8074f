"""Which kernel a call of an operator reaches.

A kernel is looked up by PyTorch's dispatcher wherever that is enough: CPU tensors go straight to
C++. Where there is a choice to make (a CUDA tensor, or a backend that the user forced), a kernel
written in Python stands in front and picks one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vgg_fast import _extension
from vgg_fast.dispatch import architectures, choices, environment, policy, state
from vgg_fast.dispatch.folding import fold
from vgg_fast.dispatch.policy import precision


class Later(NamedTuple):
    """The last arguments of an operator.

    Every kernel computes with a scale and a slope. Another padding than zeros only the reference
    and C++ on a CPU know, and no other kernel is told of one.
    """

    scale: Tensor | None = None
    negative_slope: float = 0.0
    padding: str = "zeros"

    @property
    def is_served(self) -> bool:
        """Whether every kernel serves the call."""
        return self.padding == "zeros"


class PythonHalf(NamedTuple):
    """What the kernels of an operator that are written in Python have in common."""

    name: str
    check: Callable
    """Refuses what no kernel takes. The C++ kernels refuse it themselves."""
    reference: Callable
    """The operator by PyTorch, which takes what the check lets through."""

    early: int
    """How many arguments come before the later ones."""

    later: tuple[str, ...]
    """Which of the later ones the operator has."""

    @property
    def told(self) -> int:
        """How many arguments a kernel takes that knows zeros around the map alone."""
        return self.early + len(self.later) - ("padding" in self.later)

    @property
    def is_composed(self) -> bool:
        """Whether the reference consists of public operators, which choose their own kernels.

        Then it serves whatever the backend in force has no kernel for.
        """
        return self.name.startswith("_")


_library = torch.library.Library("vgg_fast", "IMPL")
_operators: dict[str, PythonHalf] = {}
# (operator, dispatch key) -> the C++ kernel; for CUDA with Hopper's own instructions too
_native: dict[tuple[str, str], Callable | None] = {}
_sm90: dict[str, Callable] = {}
# (operator, dispatch key) pairs whose calls pass through Python
_routed: set[tuple[str, str]] = set()


def add(name: str, check: Callable, reference: Callable) -> None:
    """Route the calls of ``vgg_fast::name`` from now on."""
    schema = getattr(torch.ops.vgg_fast, name).default._schema
    later = tuple(a.name for a in schema.arguments if a.name in Later._fields)
    _operators[name] = PythonHalf(name, check, reference, len(schema.arguments) - len(later), later)
    if torch.version.cuda is not None:
        _route_through_python(name, "CUDA")


def route_cpu_through_python() -> None:
    """Let the backend in force decide for CPU tensors too.

    Not done before a backend is first forced: until then a CPU call costs no Python.
    """
    for name in _operators:
        if (name, "CPU") not in _routed:
            _route_through_python(name, "CPU")


def kernel_for(name: str, key: str, *args: Any) -> tuple[str, Callable]:
    """The backend that a call of ``vgg_fast::name`` with ``args`` takes, and its kernel.

    Asking changes nothing: CPU calls go on reaching C++ without Python.

    Raises:
        RuntimeError: the backend in force can't run this call on this machine.
    """
    chosen, half = state.get(), _operators[name]
    if chosen == "auto":
        return _fastest(name, key, args)
    if chosen == "reference":
        return "reference", half.reference
    kernel, why_not = _forced(chosen, name, key, args)
    if kernel is not None:
        return chosen, kernel
    if half.is_composed:
        return "reference", half.reference
    raise RuntimeError(f"vgg_fast::{name}: {why_not}")


def _forced(chosen: str, name: str, key: str, args: tuple[Any, ...]) -> tuple[Callable | None, str]:
    """The kernel of the backend ``chosen``, or None and the reason why there is none."""
    if chosen == "cpp":
        kernel = _native_kernel(name, key)
        if kernel is None:
            return None, (
                f"no C++ kernel is built for {key}; python -m vgg_fast.info shows what is. Use the "
                "backend 'auto'"
            )
        if key == "CPU":
            return kernel, ""
        if why_not := architectures.why_not(_gpu_of(args)):
            return None, why_not
    else:
        kernel, why_not = _triton_kernel(name, key)
        if kernel is None:
            return None, f"the backend 'triton' can't run: {why_not}"
    if not _later(name, args).is_served:
        return None, (
            f"the backend {chosen!r} has no kernel for {key} with another padding than zeros; use "
            "the backend 'auto'"
        )
    return _without_padding(name, kernel, args), ""


def planned(layer: choices.Layer, family: str) -> tuple[str, str]:
    """The backend that ``layer`` takes on a GPU of ``family``, in this machine or not, and why.

    A forced backend is every layer's; "auto" asks the table, as if the C++ kernels were built.
    """
    if state.get() != "auto":
        return state.get(), "forced"
    row = choices.for_layer(layer, family)
    return (row.backend, row.origin) if row else ("reference", "")


def _fastest(name: str, key: str, args: tuple[Any, ...]) -> tuple[str, Callable]:
    native = _native_kernel(name, key)
    if key == "CPU" and native is not None:
        return "cpp", native
    later = _later(name, args)
    for row in choices.order(name, args) if key == "CUDA" and later.is_served else ():
        if row.backend == choices.HOPPER and name in _sm90 and _has_code_for(args):
            return choices.HOPPER, _without_padding(name, _sm90[name], args)
        if row.backend == "cpp" and native is not None and _has_code_for(args):
            return "cpp", _without_padding(name, native, args)
        if row.backend == "triton":
            kernel, _ = _triton_kernel(name, key)
            if kernel is not None:
                return "triton", _without_padding(name, kernel, args)
        if row.backend == "reference":
            break
    half = _operators[name]
    if half.is_composed:
        return "reference", half.reference
    # Multiplying the sums would take a convolution in 32 bits. But a float16 weight times a scale
    # may leave its range.
    if later.scale is not None and args[0].dtype != torch.float16:
        return "reference", _folding(name, half.reference, later.scale)
    return "reference", half.reference


def _has_code_for(args: tuple[Any, ...]) -> bool:
    """Whether the CUDA C++ kernels, where they are built, run on the GPU of a call."""
    return not architectures.why_not(_gpu_of(args))


def _gpu_of(args: tuple[Any, ...]) -> int | None:
    """The GPU of a call; None, which is the current one, if its first tensor is on none."""
    device = args[0].device
    return device.index if device.type == "cuda" else None


def _later(name: str, args: tuple[Any, ...]) -> Later:
    half = _operators[name]
    return Later(**dict(zip(half.later, args[half.early :], strict=False)))


def _without_padding(name: str, kernel: Callable, args: tuple[Any, ...]) -> Callable:
    """``kernel``, which isn't told of the padding: of zeros, whoever calls it says so or not."""
    told = _operators[name].told
    return kernel if len(args) <= told else lambda *given: kernel(*given[:told])


def _folding(name: str, kernel: Callable, scale: Tensor) -> Callable:
    """``kernel``, which is given the scale as a part of weight and bias."""
    early = _operators[name].early

    def call(*args: Any) -> Any:
        input, weight, bias, *rest = args[:early]
        folded = fold(weight, bias, scale)
        return kernel(input, *folded, *rest, None, *args[early + 1 :])

    return call


def _route_through_python(name: str, key: str) -> None:
    # Looked up now: afterwards the dispatcher would find what is registered here.
    native = _native_kernel(name, key)
    if native is not None and _is_cuda_convolution(name, key) and _extension.has_sm90_kernels():
        _sm90[name] = _cuda_convolution(name, sm90=True)

    check = _operators[name].check

    def choose(*args: Any) -> Any:
        backend, kernel = kernel_for(name, key, *args)
        if backend in ("triton", "reference"):
            check(*args)
        return kernel(*args)

    with warnings.catch_warnings():
        # torch 2.11 warns of the override anyway.
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        warnings.filterwarnings("ignore", ".*[Oo]verriding a previously registered kernel")
        _library.impl(name, choose, key, allow_override=True)
    _routed.add((name, key))


def _native_kernel(name: str, key: str) -> Callable | None:
    """The C++ kernel, or None where none is built."""
    if (name, key) not in _native:
        cuda = _is_cuda_convolution(name, key)
        registered = _cuda_name(name) if cuda else f"vgg_fast::{name}"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(registered, key):
            _native[name, key] = None
        elif cuda:
            _native[name, key] = _cuda_convolution(name, sm90=False)
        else:
            call_boxed, keyset = _boxed(registered, key)
            _native[name, key] = functools.partial(call_boxed, keyset)
    return _native[name, key]


def _boxed(registered: str, key: str) -> tuple[Callable, torch._C.DispatchKeySet]:
    kernel = torch.library.get_kernel(registered, key)
    return kernel.call_boxed, torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))


def _is_cuda_convolution(name: str, key: str) -> bool:
    return key == "CUDA" and not name.startswith("max_pool2x2")


def _cuda_name(name: str) -> str:
    """What the CUDA C++ kernel that takes our decisions is registered as."""
    return f"vgg_fast::_cuda_{name.removeprefix('_')}"


def _cuda_convolution(name: str, sm90: bool) -> Callable:
    """The CUDA C++ kernel, told how to multiply; with Hopper's own kernels if ``sm90``.

    Raises:
        RuntimeError: ``VGG_FAST_GPU`` asks for kernels that can't run; once it is called.
    """
    call_boxed, keyset = _boxed(_cuda_name(name), "CUDA")

    def call(*args: Any) -> Any:
        forced = environment.gpu_kernels()
        # The table only prefers them. Forced, they must run: the operator refuses what can't.
        wanted = forced == "sm_90a" or (
            sm90 and not forced and policy.has_sm90(args[0].device.index)
        )
        return call_boxed(keyset, precision(args[0].dtype) == "tf32", wanted, *args)

    return call


def _triton_kernel(name: str, key: str) -> tuple[Callable | None, str]:
    """The Triton kernel, or None and the reason why there is none."""
    try:
        module = _triton_module("frozen" if name[0] == "_" else name.removesuffix("_backward"))
    except ImportError as error:
        return None, f"triton isn't installed ({error})"
    if key == "CPU" and not module.INTERPRETED:
        return None, "CPU tensors need TRITON_INTERPRET=1, set before Python starts"
    return getattr(module, name), ""


def _triton_module(operator: str) -> ModuleType:
    # Imported when first needed: it takes a second, and not every platform has Triton.
    from vgg_fast.triton import conv3x3, conv3x3_relu, conv3x3_relu_pool, frozen, max_pool2x2

    return {
        "frozen": frozen,
        "conv3x3": conv3x3,
        "conv3x3_relu": conv3x3_relu,
        "conv3x3_relu_pool": conv3x3_relu_pool,
        "max_pool2x2": max_pool2x2,
    }[operator]
