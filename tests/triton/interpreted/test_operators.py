"""Every operator under the interpreter. It is slow: shapes are small, but cut tiles, patches and
blocks of channels everywhere that the kernels have an edge."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="there is no Triton for this platform")

from tests.support.cases import CONVOLUTIONS, DTYPES, LAYOUTS, Shape
from tests.support.operators import (
    OPS,
    Arguments,
    Results,
    all_gradients,
    assert_equals_fp64,
    assert_same,
    backward,
    forward,
    forward_backward,
    full_map,
    gradient_of_full_map,
    is_channels_last,
    output_shape,
    random_arguments,
    saved_for_backward,
    torch_indices,
)
from tests.support.poison import poisoned_memory
from vgg_fast import backends
from vgg_fast.dispatch import policy, route
from vgg_fast.models import VGG
from vgg_fast.triton import launch, max_pool2x2

SMALL = Shape(2, 3, 5, 3, 5)
EDGES = Shape(2, 3, 5, 7, 17)  # an odd last row and column, and patches that hang over the edge
BLOCKS = Shape(1, 37, 67, 2, 3)  # several blocks of channels, unaligned
CASES = (
    (torch.float32, Shape(1, 1, 2, 2, 2)),
    (torch.float32, EDGES),
    (torch.float32, BLOCKS),
    (torch.bfloat16, EDGES),
    (torch.bfloat16, Shape(1, 48, 16, 3, 5)),
    (torch.float16, BLOCKS),
    (torch.float64, Shape(1, 9, 33, 3, 2)),
)
# One window, one channel, more channels and more windows than a tile has, odd sizes, three columns.
POOLS = (
    (1, 1, 2, 2),
    (2, 5, 7, 9),
    (1, 130, 3, 17),
    (1, 40, 2, 70),
    (2, 3, 2, 5),
    (1, 64, 4, 3),
    (1, 1, 2, 2100),
)

convolutions = pytest.mark.parametrize("op", CONVOLUTIONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
both_layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


@pytest.fixture(autouse=True)
def _triton():
    with backends.use("triton"):
        yield


def test_the_kernels_are_interpreted() -> None:
    assert launch.INTERPRETED
    for op in (*CONVOLUTIONS, "max_pool2x2"):
        for name in (op, op + "_backward"):
            chosen, kernel = route.kernel_for(name, "CPU", torch.zeros(1, 64, 2, 2))
            assert (chosen, kernel.__module__) == ("triton", f"vgg_fast.triton.{op}")


@convolutions
class TestConvolutions:
    @pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
    def test_equals_fp64(self, op: str, dtype: torch.dtype, shape: Shape) -> None:
        arguments = random_arguments(op, shape, dtype)
        with poisoned_memory():
            results = forward_backward(op, arguments)
        assert_equals_fp64(op, arguments, results)
        assert results.output.shape == output_shape(op, shape)
        assert is_channels_last(results.output)
        assert results.grad_input.stride() == arguments.input.stride()  # as torch gives it
        for tensor in (results.output, results.grad_input, results.grad_weight, results.grad_bias):
            assert tensor.dtype == dtype

    def test_without_a_bias(self, op: str) -> None:
        arguments = random_arguments(op, SMALL, torch.float32)
        arguments.bias = None
        assert_equals_fp64(op, arguments, forward_backward(op, arguments))

    def test_an_empty_batch(self, op: str) -> None:
        results = forward_backward(op, random_arguments(op, Shape(0, 3, 4, 6, 5), torch.float32))
        assert results.output.shape == output_shape(op, Shape(0, 3, 4, 6, 5))
        assert results.grad_input.shape == (0, 3, 6, 5)
        assert not results.grad_weight.any() and not results.grad_bias.any()

    @pytest.mark.parametrize("layout", ["channels_last", "strided", "reversed", "expanded_last"])
    def test_layouts(self, op: str, layout: str) -> None:
        arguments = random_arguments(op, SMALL, torch.float32)
        arguments = Arguments(**{k: LAYOUTS[layout](v) for k, v in vars(arguments).items()})
        before = {name: tensor.clone() for name, tensor in vars(arguments).items()}
        results = forward_backward(op, arguments)
        assert_equals_fp64(op, arguments, results)
        for name, tensor in before.items():
            assert torch.equal(getattr(arguments, name), tensor), f"{name} was written to"
        dense = Arguments(**{k: v.contiguous() for k, v in vars(arguments).items()})
        assert_same(results, forward_backward(op, dense))

    def test_each_gradient_alone_is_the_same(self, op: str) -> None:
        arguments = random_arguments(op, SMALL, torch.bfloat16)
        saved = saved_for_backward(
            op, *forward(op, arguments.input, arguments.weight, arguments.bias)
        )
        every = backward(op, arguments, saved)
        for alone in range(3):
            needs = tuple(i == alone for i in range(3))
            for needed, found, expected in zip(
                needs, backward(op, arguments, saved, needs), every, strict=True
            ):
                assert torch.equal(found, expected) if needed else found.numel() == 0

    def test_a_nan_reaches_what_it_should(self, op: str) -> None:
        arguments = random_arguments(op, EDGES, torch.bfloat16)
        clean = forward_backward(op, arguments).output
        arguments.input[1, 2, 6, 16] = torch.nan
        arguments.input[0, 0, 3, 15] = torch.nan
        results = forward_backward(op, arguments)
        # In fp64: some of torch's 16-bit convolutions spread a NaN to the neighbours.
        given = (arguments.input, arguments.weight, arguments.bias)
        full = full_map(op, *(tensor.double() for tensor in given))
        expected = F.max_pool2d(full, 2) if op == "conv3x3_relu_pool" else full
        assert torch.equal(results.output.isnan(), expected.isnan())
        numbers = ~expected.isnan()
        assert torch.equal(results.output[numbers], clean[numbers])
        gradients = all_gradients(
            gradient_of_full_map(op, arguments, results),
            arguments.input.double(),
            arguments.weight.double(),
        )
        assert not results.grad_input.isnan().any()
        assert torch.equal(results.grad_weight.isnan(), gradients[1].isnan())
        assert 0 < results.grad_weight.isnan().sum() < results.grad_weight.numel()

    def test_a_nan_in_the_gradient_passes_a_nan_and_no_zero(self, op: str) -> None:
        arguments = random_arguments(op, SMALL, torch.float32)
        arguments.bias[1], arguments.bias[2] = -100.0, torch.nan
        arguments.grad_output[:, 1:3] = torch.nan
        output, argmax = forward(op, arguments.input, arguments.weight, arguments.bias)
        gradients = backward(op, arguments, saved_for_backward(op, output, argmax))
        passes_zeros = op == "conv3x3"
        assert gradients[2].isnan().tolist() == [False, passes_zeros, True, False, False]
        results = Results(output, argmax, *gradients)
        reached = all_gradients(
            gradient_of_full_map(op, arguments, results),
            arguments.input.double(),
            arguments.weight.double(),
        )[0].isnan()
        assert torch.equal(gradients[0].isnan(), reached)

    def test_ties_and_the_gradient_at_zero(self, op: str) -> None:
        arguments = random_arguments(op, SMALL, torch.float32)
        arguments.weight.zero_()
        arguments.bias.copy_(torch.tensor([1.0, 0.0, -0.0, 2.0, -3.0]))
        arguments.weight.requires_grad_()
        results = forward_backward(op, arguments)
        if op == "conv3x3_relu_pool":
            assert not results.argmax.any()
        expected = arguments.grad_output.sum((0, 2, 3))
        if op != "conv3x3":
            expected[[1, 2, 4]] = 0
        torch.testing.assert_close(results.grad_bias, expected)

    def test_the_argmax_is_optional(self, op: str) -> None:
        arguments = random_arguments(op, SMALL, torch.float16)
        given = arguments.input, arguments.weight, arguments.bias
        if op == "conv3x3_relu_pool":
            output, argmax = OPS.conv3x3_relu_pool(*given, False)
            assert argmax.numel() == 0 and argmax.dtype == torch.uint8
            assert torch.equal(output, forward(op, *given)[0])
        else:
            assert forward(op, *given)[1] is None

    def test_gradcheck(self, op: str) -> None:
        arguments = random_arguments(op, Shape(1, 1, 2, 2, 2), torch.float64)
        given = (arguments.input, arguments.weight, arguments.bias)
        leaves = [tensor.requires_grad_() for tensor in given]
        assert torch.autograd.gradcheck(lambda *args: forward(op, *args)[0], leaves, fast_mode=True)

    def test_opcheck(self, op: str) -> None:
        arguments = random_arguments(op, Shape(1, 2, 3, 4, 2), torch.float32)
        given = [arguments.input, arguments.weight, arguments.bias]
        saved = saved_for_backward(op, *forward(op, *given))
        torch.library.opcheck(
            getattr(OPS, op + "_backward").default,
            (arguments.grad_output, *given[:2], *saved, True, True, True),
        )
        leaves = [tensor.requires_grad_() for tensor in given]
        torch.library.opcheck(getattr(OPS, op).default, leaves)

    def test_bad_input_gets_the_sentence_that_the_other_backends_give(self, op: str) -> None:
        arguments = random_arguments(op, SMALL, torch.float32)
        given = arguments.input, arguments.weight, arguments.bias
        saved = saved_for_backward(op, *forward(op, *given))
        half = Arguments(*(tensor.half() for tensor in vars(arguments).values()))
        calls = [
            lambda: forward(op, arguments.input[0], *given[1:]),
            lambda: forward(op, arguments.input.int(), *given[1:]),
            lambda: forward(op, arguments.input[:, :2], *given[1:]),
            lambda: forward(op, arguments.input, arguments.weight[..., :2], arguments.bias),
            lambda: forward(op, *given[:2], arguments.bias[:2]),
            lambda: forward(op, *given[:2], arguments.bias.double()),
            lambda: backward(op, Arguments(*given, arguments.grad_output[..., :1]), saved),
            lambda: backward(op, Arguments(*given, half.grad_output), saved),
        ]
        if op == "conv3x3_relu_pool":
            calls.append(lambda: forward(op, arguments.input[:, :, :1], *given[1:]))
            calls.append(lambda: backward(op, arguments, (saved[0], saved[1].int())))
        for call in calls:
            messages = []
            for backend in ("triton", "cpp"):
                with backends.use(backend), pytest.raises(RuntimeError) as error:
                    call()
                messages.append(str(error.value))
            assert messages[0] == messages[1]


class TestMaxPool2x2:
    def check(self, input: torch.Tensor, grad_output: torch.Tensor) -> None:
        """Bit for bit what torch gives."""
        theirs = input.detach().clone().requires_grad_()
        expected, indices = F.max_pool2d(theirs, 2, return_indices=True)
        (torchs_gradient,) = torch.autograd.grad(expected, theirs, grad_output)
        ours = input.detach().requires_grad_()
        with poisoned_memory():
            output, argmax = OPS.max_pool2x2(ours, True)
            (gradient,) = torch.autograd.grad(output, ours, grad_output)
        assert torch.equal(torch_indices(argmax, input.shape[3]), indices)
        assert is_channels_last(output) and gradient.stride() == torchs_gradient.stride()
        for actual, wanted in ((output, expected), (gradient, torchs_gradient)):
            assert actual.dtype == input.dtype
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)

    def random(self, shape, dtype) -> tuple[torch.Tensor, torch.Tensor]:
        n, c, h, w = shape
        return torch.randn(shape).to(dtype), torch.randn(n, c, h // 2, w // 2).to(dtype)

    @dtypes
    @both_layouts
    @pytest.mark.parametrize("shape", POOLS, ids=str)
    def test_equals_torch(self, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
        self.check(*map(LAYOUTS[layout], self.random(shape, dtype)))

    @dtypes
    @both_layouts
    def test_ties_and_nans(self, layout: str, dtype: torch.dtype) -> None:
        input, grad_output = map(LAYOUTS[layout], self.random((1, 3, 4, 32), dtype))
        self.check(input.sign(), grad_output)
        windows = torch.arange(32).view(2, 16)  # every subset of a window's pixels is NaN
        for position in range(4):
            pixels = input[:, :, position // 2 :: 2, position % 2 :: 2]
            pixels[:, :, (windows >> position) % 2 == 1] = torch.nan
        self.check(input, grad_output)

    @pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
    def test_layouts(self, layout: str) -> None:
        self.check(*map(LAYOUTS[layout], self.random((2, 3, 5, 6), torch.bfloat16)))

    @pytest.mark.parametrize("layout", list(LAYOUTS))
    def test_no_layout_is_copied_first(self, layout: str, monkeypatch) -> None:
        launched = []

        def record(self: launch.Launch, *tensors) -> None:
            launched.append(tensors[0])
            start(self, *tensors)

        start = launch.Launch.__call__
        monkeypatch.setattr(launch.Launch, "__call__", record)
        input, grad_output = map(LAYOUTS[layout], self.random((2, 3, 5, 6), torch.bfloat16))
        _, argmax = max_pool2x2.max_pool2x2(input)
        max_pool2x2.max_pool2x2_backward(grad_output, argmax, 5, 6)
        assert launched[0] is input and launched[1] is grad_output

    def test_the_argmax_may_have_any_layout(self) -> None:
        input, grad_output = self.random((2, 3, 5, 6), torch.float32)
        _, argmax = OPS.max_pool2x2(input, True)
        expected = OPS.max_pool2x2_backward(grad_output, argmax, 5, 6)
        for layout in LAYOUTS:
            if not layout.startswith("expanded"):
                given = grad_output, LAYOUTS[layout](argmax.contiguous())
                assert torch.equal(OPS.max_pool2x2_backward(*given, 5, 6), expected), layout

    def test_an_empty_batch(self) -> None:
        self.check(*self.random((0, 3, 4, 6), torch.float32))

    def test_the_argmax_is_optional(self) -> None:
        input, _ = self.random((1, 3, 4, 6), torch.float32)
        output, argmax = OPS.max_pool2x2(input, False)
        assert torch.equal(output, F.max_pool2d(input, 2)) and argmax.numel() == 0

    def test_opcheck(self) -> None:
        input, grad_output = self.random((1, 2, 3, 4), torch.float32)
        torch.library.opcheck(OPS.max_pool2x2.default, (input.requires_grad_(),))
        _, argmax = OPS.max_pool2x2(input.detach(), True)
        torch.library.opcheck(OPS.max_pool2x2_backward.default, (grad_output, argmax, 3, 4))

    def test_bad_input_gets_the_sentence_that_the_other_backends_give(self) -> None:
        input, grad_output = self.random((1, 2, 3, 4), torch.float32)
        _, argmax = OPS.max_pool2x2(input, True)
        for call in (
            lambda: OPS.max_pool2x2(input[0]),
            lambda: OPS.max_pool2x2(input.int()),
            lambda: OPS.max_pool2x2(input[:, :, :1]),
            lambda: OPS.max_pool2x2_backward(grad_output, argmax, 9, 4),
            lambda: OPS.max_pool2x2_backward(grad_output, argmax[:, :1], 3, 4),
            lambda: OPS.max_pool2x2_backward(grad_output, argmax.int(), 3, 4),
        ):
            messages = []
            for backend in ("triton", "cpp"):
                with backends.use(backend), pytest.raises(RuntimeError) as error:
                    call()
                messages.append(str(error.value))
            assert messages[0] == messages[1]


class TestWhole:
    def test_many_pixels_in_several_splits(self) -> None:
        arguments = random_arguments("conv3x3", Shape(2, 2, 3, 9, 33), torch.bfloat16)
        assert_equals_fp64("conv3x3", arguments, forward_backward("conv3x3", arguments))

    def test_a_vgg_takes_one_step_as_the_reference_does(self) -> None:
        model = VGG(((1, 8), (2, 12)), image_size=8, classifier_width=16)
        images, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
        stepped = {}
        for backend in ("triton", "reference"):
            net = copy.deepcopy(model).eval()  # no dropout
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            with backends.use(backend):
                loss = F.cross_entropy(net(images), labels)
                loss.backward()
            optimizer.step()
            stepped[backend] = [loss.detach(), *(p.detach() for p in net.parameters())]
        for actual, expected in zip(stepped["triton"], stepped["reference"], strict=True):
            torch.testing.assert_close(actual, expected)
        changed = zip(stepped["triton"][1:], model.parameters(), strict=True)
        assert all(not torch.equal(after, before) for after, before in changed)

    def test_autocast(self) -> None:
        arguments = random_arguments("conv3x3_relu", SMALL, torch.float32)
        given = arguments.input, arguments.weight, arguments.bias
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = OPS.conv3x3_relu(*given)
        lower = OPS.conv3x3_relu(*(tensor.bfloat16() for tensor in given))
        assert output.dtype == torch.bfloat16 and torch.equal(output, lower)

    def test_compiled(self) -> None:
        arguments = random_arguments("conv3x3_relu_pool", SMALL, torch.float32)
        given = arguments.input, arguments.weight, arguments.bias

        @torch.compile(fullgraph=True, backend="aot_eager")
        def function(*args):
            return OPS.conv3x3_relu_pool(*args)[0] + 1

        assert torch.equal(function(*given), OPS.conv3x3_relu_pool(*given)[0] + 1)

    def test_precision_follows_torchs_switches(self) -> None:
        conv = torch.backends.cudnn.conv
        before = conv.fp32_precision
        try:
            for setting, expected in (("tf32", "tf32"), ("ieee", "ieee")):
                conv.fp32_precision = setting
                assert policy.precision(torch.float32) == expected
                assert policy.precision(torch.float64) == "ieee"
        finally:
            conv.fp32_precision = before

    @pytest.mark.parametrize("extents", [(1, 9, 2**20, 64), (2, 2**15, 2**15, 1), (1, 4, 4, 2**14)])
    def test_a_map_beyond_32_bit_offsets_is_refused(self, extents: tuple[int, ...]) -> None:
        with pytest.raises(RuntimeError, match="use the backend 'reference'"):
            launch.check_extents(*extents)
        launch.check_extents(2**20, 32, 32, 512)  # 2^39 values are no obstacle
