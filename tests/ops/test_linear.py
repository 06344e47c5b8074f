"""vgg_fast::linear: a classifier's layer for few rows, against fp64 and torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.support.numerics import relative_error
from vgg_fast.layers import Linear
from vgg_fast.ops.linear import MOST_ROWS

# M, C, K: one row; off the blocks of rows, outputs and columns; a stretch of columns and one more;
# rows that lie a power of two apart; an empty batch.
SHAPES = [
    (1, 33, 5),
    (3, 256, 4),
    (7, 257, 66),
    (16, 1024, 8),
    (64, 1030, 37),
    (5, 2, 1),
    (0, 9, 3),
]


def matrices(m: int, c: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes: tuple[tuple[int, ...], ...] = ((m, c), (k, c), (k,), (m, k))
    input, weight, bias, gradient = (torch.randn(size, generator=generator) for size in sizes)
    return input, weight, bias, gradient


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_against_fp64(shape: tuple[int, int, int]) -> None:
    *arguments, gradient = matrices(*shape)
    ours = [t.clone().requires_grad_() for t in arguments]
    exact = [t.double().requires_grad_() for t in arguments]
    outputs = torch.ops.vgg_fast.linear(*ours), linear(*exact)
    found = outputs[0], *torch.autograd.grad(outputs[0], ours, gradient)
    expected = outputs[1], *torch.autograd.grad(outputs[1], exact, gradient.double())
    for ours_, exact_ in zip(found, expected, strict=True):
        assert ours_.shape == exact_.shape and ours_.dtype == torch.float32
        assert exact_.numel() == 0 or relative_error(ours_, exact_) < 2e-6
        torch.testing.assert_close(ours_.double(), exact_, rtol=1e-4, atol=1e-4)


def test_any_layout_and_address() -> None:
    input, weight, bias, gradient = matrices(6, 300, 40)
    loose = (
        torch.randn(300, 6).copy_(input.t()).t(),
        torch.randn(40, 301)[:, 1:].copy_(weight),
        torch.stack((bias, bias), 1)[:, 0],
    )
    assert torch.equal(
        torch.ops.vgg_fast.linear(*loose), torch.ops.vgg_fast.linear(input, weight, bias)
    )
    backward = torch.ops.vgg_fast.linear_backward
    found = backward(gradient.t().contiguous().t(), *loose[:2], True, True)
    for a, b in zip(found, backward(gradient, input, weight, True, True), strict=True):
        assert torch.equal(a, b)


def test_only_what_is_wanted() -> None:
    input, weight, _, gradient = matrices(4, 64, 32)
    backward = torch.ops.vgg_fast.linear_backward
    both = backward(gradient, input, weight, True, True)
    of_input, nothing = backward(gradient, input, weight, True, False)
    assert torch.equal(of_input, both[0]) and nothing.numel() == 0
    nothing, of_weight = backward(gradient, input, weight, False, True)
    assert torch.equal(of_weight, both[1]) and nothing.numel() == 0


def test_opcheck() -> None:
    input, weight, bias, gradient = matrices(5, 20, 12)
    wanting = [t.clone().requires_grad_() for t in (input, weight, bias)]
    torch.library.opcheck(torch.ops.vgg_fast.linear.default, wanting)
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            torch.ops.vgg_fast.linear_backward.default, (gradient, input, weight, *wanted)
        )


def test_transforms_and_second_derivatives() -> None:
    input, weight, bias, _ = matrices(5, 20, 12)

    def penalty(multiply, weight: Tensor) -> Tensor:
        weight = weight.clone().requires_grad_()
        (first,) = torch.autograd.grad(
            multiply(input, weight, bias).square().sum(), weight, create_graph=True
        )
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        return second

    ours = torch.ops.vgg_fast.linear
    torch.testing.assert_close(penalty(ours, weight), penalty(linear, weight), rtol=1e-4, atol=1e-2)
    of_rows = [torch.func.vmap(lambda row, f=f: f(row[None], weight, bias)) for f in (ours, linear)]
    torch.testing.assert_close(of_rows[0](input), of_rows[1](input))
    tangents = [
        torch.func.jvp(lambda w, f=f: f(input, w, bias), (weight,), (weight,))[1]
        for f in (ours, linear)
    ]
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, w, b: (x.double(), w, b), "input must be float32.*float64"),
        (lambda x, w, b: (x, w[:, 1:], b), r"input must have the shape.*\(4, 7\).*\(4, 8\)"),
        (lambda x, w, b: (x, w, b[1:]), r"bias must have the shape.*\(5.*\).*\(4.*\)"),
        (lambda x, w, b: (x[None], w, b), "must be matrices"),
        (lambda x, w, b: (x.repeat(20, 1), w, b), f"may have {MOST_ROWS} rows.*80"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, message: str) -> None:
    input, weight, bias, _ = matrices(4, 8, 5)
    for device in ("cpu", "meta"):
        given = (t.to(device) for t in change(input, weight, bias))
        with pytest.raises(RuntimeError, match=message):
            torch.ops.vgg_fast.linear(*given)


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows, served", [(1, True), (MOST_ROWS, True), (MOST_ROWS + 1, False)])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_large_layer_calls_it(rows: int, served: bool, autocast: bool) -> None:
    """In a training step under autocast too, where it spares the copy of the weight."""
    ours, theirs = Linear(1024, 1024), nn.Linear(1024, 1024)
    theirs.load_state_dict(ours.state_dict())
    input = torch.randn(rows, 1024)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Calls() as calls:
        output = ours(input)
    assert ("vgg_fast.linear.default" in calls.names) == served
    if not autocast:
        torch.testing.assert_close(output, theirs(input))
    with Calls() as calls, torch.no_grad():
        Linear(1024, 1000)(input)  # fewer weights stay in a cache
        ours.double()(input.double())
    assert "vgg_fast.linear.default" not in calls.names


def test_a_large_layer_in_programs() -> None:
    layer, input = Linear(1024, 1024).eval(), torch.randn(4, 1024)
    expected = layer(input)
    for program in (
        torch.jit.script(layer),
        torch.jit.trace(layer, input),
        torch.export.export(layer, (input,)).module(),
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
        torch.fx.symbolic_trace(layer),
    ):
        torch.testing.assert_close(program(input), expected)
