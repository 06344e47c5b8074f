"""Registers what Python owns of an operator: reference, fake kernel, autograd, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vgg_fast.dispatch import route

_library = torch.library.Library("vgg_fast", "IMPL")


def register(
    name: str,
    *,
    check: Callable,
    reference: Callable,
    fake: Callable,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
) -> None:
    """Register the Python half of ``vgg_fast::name``.

    The reference serves every device that has no kernel of its own. An operator without a
    ``backward`` refuses, in one sentence, to be differentiated.

    Args:
        name: of the operator, whose schema is in ``csrc/library.cpp``.
        check: raises RuntimeError for arguments that no kernel takes. It runs before the reference,
            before a Triton kernel and in the fake kernel; the C++ kernels check for themselves.
        reference: the operator by PyTorch.
        fake: the shapes, strides and dtypes of its results.
        setup_context: saves what ``backward`` needs.
        backward: its autograd formula.
    """
    qualified = f"vgg_fast::{name}"
    torch.library.register_fake(qualified, _after(check, fake))
    _library.impl(name, _after(check, reference), "CompositeExplicitAutograd")
    torch.library.register_autograd(
        qualified, backward or _refuse_second_derivative, setup_context=setup_context
    )
    route.add(name, check, reference)


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


def _after(check: Callable, function: Callable) -> Callable:
    def checked(*args: Any) -> Any:
        check(*args)
        return function(*args)

    return checked


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
