"""Forward-mode derivatives are those of torch's own layers in fp64, and never zero in silence."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

from tests.support.differentiated import (
    Case,
    assert_equals_torch,
    cases,
    differentiated,
    dtypes,
    frozen,
)
from tests.support.seed import images, seed_network
from vgg_fast import unfuse


@cases
@dtypes
@frozen
def test_jvp(case: Case, dtype: torch.dtype, frozen: bool) -> None:
    def compute(function, given):
        moved = tuple(tensor.flip(0) for tensor in given)
        if frozen:
            rest = given[1:]
            return func.jvp(lambda input: function(input, *rest), given[:1], moved[:1])
        return func.jvp(function, given, moved)

    assert_equals_torch(case, dtype, compute)


@cases
@dtypes
@frozen
def test_jacfwd(case: Case, dtype: torch.dtype, frozen: bool) -> None:
    def compute(function, given):
        return func.jacfwd(function, differentiated(given, frozen))(*given)

    assert_equals_torch(case, dtype, compute)


@cases
@dtypes
def test_linearize(case: Case, dtype: torch.dtype) -> None:
    def compute(function, given):
        output, push = func.linearize(function, *given)
        return output, push(*(tensor.flip(0) for tensor in given))

    assert_equals_torch(case, dtype, compute)


@cases
@dtypes
@pytest.mark.parametrize("requires_grad", [False, True])
def test_dual_numbers(case: Case, dtype: torch.dtype, requires_grad: bool) -> None:
    def compute(function, given):
        given = [tensor.clone().requires_grad_(requires_grad) for tensor in given]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, t.detach().flip(0)) for t in given]
            output, tangent = forward_ad.unpack_dual(function(*duals))
            assert tangent is not None and tangent.stride() == output.stride()
        return output.detach(), tangent.detach()

    assert_equals_torch(case, dtype, compute)


@cases
def test_dual_gradients(case: Case) -> None:
    """Of a backward pass inside the level, whose forward pass was before it."""

    def compute(function, given):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        output = function(*leaves)
        ones = torch.ones_like(output)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(ones, output.detach())
            found = torch.autograd.grad(output, leaves, dual)
            return [forward_ad.unpack_dual(gradient).tangent for gradient in found]

    assert_equals_torch(case, torch.float64, compute)


@cases
def test_gradcheck_of_forward_mode(case: Case) -> None:
    given = [tensor.requires_grad_() for tensor in case.given()]
    # Batched tangents are jacfwd's affair: here gradcheck batches as torch's pooling can't.
    assert torch.autograd.gradcheck(case.function, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(case.function, given, check_fwd_over_rev=True)


def test_a_networks_jvp() -> None:
    net = seed_network(dropout=0.0).double()
    plain = unfuse(copy.deepcopy(net))
    point, direction = images(2).double(), images(2).double().flip(-1)
    found, expected = (func.jvp(model, (point,), (direction,)) for model in (net, plain))
    assert bool(found[1].any())
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-8)
