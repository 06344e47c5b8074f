"""How an operator's Python half is registered, and which kernel a call of it reaches.

A kernel is looked up by PyTorch's dispatcher wherever that is enough: CPU tensors go straight to
C++. Where there is a choice to make (a CUDA tensor, or a backend that the user forced), a kernel
written in Python stands in front and picks one.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgg_fast import _extension, backends
from vgg_fast.dispatch import choices
from vgg_fast.dispatch.tiles import precision

_library = torch.library.Library("vgg_fast", "IMPL")
_references: dict[str, Callable] = {}
# (operator, dispatch key) -> the C++ kernel; for CUDA with Hopper's own instructions too
_native: dict[tuple[str, str], Callable | None] = {}
_hopper: dict[str, Callable] = {}
# (operator, dispatch key) pairs whose calls pass through Python
_routed: set[tuple[str, str]] = set()


def register(
    name: str,
    *,
    reference: Callable,
    fake: Callable,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
) -> None:
    """Register the reference, fake kernel and autograd formula of ``vgg_fast::name``.

    The reference serves every device that has no kernel of its own. An operator without a
    ``backward`` refuses, in one sentence, to be differentiated.
    """
    _references[name] = reference
    qualified = f"vgg_fast::{name}"
    torch.library.register_fake(qualified, fake)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_autograd(
        qualified, backward or _refuse_second_derivative, setup_context=setup_context
    )
    if torch.version.cuda is not None:
        _route_through_python(name, "CUDA")


def register_autocast(name: str) -> None:
    """Under autocast, cast the floating-point arguments of ``vgg_fast::name`` to its dtype."""
    op = getattr(torch.ops.vgg_fast, name).default

    def cast_and_call(device_type: str, key: torch._C.DispatchKey, *args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op(*(_cast(arg, device_type, dtype) for arg in args))

    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        dispatch_key = getattr(torch._C.DispatchKey, key)
        _library.impl(
            name,
            lambda *args, d=device_type, k=dispatch_key: cast_and_call(d, k, *args),
            key,
        )


def route_cpu_through_python() -> None:
    """Let :mod:`vgg_fast.backends` choose for CPU tensors too.

    Not done before a backend is first forced: until then a CPU call costs no Python.
    """
    for name in _references:
        if (name, "CPU") not in _routed:
            _route_through_python(name, "CPU")


def kernel_for(name: str, key: str, *args: Any) -> tuple[str, Callable]:
    """The backend that a call of ``vgg_fast::name`` with ``args`` takes, and its kernel.

    Asking changes nothing: CPU calls go on reaching C++ without Python.

    Raises:
        RuntimeError: the backend in force can't run this call on this machine.
    """
    chosen = backends.get()
    if chosen == "auto":
        return _fastest(name, key, args)
    native = _native_kernel(name, key)
    if chosen == "cpp":
        if native is None:
            raise RuntimeError(
                f"vgg_fast::{name}: no C++ kernel is built for {key}; python -m vgg_fast.info "
                "shows what is. Use the backend 'auto'"
            )
        return "cpp", native
    if chosen == "triton":
        kernel, why_not = _triton_kernel(name, key)
        if kernel is None:
            raise RuntimeError(f"vgg_fast::{name}: the backend 'triton' can't run: {why_not}")
        return "triton", kernel
    return "reference", _references[name]


def _fastest(name: str, key: str, args: tuple) -> tuple[str, Callable]:
    native = _native_kernel(name, key)
    if key == "CPU" and native is not None:
        return "cpp", native
    for row in choices.order(name, args) if key == "CUDA" else ():
        if row.backend == choices.HOPPER and name in _hopper:
            return choices.HOPPER, _hopper[name]
        if row.backend == "cpp" and native is not None:
            return "cpp", native
        if row.backend == "triton":
            kernel, _ = _triton_kernel(name, key)
            if kernel is not None:
                return "triton", kernel
        if row.backend == "reference":
            break
    return "reference", _references[name]


def _route_through_python(name: str, key: str) -> None:
    # Looked up now: afterwards the dispatcher would find what is registered here.
    native = _native_kernel(name, key)
    if native is not None and key == "CUDA" and _extension.has_hopper_kernels():
        _hopper[name] = _boxed_kernel(name, key, hopper=True)

    def choose(*args: Any) -> Any:
        return kernel_for(name, key, *args)[1](*args)

    with warnings.catch_warnings():
        # torch 2.11 warns of the override all the same.
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        warnings.filterwarnings("ignore", ".*[Oo]verriding a previously registered kernel")
        _library.impl(name, choose, key, allow_override=True)
    _routed.add((name, key))


def _native_kernel(name: str, key: str) -> Callable | None:
    """The C++ kernel, or None where none is built."""
    if (name, key) not in _native:
        built = torch._C._dispatch_has_kernel_for_dispatch_key(f"vgg_fast::{name}", key)
        _native[name, key] = _boxed_kernel(name, key) if built else None
    return _native[name, key]


def _boxed_kernel(name: str, key: str, hopper: bool = False) -> Callable:
    kernel = torch.library.get_kernel(f"vgg_fast::{name}", key)
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    if key != "CUDA":
        return lambda *args: kernel.call_boxed(keyset, *args)

    def call(*args: Any) -> Any:
        _extension.set_cuda(precision(args[0].dtype) == "tf32", hopper)
        return kernel.call_boxed(keyset, *args)

    return call


def _triton_kernel(name: str, key: str) -> tuple[Callable | None, str]:
    try:
        module = importlib.import_module(f"vgg_fast.triton.{name.removesuffix('_backward')}")
    except ImportError as error:
        return None, f"triton isn't installed ({error})"
    if key == "CPU" and not module.INTERPRETED:
        return None, "CPU tensors need TRITON_INTERPRET=1, set before Python starts"
    return getattr(module, name), ""


def _cast(value: Any, device_type: str, dtype: torch.dtype) -> Any:
    if (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
        and value.device.type == device_type
    ):
        return value.to(dtype)
    return value


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> Any:
    raise RuntimeError(
        "vgg_fast: the backward operators can't be differentiated a second time; for second "
        "derivatives use torch.nn.functional.conv2d, relu and max_pool2d (vgg_fast.unfuse)"
    )
