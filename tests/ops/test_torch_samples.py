"""PyTorch's own samples of conv2d, max_pool2d and relu, through our operators.

Its tests of these operators draw their arguments from ``op_db``. Few fit as they are; the others
are brought to what ours compute: a stride takes some of the pixels, more padding is zeros around
the input, less padding cuts the border off, and groups are convolutions of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.test_max_pool2x2 import assert_is_torchs
from tests.support.cases import CONVOLUTIONS, DTYPES
from tests.support.operators import assert_near
from vgg_fast import functional

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
requires_grad = pytest.mark.parametrize("requires_grad", [False, True])


@pytest.fixture(scope="module")
def operators() -> dict:
    """``op_db`` by name, imported without what the import does to all other tests."""
    pytest.importorskip("expecttest", reason="torch.testing's samples need the package expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    torch.backends.__allow_nonbracketed_mutation_flag = True
    return {entry.name: entry for entry in op_db}


def samples_of(entry, dtype: torch.dtype, requires_grad: bool) -> Iterator:
    torch.manual_seed(0)
    yield from entry.sample_inputs("cpu", dtype, requires_grad)
    if entry.reference_inputs_func is not None:
        yield from entry.reference_inputs("cpu", dtype, requires_grad)


# ------------------------------------------------------------------------------------ convolutions


def pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def by_ours(op: str, sample) -> Callable[..., Tensor] | None:
    """What computes ``op`` on the tensors of a sample; None if that doesn't fit."""
    weight, kwargs = sample.args[0], sample.kwargs
    padding, stride = kwargs.get("padding", 0), pair(kwargs.get("stride", 1))
    groups = kwargs.get("groups", 1)
    if tuple(weight.shape[2:]) != (3, 3) or pair(kwargs.get("dilation", 1)) != (1, 1):
        return None
    if isinstance(padding, str):
        padding = {"valid": 0, "same": 1}[padding]
    if op == "conv3x3_relu_pool" and (stride != (1, 1) or min(pair(padding)) < 1):
        return None  # the windows would be others
    (top, left) = pair(padding)

    def compute(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        around = [max(side - 1, 0) for side in (left, left, top, top)]
        parts = zip(
            F.pad(input, around).chunk(groups, dim=-3),
            weight.chunk(groups),
            [None] * groups if bias is None else bias.chunk(groups),
            strict=True,
        )
        output = torch.cat([getattr(functional, op)(*part) for part in parts], dim=-3)
        rows, columns = (slice(1, -1) if side == 0 else slice(None) for side in (top, left))
        output = output[..., rows, columns]
        return output if op == "conv3x3_relu_pool" else output[..., :: stride[0], :: stride[1]]

    return compute


@dtypes
@pytest.mark.parametrize("op", CONVOLUTIONS)
@requires_grad
def test_conv2d(operators, op: str, dtype: torch.dtype, requires_grad: bool) -> None:
    entry = operators["nn.functional.conv2d"]
    fitted = 0
    for sample in samples_of(entry, dtype, requires_grad):
        compute = by_ours(op, sample)
        if compute is None:
            continue
        fitted += 1
        check_convolution(op, sample, compute, requires_grad)
    assert fitted >= (2 if op == "conv3x3_relu_pool" else 14)


def check_convolution(op: str, sample, compute: Callable, requires_grad: bool) -> None:
    given = [sample.input, *sample.args]
    exact = [
        None if tensor is None else tensor.detach().double().requires_grad_() for tensor in given
    ]
    full = F.conv2d(*exact, **sample.kwargs)
    full.retain_grad()
    expected = full if op == "conv3x3" else full.relu()
    sizes = [None if tensor is None else tensor.detach().abs().requires_grad_() for tensor in exact]
    full_terms = terms = F.conv2d(*sizes, **sample.kwargs)
    if op == "conv3x3_relu_pool":
        expected, terms = F.max_pool2d(expected, 2), F.max_pool2d(terms, 2)
    output = compute(*given)
    assert_near(output, expected.detach(), terms.detach(), "output")
    assert output.requires_grad == requires_grad
    if not requires_grad:
        return
    grad_output = torch.randn_like(output)
    leaves = [tensor for tensor in given if tensor is not None]
    found = torch.autograd.grad(output, leaves, grad_output)
    expected.backward(grad_output.double())
    wanted = [tensor.grad for tensor in exact if tensor is not None]
    full_terms.backward(full.grad.abs())
    bounds = [tensor.grad for tensor in sizes if tensor is not None]
    names = ("grad_input", "grad_weight", "grad_bias")
    for name, *gradients in zip(names, found, wanted, bounds, strict=False):
        assert_near(*gradients, name, name != "grad_input")


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_what_conv2d_refuses(operators, op: str) -> None:
    errors = list(operators["nn.functional.conv2d"].error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises(RuntimeError, match=f"vgg_fast::{op}: (input|weight) (is|must be) "):
            getattr(functional, op)(sample.input, *sample.args)


# ----------------------------------------------------------------------------------------- pooling


@dtypes
@requires_grad
def test_max_pool2d(operators, dtype: torch.dtype, requires_grad: bool) -> None:
    # None of the samples has windows of 2×2; their tensors, each of them once, are pooled by such.
    seen = set()
    for sample in samples_of(operators["nn.functional.max_pool2d"], dtype, requires_grad):
        input = sample.input
        if (input.shape, input.stride()) in seen:
            continue
        seen.add((input.shape, input.stride()))
        output, expected = functional.max_pool2x2(input), F.max_pool2d(input, 2)
        assert torch.equal(output, expected) and output.requires_grad == requires_grad
        batch = input if input.dim() == 4 else input[None]
        shape = (*batch.shape[:2], batch.shape[2] // 2, batch.shape[3] // 2)
        assert_is_torchs(batch, torch.randn(shape).to(dtype))
    assert len(seen) >= 10


def test_what_max_pool2d_refuses(operators) -> None:
    refused = 0
    for error in operators["nn.functional.max_pool2d"].error_inputs("cpu"):
        sample = error.sample_input
        if sample.kwargs["kernel_size"] != 2 or sample.kwargs.get("padding", 0) != 0:
            continue
        with pytest.raises(RuntimeError, match="needs a height and width of at least 2"):
            functional.max_pool2x2(sample.input)
        refused += 1
    assert refused > 0


# -------------------------------------------------------------------------------------------- ReLU


@dtypes
@requires_grad
def test_relu(operators, dtype: torch.dtype, requires_grad: bool) -> None:
    # Each element is an image of one pixel, so that a NaN or an infinity meets no other.
    kernel = torch.zeros(1, 1, 3, 3, dtype=dtype)
    kernel[0, 0, 1, 1] = 1
    fitted = 0
    for sample in samples_of(operators["nn.functional.relu"], dtype, requires_grad):
        if sample.input.numel() > 20_000:
            continue
        fitted += 1
        input = sample.input.detach().requires_grad_(requires_grad)  # some are views of a leaf
        output = functional.conv3x3_relu(input.reshape(-1, 1, 1, 1), kernel).view(input.shape)
        torch.testing.assert_close(output, F.relu(input), rtol=0, atol=0, equal_nan=True)
        assert output.requires_grad == requires_grad
        if not requires_grad:
            continue
        grad_output = torch.randn_like(output)
        (found,) = torch.autograd.grad(output, input, grad_output)
        (wanted,) = torch.autograd.grad(F.relu(input), input, grad_output)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert fitted >= 20


@dtypes
def test_relu_of_maps(operators, dtype: torch.dtype) -> None:
    # What has the dimensions of a map goes through as one, by a kernel that changes nothing.
    fitted = 0
    for sample in samples_of(operators["nn.functional.relu"], dtype, False):
        input = sample.input
        if input.dim() not in (3, 4) or 0 in input.shape or not input.isfinite().all():
            continue
        fitted += 1
        channels = input.shape[-3]
        kernel = torch.zeros(channels, channels, 3, 3, dtype=dtype)
        kernel[range(channels), range(channels), 1, 1] = 1
        expected = F.relu(input.double())
        terms = F.conv2d(input.double().abs(), kernel.double(), padding=1)
        assert_near(
            functional.conv3x3_relu(input, kernel), expected, torch.full_like(terms, terms.max()),
            "output",
        )  # fmt: skip
    assert fitted >= 5
