"""One kernel with one tile on tensors of its own: what tuning times, and what the tests check."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vgg_fast.dispatch.tiles import Call, Tile
from vgg_fast.triton import direct, fprop, wgrad
from vgg_fast.triton.epilogue import run
from vgg_fast.triton.reduce import sum_gradients


class Trial(NamedTuple):
    """A kernel that is ready to be launched."""

    run: Callable[[], object]
    """Launches it once."""
    result: Callable[[], Tensor]
    """What the last launch computed; of a pooling kernel the output, without the argmax."""
    by_torch: Callable[[torch.dtype, bool], Tensor]
    """The same by PyTorch in another dtype; if asked, of the operands' magnitudes."""


def prepare(call: Call, tile: Tile, dtype: torch.dtype, device: torch.device) -> Trial:
    """Random tensors for ``call``, and its launch with ``tile``.

    The arithmetic is the call's, whatever torch's switches say. On the device "meta" there are
    no values, and the launch can only be compiled.
    """
    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator, device=device).to(dtype)
        return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made

    if call.kernel == "dgrad":
        return _of_dgrad(call, tile, normal, device)
    if call.kernel in ("wgrad", "direct_wgrad"):
        return _of_wgrad(call, tile, normal)
    return _of_forward(call, tile, normal, device)


def _of_forward(call: Call, tile: Tile, normal: Callable, device: torch.device) -> Trial:
    input, weight, bias = _operands(call, normal)
    output = torch.full_like(normal(*_output_shape(call)), torch.nan)
    argmax = torch.empty_like(output, dtype=torch.uint8) if call.pool else None

    first = call.kernel == "direct"
    plan = direct.plan(call, tile) if first else fprop.plan(call, tile, device)
    launch = plan.launch(relu=True, bias=True, argmax=call.pool)

    def by_torch(dtype: torch.dtype, magnitudes: bool) -> Tensor:
        x, w, b = _as(dtype, magnitudes, input, weight, bias)
        full = F.conv2d(x, w, b, padding=1).relu()
        return F.max_pool2d(full, 2) if call.pool else full

    return Trial(lambda: run(launch, input, weight, bias, output, argmax), lambda: output, by_torch)


def _of_dgrad(call: Call, tile: Tile, normal: Callable, device: torch.device) -> Trial:
    # Here C are the channels of the gradient, and K those of the layer's input.
    grad, _, _ = _operands(call, normal)
    weight = normal(call.c, call.k, 3, 3) * (2 / (9 * call.c)) ** 0.5
    grad_input = torch.full_like(normal(*_output_shape(call)), torch.nan)
    plan = fprop.plan(call, tile, device)
    launch = plan.launch(relu=False, bias=False, argmax=False)
    given = weight if plan.rotates else fprop.rotated(weight)

    def by_torch(dtype: torch.dtype, magnitudes: bool) -> Tensor:
        g, w = _as(dtype, magnitudes, grad, weight)
        return F.conv_transpose2d(g, w, padding=1)

    return Trial(
        lambda: run(launch, grad, given, None, grad_input, None),
        lambda: grad_input,
        by_torch,
    )


def _of_wgrad(call: Call, tile: Tile, normal: Callable) -> Trial:
    input, weight, _ = _operands(call, normal)
    grad = normal(*_output_shape(call))
    results: list[Tensor] = []
    output = argmax = None
    if call.kernel == "direct_wgrad":
        output = normal(*grad.shape).relu_()
        if call.pool:
            argmax = torch.randint_like(grad, 4).to(torch.uint8)

    launch = (
        wgrad.plan(call, tile)
        if call.kernel == "wgrad"
        else direct.plan(call, tile).launch_wgrad(relu=True)
    )

    def run() -> None:
        if call.kernel == "wgrad":
            weights, biases = wgrad.run(launch, grad, input), None
        else:
            weights, biases = direct.run_wgrad(launch, grad, input, output, argmax)
        grad_weight, _ = sum_gradients(weights, biases, weight)
        assert grad_weight is not None  # its splits are there
        results[:] = [grad_weight]

    def by_torch(dtype: torch.dtype, magnitudes: bool) -> Tensor:
        given, full = _as(dtype, magnitudes, input, grad)
        if output is not None:
            full = torch.where(output > 0, full, 0)
        if argmax is not None:
            full = torch.ops.vgg_fast.max_pool2x2_backward(full, argmax, call.h, call.w)
        like = weight.to(dtype)
        return torch.ops.aten.convolution_backward(
            full, given, like, [0], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
        )[1]

    return Trial(run, lambda: results[0], by_torch)


def _operands(call: Call, normal: Callable) -> tuple[Tensor, Tensor, Tensor]:
    input = normal(call.n, call.c, call.h, call.w)
    weight = normal(call.k, call.c, 3, 3) * (2 / (9 * call.c)) ** 0.5
    return input, weight, normal(call.k)


def _output_shape(call: Call) -> tuple[int, int, int, int]:
    pool = 2 if call.pool else 1
    return call.n, call.k, call.h // pool, call.w // pool


def _as(dtype: torch.dtype, magnitudes: bool, *tensors: Tensor) -> list[Tensor]:
    wider = [tensor.to(dtype) for tensor in tensors]
    return [tensor.abs() for tensor in wider] if magnitudes else wider
