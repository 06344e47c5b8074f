"""Registers what Python owns of an operator: reference, fake kernel, autograd, autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vgg_fast.dispatch import route

_library = torch.library.Library("vgg_fast", "IMPL")


def register(
    name: str,
    *,
    check: Callable,
    reference: Callable,
    fake: Callable,
    with_gradients: Callable | None = None,
    routed: bool = True,
) -> None:
    """Register the Python half of ``vgg_fast::name``.

    The reference serves every device that has no kernel of its own, and every transform that has
    no formula of ours: it consists of torch's own operators, which have them all.

    Args:
        name: of the operator, whose schema is in ``csrc/library.cpp``.
        check: raises RuntimeError for arguments that no kernel takes. It runs before the reference,
            before a Triton kernel and in the fake kernel; the C++ kernels check for themselves.
        reference: the operator by PyTorch, out of place, with the strides of ``fake``.
        fake: the shapes, strides and dtypes of its results.
        with_gradients: the operator where one of its tensors wants a gradient, given first what
            computes it without; the reference if there is none.
        routed: whether it has kernels to choose from. If not, the backend in force is not asked:
            C++ serves CPUs, and the reference everything else.
    """
    by_torch = _after(check, reference)
    torch.library.register_fake(f"vgg_fast::{name}", _after(check, fake))
    _library.impl(name, by_torch, "CompositeExplicitAutograd")
    _library.impl(name, _autograd(name, by_torch, with_gradients), "Autograd", with_keyset=True)
    _library.impl(name, by_torch, "FuncTorchBatched")
    if routed:
        route.add(name, check, reference)


def _autograd(name: str, by_torch: Callable, with_gradients: Callable | None) -> Callable:
    """The kernel that stands before all others, and decides at each call how it is differentiated.

    At each call, and nowhere earlier: a program that was traced or exported under ``no_grad`` holds
    the operator alone, and can still be trained.
    """
    # Bound once: a call is to cost no more than the decision.
    redispatch = getattr(torch.ops.vgg_fast, name).default._handle.redispatch_boxed
    below_autograd = torch._C._AutoDispatchBelowAutograd
    after_autograd = torch._C._after_autograd_keyset
    is_transformed = torch._C._are_functorch_transforms_active
    modes = torch._C._len_torch_dispatch_stack
    is_grad_enabled, any_requires_grad = torch.is_grad_enabled, torch._C._any_requires_grad

    def without_gradients(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        with below_autograd():
            return redispatch(keyset & after_autograd, *args)

    def choose(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        # By torch.func (grad, jvp, vmap, ...), or in forward mode.
        if is_transformed() or forward_ad._current_level >= 0:
            return by_torch(*args)
        # ONNX doesn't know the operator. Its exporter traces: asked only then, the call is free.
        if modes() > 0 and torch.onnx.is_in_onnx_export():
            return by_torch(*args)
        if not (is_grad_enabled() and any_requires_grad(*args)):
            return without_gradients(keyset, *args)
        if with_gradients is None:  # of a backward operator, under create_graph=True
            return by_torch(*args)
        return with_gradients(functools.partial(without_gradients, keyset), *args)

    return choose


def register_autocast(name: str) -> None:
    """Under autocast, cast input, weight and bias of ``vgg_fast::name`` to its dtype.

    Not a scale, which is float32 beside 16 bits too, and then neither the bias.
    """
    op = getattr(torch.ops.vgg_fast, name).default

    def cast_and_call(device_type: str, key: torch._C.DispatchKey, *args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        has_scale = any(isinstance(arg, Tensor) for arg in args[3:])
        count = 2 if has_scale else 3
        cast = (_cast(arg, device_type, dtype) for arg in args[:count])
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op(*cast, *args[count:])

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
