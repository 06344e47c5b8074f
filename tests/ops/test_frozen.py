"""Convolutions whose weight wants no gradient: the bits that they keep, and the input's gradient.

That gradient is compared with the one that the same operator gives where the weight trains, whose
own tests compare it with fp64; and bits with those that the references make of the outputs.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tests.support.cases import CONV_SHAPES, DTYPES, LAYOUTS, TOLERANCES, Shape
from tests.support.numerics import relative_error
from tests.support.operators import Arguments, random_arguments
from tests.support.poison import poisoned_memory
from vgg_fast import backends, cpu
from vgg_fast.ops import frozen

OPS = torch.ops.vgg_fast
PUBLIC = ("conv3x3", "conv3x3_relu", "conv3x3_relu_pool", "conv3x3_relu_and_pool")
SMALL = Shape(2, 5, 6, 7, 9)
MIDDLE = Shape(2, 20, 35, 18, 23)
EVEN = Shape(3, 24, 64, 12, 8)

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
public = pytest.mark.parametrize("op", PUBLIC)
slopes = pytest.mark.parametrize("slope", [0.0, 0.3])


def outputs(op: str, arguments: Arguments, input: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Those that have a gradient."""
    scale, slope, padding = arguments.scale, arguments.negative_slope, arguments.padding
    later = (scale, padding) if op == "conv3x3" else (scale, slope, padding)
    early = (False,) if op == "conv3x3_relu_pool" else ()
    found = getattr(OPS, op)(input, weight, arguments.bias, *early, *later)
    return found if op == "conv3x3_relu_and_pool" else (found[0] if early else found,)


def run(op: str, arguments: Arguments, trains: bool) -> tuple[Tensor, ...]:
    """The outputs, and the input's gradient."""
    input = arguments.input.detach().requires_grad_()
    found = outputs(op, arguments, input, arguments.weight.detach().requires_grad_(trains))
    draws = torch.Generator().manual_seed(7)
    directions = [torch.randn(o.shape, generator=draws).to(o.dtype) for o in found]
    return *(o.detach() for o in found), *torch.autograd.grad(found, input, directions)


def assert_as_if_it_trained(op: str, arguments: Arguments) -> None:
    dtype = arguments.input.dtype
    found, expected = (run(op, arguments, trains) for trains in (False, True))
    for actual, wanted in zip(found[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)
    gradient, wanted = found[-1], expected[-1]
    assert gradient.stride() == wanted.stride()
    # Two operators round what goes from one to the other, and break ties by the rounded values.
    if op == "conv3x3_relu_and_pool" and dtype in (torch.bfloat16, torch.float16):
        return
    assert relative_error(gradient, wanted) <= TOLERANCES[dtype].forward


@public
@dtypes
@pytest.mark.parametrize("shape", [s for s in CONV_SHAPES if min(s.h, s.w) > 1], ids=str)
def test_gradients_are_as_if_the_weight_trained(op: str, dtype: torch.dtype, shape: Shape) -> None:
    assert_as_if_it_trained(op, random_arguments("conv3x3", shape, dtype))


@public
@pytest.mark.parametrize("padding", ["zeros", "valid", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("scaled", "slope"), [(False, 0.3), (True, 0.0), (True, 0.3)])
def test_with_a_scale_a_slope_and_any_padding(
    op: str, padding: str, scaled: bool, slope: float
) -> None:
    arguments = random_arguments("conv3x3", MIDDLE, torch.float32)
    arguments.negative_slope, arguments.padding = slope, padding
    if scaled:
        arguments.scale = torch.rand(MIDDLE.k) + 0.5
    assert_as_if_it_trained(op, arguments)


@public
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_input(op: str, layout: str) -> None:
    arguments = random_arguments("conv3x3", SMALL, torch.float32)
    arguments.input = LAYOUTS[layout](arguments.input)
    assert_as_if_it_trained(op, arguments)


@public
@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4", "winograd4_amx"])
def test_every_algorithm(op: str, algorithm: str) -> None:
    with cpu.use(algorithm=algorithm):
        for shape in (SMALL, MIDDLE, EVEN):
            assert_as_if_it_trained(op, random_arguments("conv3x3", shape, torch.float32))


@public
def test_a_scale_that_is_learned_is_no_frozen_weight(op: str) -> None:
    arguments = random_arguments("conv3x3", SMALL, torch.float32)
    arguments.scale = torch.ones(SMALL.k).requires_grad_()
    found = outputs(op, arguments, arguments.input.requires_grad_(), arguments.weight)
    gradients = torch.autograd.grad(
        sum(o.square().sum() for o in found), (arguments.input, arguments.scale)
    )
    assert all(gradient.any() for gradient in gradients)


# ------------------------------------------------------------------------------------------- bits

MASKED = {
    "_conv3x3_relu_masked": frozen.reference_relu_masked,
    "_conv3x3_relu_pool_masked": frozen.reference_relu_pool_masked,
    "_conv3x3_relu_and_pool_masked": frozen.reference_relu_and_pool_masked,
}


def special_arguments(shape: Shape, dtype: torch.dtype) -> Arguments:
    arguments = random_arguments("conv3x3", shape, dtype)
    arguments.input[0, 0, 1, 1], arguments.input[-1, -1, 0, 0] = torch.nan, torch.inf
    arguments.bias[0] = 0
    arguments.weight[0] = 0  # outputs that are zero, and NaN
    return arguments


@pytest.mark.parametrize("name", MASKED)
@dtypes
@slopes
@pytest.mark.parametrize("algorithm", ["auto", "direct", "winograd4"])
def test_bits_are_those_of_the_outputs(
    name: str, dtype: torch.dtype, slope: float, algorithm: str
) -> None:
    for shape in (SMALL, MIDDLE, EVEN, Shape(1, 64, 3, 9, 9), Shape(1, 130, 67, 4, 4)):
        arguments = special_arguments(shape, dtype)
        given = (arguments.input, arguments.weight, arguments.bias, None, slope)
        with cpu.use(algorithm=algorithm):
            with poisoned_memory():
                found = getattr(OPS, name)(*given)
            expected = MASKED[name](*given)
        for actual, wanted in zip(found, expected, strict=True):
            assert actual.stride() == wanted.stride() and actual.dtype == wanted.dtype
        values, bits = len(found) // 2, found[-1]
        for actual, wanted in zip(found[:-1], expected[:-1], strict=True):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)
        if values < 2:
            assert torch.equal(bits, expected[-1])
            continue
        # Of values that are equal once they are rounded, either may have won.
        argmax, map = frozen._argmax_of(bits, shape.k), found[0]
        windows = map[..., : map.shape[2] // 2 * 2, : map.shape[3] // 2 * 2]
        windows = windows.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
        largest = windows.gather(-1, argmax.long().unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(largest, found[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_value_that_is_rounded_to_zero_passes_nothing(dtype: torch.dtype) -> None:
    weight = torch.zeros(8, 1, 3, 3, dtype=dtype)
    weight[:, 0, 1, 1] = 2.0 ** torch.arange(-8, 0)
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    input = torch.full((1, 1, 4, 4), 2 * float(least), dtype=dtype)
    output, mask = OPS._conv3x3_relu_masked(input, weight)
    assert 0 < int((output != 0).sum()) < output.numel()
    assert torch.equal(frozen.unpack(mask, 8), output > 0)


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 64])
def test_packing_and_unpacking(channels: int) -> None:
    values = torch.rand(2, channels, 3, 5) > 0.5
    packed = frozen.pack(values)
    assert packed.shape == (2, 3, 5, frozen.bytes_for(channels)) and packed.dtype == torch.uint8
    assert torch.equal(frozen.unpack(packed, channels), values)
    alone = torch.zeros(1, channels, 1, 1, dtype=torch.bool)
    alone[0, channels - 1] = True
    expected = [0] * frozen.bytes_for(channels)
    expected[(channels - 1) // 8] = 1 << (channels - 1) % 8
    assert frozen.pack(alone).flatten().tolist() == expected


# ---------------------------------------------------------------------- the private operators


def dgrad_cases() -> list[tuple[str, tuple]]:
    arguments = random_arguments("conv3x3", SMALL, torch.float32)
    input, weight, bias = arguments.input, arguments.weight, arguments.bias
    size = input.shape[2:]
    output, pooled, mask, windows = OPS._conv3x3_relu_and_pool_masked(input, weight, bias)
    _, pooled_mask, _ = OPS._conv3x3_relu_pool_masked(input, weight, bias)
    return [
        ("_conv3x3_dgrad", (output, weight)),
        ("_conv3x3_relu_dgrad", (output, weight, mask, 0.5)),
        ("_conv3x3_relu_pool_dgrad", (pooled, weight, pooled_mask, windows, *size)),
        ("_conv3x3_relu_and_pool_dgrad", (output, pooled, weight, mask, windows, 0.5)),
        *((name, (input, weight, bias, None, 0.1, "reflect")) for name in MASKED),
        ("conv3x3_relu_and_pool", (input, weight, bias)),
    ]


CASES = dgrad_cases()
NAMES = [name for name, _ in CASES]


@pytest.mark.parametrize(("name", "given"), CASES, ids=NAMES)
@pytest.mark.parametrize("grad", [False, True], ids=["plain", "input's gradient"])
def test_opcheck(name: str, given: tuple, grad: bool) -> None:
    first = given[0].detach().clone().requires_grad_(grad)
    torch.library.opcheck(getattr(OPS, name).default, (first, *given[1:]))


@pytest.mark.parametrize(("name", "given"), CASES[:4], ids=NAMES[:4])
def test_bad_input_of_the_backward_operators(name: str, given: tuple) -> None:
    operator = getattr(OPS, name)

    def refuses(position: int, wrong: Tensor, sentence: str) -> None:
        with pytest.raises(RuntimeError, match=sentence):
            operator(*given[:position], wrong, *given[position + 1 :])

    for position, tensor in enumerate(given):
        if not isinstance(tensor, Tensor):
            continue
        if tensor.dtype == torch.uint8:
            refuses(position, tensor.int(), "must be uint8")
            refuses(position, tensor[:, :-1], "must have shape")
        elif tensor.shape[-2:] == (3, 3):
            refuses(position, tensor.double(), "weight is float64")
            refuses(position, tensor[..., :2], "weight must be")
        else:
            refuses(position, tensor[:, :-1], "must have shape")


# ------------------------------------------------------------------------------- what autograd does


def loss_of(op: str, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    arguments = Arguments(input, weight, bias, input)
    return sum(o.square().sum() for o in outputs(op, arguments, input, weight))


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    arguments = random_arguments("conv3x3", SMALL, dtype)
    return arguments.input.requires_grad_(), arguments.weight, arguments.bias


@public
def test_gradcheck_once_and_twice(op: str) -> None:
    input, weight, bias = drawn()
    input = input[:1, :, :4, :5].detach().requires_grad_()

    def call(input: Tensor) -> Tensor:
        return loss_of(op, input, weight, bias)

    assert torch.autograd.gradcheck(call, input)
    assert torch.autograd.gradgradcheck(call, input)


@public
def test_transforms(op: str) -> None:
    input, weight, bias = drawn()
    expected = torch.autograd.grad(loss_of(op, input, weight, bias), input)[0]
    gradient = torch.func.grad(lambda input: loss_of(op, input, weight, bias))
    torch.testing.assert_close(gradient(input.detach()), expected)
    batch = torch.stack((input.detach(), -input.detach()))
    torch.testing.assert_close(torch.func.vmap(gradient)(batch)[0], expected)


@public
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(op: str, reentrant: bool) -> None:
    input, weight, bias = drawn(torch.float32)
    expected = torch.autograd.grad(loss_of(op, input, weight, bias), input)[0]
    loss = checkpoint(loss_of, op, input, weight, bias, use_reentrant=reentrant)
    loss.backward()
    assert torch.equal(input.grad, expected)


@public
def test_compiled_the_graph_keeps_bits(op: str) -> None:
    input, weight, bias = drawn(torch.float32)
    arguments = random_arguments("conv3x3", SMALL, torch.float32)
    arguments.bias = bias

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(input: Tensor) -> tuple[Tensor, ...]:
        return outputs(op, arguments, input, weight)

    found = call(input)
    kept = found[0].grad_fn.saved_tensors
    assert sum(t.nbytes for t in kept if t.dtype.is_floating_point) <= weight.nbytes
    gradient = torch.autograd.grad(sum(o.square().sum() for o in found), input)[0]
    expected = torch.autograd.grad(loss_of(op, input, weight, bias), input)[0]
    torch.testing.assert_close(gradient, expected)


@public
def test_exported_the_operator_stays_and_can_be_differentiated(op: str) -> None:
    input, weight, bias = drawn(torch.float32)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
            self.bias = torch.nn.Parameter(bias, requires_grad=False)

        def forward(self, input: Tensor) -> Tensor:
            return loss_of(op, input, self.weight, self.bias)

    exported = torch.export.export(Model(), (input.detach(),))
    names = {str(node.target) for node in exported.graph.nodes}
    assert f"vgg_fast.{op}.default" in names
    loss = exported.module()(input)
    expected = torch.autograd.grad(loss_of(op, input, weight, bias), input)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, input)[0], expected)


@public
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_forced_backend(op: str, backend: str) -> None:
    arguments = random_arguments("conv3x3", SMALL, torch.float32)
    expected = run(op, arguments, trains=False)
    with backends.use(backend):
        found = run(op, arguments, trains=False)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize(
    ("op", "bits"),
    [
        ("conv3x3", 0),
        ("conv3x3_relu", 1.0),
        ("conv3x3_relu_pool", 0.75),
        ("conv3x3_relu_and_pool", 1.5),
    ],
)
def test_what_is_kept(op: str, bits: float) -> None:
    """Bits for each value of the full map, and the weight."""
    arguments = random_arguments("conv3x3", EVEN, torch.float32)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs(op, arguments, arguments.input.requires_grad_(), arguments.weight)
    values = EVEN.n * EVEN.k * EVEN.h * EVEN.w
    assert sum(8 * t.nbytes for t in kept if t.dtype == torch.uint8) == bits * values
    assert sum(t.dtype.is_floating_point for t in kept) == 1


def test_only_the_frozen_layers_of_a_network_keep_bits() -> None:
    input, weight, bias = drawn(torch.float32)
    trained = torch.randn(6, 6, 3, 3).requires_grad_()
    kept: list[torch.dtype] = []
    with saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        map = OPS.conv3x3_relu(input, weight, bias)
        assert torch.uint8 in kept
        kept.clear()
        OPS.conv3x3_relu(map, trained)
    assert torch.uint8 not in kept


def test_an_argmax_that_is_asked_for_is_returned() -> None:
    input, weight, bias = drawn(torch.float32)
    output, argmax = OPS.conv3x3_relu_pool(input, weight, bias, True)
    assert output.requires_grad and not argmax.requires_grad and argmax.numel() == output.numel()


def test_both_maps_are_those_of_the_two_operators() -> None:
    for dtype, padding in itertools.product(DTYPES, ("zeros", "valid")):
        arguments = random_arguments("conv3x3", MIDDLE, dtype)
        given = (arguments.input, arguments.weight, arguments.bias)
        output, pooled = OPS.conv3x3_relu_and_pool(*given, None, 0.0, padding)
        assert torch.equal(output, OPS.conv3x3_relu(*given, None, 0.0, padding))
        assert torch.equal(pooled, OPS.conv3x3_relu_pool(*given, False, None, 0.0, padding)[0])
