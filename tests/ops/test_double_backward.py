"""Second derivatives are those of torch's own layers in fp64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.differentiated import (
    Case,
    assert_equals_torch,
    cases,
    differentiated,
    dtypes,
    frozen,
    one_case,
)
from tests.support.seed import images, loss_of, seed_network
from vgg_fast import backends, unfuse


def leaves_of(given: tuple[Tensor, ...], frozen: bool) -> tuple[list[Tensor], list[Tensor]]:
    """All arguments, and those of them that want a gradient."""
    tensors = [tensor.clone() for tensor in given]
    return tensors, [tensors[i].requires_grad_() for i in differentiated(given, frozen)]


def penalty_of(function, given: tuple[Tensor, ...], frozen: bool) -> tuple[Tensor, list[Tensor]]:
    """A loss that holds the norm of the gradients, and what it is differentiated by."""
    tensors, leaves = leaves_of(given, frozen)
    loss = function(*tensors).pow(3).sum()
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    return sum(gradient.square().sum() for gradient in gradients), leaves


@cases
@dtypes
@frozen
def test_a_gradient_penalty(case: Case, dtype: torch.dtype, frozen: bool) -> None:
    def compute(function, given):
        penalty, leaves = penalty_of(function, given, frozen)
        return penalty, torch.autograd.grad(penalty, leaves)

    assert_equals_torch(case, dtype, compute)


@cases
@frozen
def test_gradgradcheck(case: Case, frozen: bool) -> None:
    tensors, _ = leaves_of(case.given(), frozen)
    assert torch.autograd.gradcheck(case.function, tensors, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(case.function, tensors, check_batched_grad=True)


@one_case
def test_third_derivatives(case: Case) -> None:
    def compute(function, given):
        penalty, leaves = penalty_of(function, given, False)
        second = torch.autograd.grad(penalty, leaves, create_graph=True)
        return torch.autograd.grad(sum(tensor.square().sum() for tensor in second), leaves)

    assert_equals_torch(case, torch.float64, compute)


@one_case
@pytest.mark.parametrize("name", ["hvp", "vhp", "jvp", "vjp", "hessian"])
def test_torch_autograd_functional(case: Case, name: str) -> None:
    def compute(function, given):
        given = tuple(given)
        call = getattr(torch.autograd.functional, name)
        if name == "jvp":
            return call(function, given, given)
        if name == "vjp":
            return call(function, given, function(*given))
        loss = lambda *given: function(*given).pow(3).sum()  # noqa: E731
        if name == "hessian":
            return call(loss, given, vectorize=True)
        return call(loss, given, given)

    assert_equals_torch(case, torch.float64, compute)


@one_case
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_whatever_backend_is_forced(case: Case, backend: str) -> None:
    def compute(function, given):
        penalty, leaves = penalty_of(function, given, False)
        return torch.autograd.grad(penalty, leaves)

    with backends.use(backend):
        assert_equals_torch(case, torch.float64, compute)


@one_case
def test_a_backward_operator_has_derivatives_of_its_own(case: Case) -> None:
    operator = getattr(torch.ops.vgg_fast, case.op)
    backward = getattr(torch.ops.vgg_fast, case.op + "_backward")
    input, *weights = case.given()
    if case.op == "max_pool2x2":
        output, argmax = operator(input, True)
        gradient = torch.randn_like(output).requires_grad_()

        def call(gradient):
            return backward(gradient, argmax, *input.shape[2:])

        assert torch.autograd.gradcheck(call, (gradient,))
        return
    found = operator(input, *weights)
    saved = {"conv3x3": (), "conv3x3_relu": (found,), "conv3x3_relu_pool": found}[case.op]
    output = found[0] if isinstance(found, tuple) else found
    given = [torch.randn_like(output), input, weights[0]]
    assert torch.autograd.gradcheck(
        lambda *given: backward(*given, *saved, True, True, True),
        [tensor.requires_grad_() for tensor in given],
    )


class Calls(TorchDispatchMode):
    """The names of this package's operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "vgg_fast":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


@one_case
def test_a_backward_pass_that_nobody_differentiates_is_ours(case: Case) -> None:
    tensors, leaves = leaves_of(case.given(), False)
    with Calls() as calls:
        case.function(*tensors).sum().backward()
    assert calls.names == [case.op, case.op + "_backward"]
    with Calls() as calls:
        output = case.function(*tensors)
        torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
    assert calls.names == [case.op]


def test_a_networks_gradient_penalty() -> None:
    net = seed_network(dropout=0.0).double()
    plain = unfuse(copy.deepcopy(net))

    def step(model):
        image = images(3).double().requires_grad_()
        loss = loss_of(model(image).double())
        (gradient,) = torch.autograd.grad(loss, image, create_graph=True)
        (loss + gradient.square().sum()).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    expected = step(plain)
    for name, found in step(net).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-7)
