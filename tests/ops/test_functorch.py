"""torch.func: every transform of an operator is that of torch's own layers in fp64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import func

from tests.support.cases import OPERATORS
from tests.support.differentiated import (
    Case,
    assert_equals_torch,
    cases,
    differentiated,
    dtypes,
    frozen,
    one_case,
)
from tests.support.operators import is_channels_last
from tests.support.seed import images, loss_of, seed_network
from vgg_fast import backends, unfuse


def cubed(function):
    """A loss with second derivatives everywhere."""
    return lambda *given: function(*given).pow(3).sum()


@cases
@dtypes
@frozen
def test_grad(case: Case, dtype: torch.dtype, frozen: bool) -> None:
    def compute(function, given):
        return func.grad(cubed(function), differentiated(given, frozen))(*given)

    assert_equals_torch(case, dtype, compute)


@cases
@dtypes
def test_vjp(case: Case, dtype: torch.dtype) -> None:
    def compute(function, given):
        output, pull_back = func.vjp(function, *given)
        return output, pull_back(output)

    assert_equals_torch(case, dtype, compute)


@cases
@dtypes
@frozen
def test_jacrev(case: Case, dtype: torch.dtype, frozen: bool) -> None:
    def compute(function, given):
        return func.jacrev(function, differentiated(given, frozen))(*given)

    assert_equals_torch(case, dtype, compute)


@cases
@dtypes
@frozen
def test_hessian(case: Case, dtype: torch.dtype, frozen: bool) -> None:
    def compute(function, given):
        return func.hessian(cubed(function), differentiated(given, frozen))(*given)

    assert_equals_torch(case, dtype, compute)


@cases
@dtypes
@pytest.mark.parametrize(("in_dim", "out_dim"), [(0, 0), (-1, 1)])
def test_vmap_over_inputs(case: Case, dtype: torch.dtype, in_dim: int, out_dim: int) -> None:
    def compute(function, given):
        inputs = torch.stack([given[0], -2 * given[0], given[0].flip(-1)], in_dim)
        return torch.vmap(lambda input: function(input, *given[1:]), in_dim, out_dim)(inputs)

    assert_equals_torch(case, dtype, compute)


@cases
@dtypes
@pytest.mark.parametrize("shared_input", [False, True])
def test_vmap_over_weights(case: Case, dtype: torch.dtype, shared_input: bool) -> None:
    if not case.takes_weights:
        pytest.skip("takes no weights")

    def compute(function, given):
        stacked = [torch.stack([tensor, -tensor, tensor.flip(0)]) for tensor in given]
        if shared_input:
            stacked[0] = given[0]
        in_dims = (None if shared_input else 0, *[0] * (len(given) - 1))
        return torch.vmap(function, in_dims)(*stacked)

    assert_equals_torch(case, dtype, compute)


@cases
@dtypes
def test_gradients_of_each_sample(case: Case, dtype: torch.dtype) -> None:
    def compute(function, given):
        gradients = func.grad(cubed(function), differentiated(given, False))
        samples = torch.stack([given[0], -given[0]])
        return torch.vmap(gradients, (0, *[None] * (len(given) - 1)))(samples, *given[1:])

    assert_equals_torch(case, dtype, compute)


@one_case
def test_gradients_of_what_vmap_computed(case: Case) -> None:
    # Tensors of autograd's own, not of torch.func, inside vmap.
    def compute(function, given):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        inputs = torch.stack([leaves[0], leaves[0].flip(-1)])
        outputs = torch.vmap(lambda input: function(input, *leaves[1:]))(inputs)
        return torch.autograd.grad(outputs.pow(2).sum(), leaves)

    assert_equals_torch(case, torch.float64, compute)


@one_case
def test_batched_gradients(case: Case) -> None:
    def compute(function, given):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        output = function(*leaves)
        rows = torch.stack([torch.ones_like(output), output.detach()])
        return torch.autograd.grad(output, leaves, rows, is_grads_batched=True)

    assert_equals_torch(case, torch.float64, compute)


@one_case
@pytest.mark.parametrize("backend", backends.NAMES)
def test_whatever_backend_is_forced(case: Case, backend: str) -> None:
    def compute(function, given):
        return func.grad(cubed(function), differentiated(given, False))(*given)

    with backends.use(backend):
        assert_equals_torch(case, torch.float64, compute)


@one_case
def test_strides_are_those_without_a_transform(case: Case) -> None:
    given = case.given()
    expected = case.function(*given)
    inside = []

    def loss(*given):
        inside.append(case.function(*given))
        return inside[0].sum()

    func.grad(loss)(*given)
    assert inside[0].stride() == expected.stride()
    mapped = torch.vmap(lambda input: case.function(input, *given[1:]))(given[0][None])
    assert is_channels_last(mapped[0])


@pytest.mark.parametrize("op", OPERATORS)
def test_one_channel_and_one_pixel_have_the_strides_that_compilers_expect(op: str) -> None:
    size = 2 if op.endswith(("pool", "2x2")) else 1
    weights = () if op == "max_pool2x2" else (torch.randn(1, 1, 3, 3),)
    for height, width in ((size, size), (size, 5), (4, 5)):
        given = (torch.randn(2, 1, height, width), *weights)
        expected, inside = Case(op, 4, "contiguous", False).function(*given), []

        def loss(*given, op=op, inside=inside):
            inside.append(Case(op, 4, "contiguous", False).function(*given))
            return inside[0].sum()

        func.grad(loss)(*given)
        assert inside[0].stride() == expected.stride()


@one_case
def test_the_argmax_is_the_kernels(case: Case) -> None:
    if case.op not in ("conv3x3_relu_pool", "max_pool2x2"):
        pytest.skip("has no argmax")
    operator = getattr(torch.ops.vgg_fast, case.op)
    given = case.given()
    rest = () if case.op == "max_pool2x2" else (given[1], given[2] if case.bias else None)
    _, expected = operator(given[0], *rest, True)
    inside = []

    def loss(input):
        output, argmax = operator(input, *rest, True)
        return output.sum(), argmax

    _, found = func.grad(loss, has_aux=True)(given[0])
    assert torch.equal(found, expected)
    inside = torch.vmap(lambda input: operator(input, *rest, True)[1])(given[0][None])
    assert torch.equal(inside[0], expected)


@one_case
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap", "per_sample"])
def test_compiled(case: Case, transform: str) -> None:
    def compute(function, given):
        def run(*given):
            rest = given[1:]
            samples = torch.stack([given[0], -given[0]])
            if transform == "grad":
                return func.grad(cubed(function), differentiated(given, False))(*given)
            if transform == "jvp":
                return func.jvp(function, given, given)
            if transform == "vmap":
                return torch.vmap(lambda input: function(input, *rest))(samples)
            return torch.vmap(func.grad(lambda input: cubed(function)(input, *rest)))(samples)

        torch._dynamo.reset()
        return torch.compile(run, backend="aot_eager", fullgraph=True)(*given)

    assert_equals_torch(case, torch.float64, compute)


@one_case
def test_grad_under_autocast(case: Case) -> None:
    if not case.takes_weights:
        pytest.skip("autocast leaves it alone")
    given = case.given(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = func.grad(lambda *g: case.function(*g).float().sum(), (0, 1))(*given)
        expected = func.grad(lambda *g: case.plain(*g).float().sum(), (0, 1))(*given)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("op", OPERATORS)
def test_what_is_refused_is_refused_with_the_same_sentence(op: str) -> None:
    function = Case(op, 4, "contiguous", False).function
    weights = () if op == "max_pool2x2" else (torch.zeros(4, 3, 3, 3),)
    sentences = set()
    for call in (
        lambda input: function(input, *weights),
        func.grad(lambda input: function(input, *weights).sum()),
        lambda input: torch.vmap(lambda one: function(one, *weights))(input[None]),
        lambda input: func.jvp(lambda one: function(one, *weights), (input,), (input,)),
    ):
        with pytest.raises(RuntimeError) as error:
            call(torch.zeros(1, 0, 8, 8))
        sentences.add(str(error.value))
    assert sentences == {
        f"vgg_fast::{op}: input may have an empty batch, but it has 0 channels of 8x8 pixels"
    }


# ----------------------------------------------------------------------------------- whole networks


def test_the_gradients_of_each_image_of_a_network() -> None:
    net = seed_network(dropout=0.0).double()
    plain = unfuse(copy.deepcopy(net))
    batch = images(3).double()

    def gradients(model):
        parameters = dict(model.named_parameters())

        def loss(parameters, image):
            return loss_of(func.functional_call(model, parameters, (image[None],)).double())

        return torch.vmap(func.grad(loss), (None, 0))(parameters, batch)

    expected = gradients(plain)
    for name, found in gradients(net).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)


def test_an_ensemble_of_networks() -> None:
    nets = [seed_network(dropout=0.0).double().eval() for _ in range(3)]
    for factor, net in enumerate(nets):
        for parameter in net.parameters():
            parameter.data.mul_(1 + factor / 10)
    parameters, buffers = func.stack_module_state(nets)
    batch = images(2).double()

    def call(parameters, buffers):
        return func.functional_call(nets[0], (parameters, buffers), (batch,))

    found = torch.vmap(call)(parameters, buffers)
    for one, net in zip(found, nets, strict=True):
        torch.testing.assert_close(one, net(batch), rtol=1e-4, atol=1e-6)
