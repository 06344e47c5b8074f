"""Both backends on an NVIDIA GPU: numbers, streams, CUDA graphs, autocast, compile, large tensors.

Skipped where there is no GPU; `make gpu` runs them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seed_layers import SEED_LAYERS
from tests.ops.test_scale_and_slope import some_slope
from tests.support.cases import CONVOLUTIONS, LAYOUTS, TOLERANCES, Shape
from tests.support.cuda_toolkit import skip_if_not_built
from tests.support.frozen import (
    DGRADS,
    MASKED,
    assert_dgrad,
    assert_masked,
    drawn_gradient,
    with_nans,
)
from tests.support.numerics import assert_as_accurate, relative_error
from tests.support.operators import (
    ALL,
    OPS,
    Arguments,
    Results,
    assert_equals_fp64,
    backward,
    forward,
    forward_backward,
    random_arguments,
    random_further_arguments,
    saved_for_backward,
)
from tests.support.poison import poisoned_memory
from tests.support.seed import gradients_of, images, seed_network
from vgg_fast import backends
from vgg_fast.dispatch import environment
from vgg_fast.models import VGG, seed_vgg

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
# Odd and prime sizes, one pixel, an empty batch, K on and off the multiple of every tile.
ODD = (
    Shape(2, 3, 13, 11, 7),
    Shape(1, 1, 64, 9, 14),
    Shape(0, 3, 4, 6, 5),
    Shape(2, 17, 130, 5, 33),
    Shape(3, 64, 65, 16, 19),
)
WIDE, FIRST = Shape(2, 20, 23, 18, 35), Shape(2, 1, 64, 15, 18)
SAME_BITS = {"rtol": 0, "atol": 0, "equal_nan": True}


@pytest.fixture(autouse=True)
def ieee_fp32():
    """fp32 is multiplied as fp32, not as TF32, in our kernels and in PyTorch's."""
    cudnn = torch.backends.cudnn
    settings = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    yield
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


@pytest.fixture(params=["cpp-sm_80", "cpp-sm_90a", "triton"])
def backend(request, monkeypatch):
    """The backend's name; the C++ kernels come twice, plain and on Hopper's own instructions."""
    name, _, kernels = request.param.partition("-")
    if name == "cpp":
        skip_if_not_built(kernels)
        monkeypatch.setenv("VGG_FAST_GPU", kernels)
    environment.gpu_kernels.cache_clear()
    with backends.use(name):
        yield name
    environment.gpu_kernels.cache_clear()


def on(device: torch.device | str, values: Arguments | Results):
    """The same record with its tensors on ``device``."""
    moved = {
        name: value.detach().to(device) if isinstance(value, Tensor) else value
        for name, value in vars(values).items()
    }
    return type(values)(**moved)


def check(op: str, arguments: Arguments) -> None:
    with poisoned_memory():
        results = forward_backward(op, on(GPU, arguments))
        torch.cuda.synchronize()
    assert_equals_fp64(op, arguments, on("cpu", results))


def same(found: Results, expected: Results) -> None:
    for name, tensor in vars(expected).items():
        if tensor is not None:
            assert torch.equal(getattr(found, name), tensor), name


def network(**options) -> VGG:
    return seed_network(**options).to(GPU, memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ODD, ids=str)
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_odd_shapes(backend: str, op: str, shape: Shape, dtype: torch.dtype) -> None:
    check(op, random_arguments(op, shape, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ODD, ids=str)
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_a_scale_and_a_slope(backend: str, op: str, shape: Shape, dtype: torch.dtype) -> None:
    options = {"scaled": True, "negative_slope": some_slope(op)}
    check(op, random_further_arguments(op, shape, dtype, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
@pytest.mark.parametrize("shape", [WIDE, FIRST], ids=str)
def test_a_slope_is_taken_as_it_is_given(backend: str, shape: Shape, dtype: torch.dtype) -> None:
    # 0.2 isn't a number of fp32; of 0.125 any product is one of fp16.
    slope = 0.2 if dtype == torch.float64 else 0.125
    options = {"scaled": True, "negative_slope": slope}
    check(
        "conv3x3_relu_pool", random_further_arguments("conv3x3_relu_pool", shape, dtype, **options)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
@pytest.mark.parametrize("shape", [WIDE, FIRST], ids=str)
def test_other_dtypes(backend: str, shape: Shape, dtype: torch.dtype) -> None:
    check("conv3x3_relu_pool", random_arguments("conv3x3_relu_pool", shape, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layer", dict.fromkeys(SEED_LAYERS), ids=str)
def test_the_seed_networks_layers(backend: str, layer, dtype: torch.dtype) -> None:
    shape = Shape(1, layer.c, layer.k, layer.size, layer.size)
    check(layer.op, random_arguments(layer.op, shape, dtype))


# More tiles than multiprocessors, of Hopper's clusters, patches and groups: blocks that stay load
# the next tile while they store the last.
MANY_TILES = (
    Shape(64, 512, 512, 14, 14),
    Shape(16, 64, 64, 112, 112),
    Shape(16, 64, 256, 56, 56),
    Shape(64, 128, 128, 28, 28),
)


@pytest.mark.parametrize("shape", MANY_TILES, ids=str)
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_several_tiles_a_block(backend: str, op: str, shape: Shape) -> None:
    arguments = on(GPU, random_arguments(op, shape, torch.bfloat16))
    with poisoned_memory():
        found = forward_backward(op, arguments)
    exact = Arguments(**{name: value.float() for name, value in vars(arguments).items()})
    with backends.use("reference"):
        expected = forward_backward(op, exact)
    # Behind a ReLU, gradients differ where a sum is all but zero.
    for name in ("output", "grad_input", "grad_weight") if op == "conv3x3" else ("output",):
        error = relative_error(getattr(found, name), getattr(expected, name))
        assert error <= TOLERANCES[torch.bfloat16].forward, name


def call_private(name: str, *given: Tensor | int) -> tuple[Tensor, ...] | Tensor:
    with poisoned_memory():
        return getattr(OPS, name)(*(g.to(GPU) if isinstance(g, Tensor) else g for g in given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [*ODD, Shape(8, 64, 128, 28, 28)], ids=str)
@pytest.mark.parametrize("op", MASKED)
def test_bits_for_a_frozen_weight(backend: str, op: str, shape: Shape, dtype: torch.dtype) -> None:
    assert_masked(call_private, op, on(GPU, random_arguments("conv3x3_relu", shape, dtype)))
    if shape.n:
        found = assert_masked(call_private, op, on(GPU, with_nans(shape, dtype)))
        mask = found[-2] if op != "conv3x3_relu" else found[-1]
        assert shape.k % 8 == 0 or not (mask[..., -1] >> (shape.k % 8)).any()
    options = {"scaled": True, "negative_slope": 0.125}
    further = random_further_arguments("conv3x3_relu", shape, dtype, **options)
    assert_masked(call_private, op, on(GPU, further))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [*ODD, Shape(8, 128, 64, 28, 28)], ids=str)
@pytest.mark.parametrize("op", DGRADS)
def test_the_gradient_of_a_frozen_layers_input(
    backend: str, op: str, shape: Shape, dtype: torch.dtype
) -> None:
    for slope in (0.0, 0.125) if op in MASKED else (0.0,):
        drawn = drawn_gradient(op, shape, dtype, slope=slope)
        assert_dgrad(call_private(f"_{op}_dgrad", *drawn.given), drawn, dtype)


@pytest.mark.parametrize("op", ["conv3x3", "conv3x3_relu", "conv3x3_relu_pool"])
@pytest.mark.parametrize("shape", [WIDE, FIRST], ids=str)
def test_a_frozen_layer_has_the_gradient_of_one_that_learns(
    backend: str, op: str, shape: Shape
) -> None:
    arguments = on(GPU, random_arguments(op, shape, torch.float32))
    expected = forward_backward(op, arguments).grad_input
    input = arguments.input.clone().requires_grad_()
    argmax = (False,) if op == "conv3x3_relu_pool" else ()
    output = getattr(OPS, op)(input, arguments.weight, arguments.bias, *argmax)
    (output[0] if argmax else output).backward(arguments.grad_output)
    assert relative_error(input.grad, expected) <= 2e-6


@pytest.mark.parametrize("layout", ["channels_last", "strided", "misaligned", "expanded_first"])
@pytest.mark.parametrize("shape", [WIDE, FIRST], ids=str)
def test_layouts(backend: str, shape: Shape, layout: str) -> None:
    op = "conv3x3_relu_pool"
    values = random_arguments(op, shape, torch.float32)
    arguments = on(GPU, values)
    for name, tensor in vars(arguments).items():
        setattr(arguments, name, LAYOUTS[layout](tensor))
    results = on("cpu", forward_backward(op, arguments))
    assert_equals_fp64(op, on("cpu", arguments), results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 64, 14, 14), (0, 4, 6, 6), (2, 13, 31, 2)])
def test_pooling_is_torchs_to_the_bit(backend: str, shape, dtype: torch.dtype) -> None:
    # Small integers, so that windows have ties, and one value in eight is NaN.
    input = torch.randint(-2, 3, shape).to(dtype)
    input[torch.rand(shape) < 0.125] = torch.nan
    with poisoned_memory():
        output, argmax = OPS.max_pool2x2(input.to(GPU), True)
        grad = torch.randn(output.shape).to(dtype)
        grad_input = OPS.max_pool2x2_backward(grad.to(GPU), argmax, *shape[2:])
    with backends.use("reference"):
        expected, expected_argmax = OPS.max_pool2x2(input, True)
        expected_grad = OPS.max_pool2x2_backward(grad, expected_argmax, *shape[2:])
    torch.testing.assert_close(output.cpu(), expected, **SAME_BITS)
    torch.testing.assert_close(argmax.cpu(), expected_argmax, **SAME_BITS)
    torch.testing.assert_close(grad_input.cpu(), expected_grad, **SAME_BITS)


@pytest.mark.parametrize("shape", [WIDE, FIRST], ids=str)
def test_the_same_gradients_twice(backend: str, shape: Shape) -> None:
    arguments = on(GPU, random_arguments("conv3x3_relu_pool", shape, torch.bfloat16))
    first = forward_backward("conv3x3_relu_pool", arguments)
    same(forward_backward("conv3x3_relu_pool", arguments), first)


def test_the_whole_network_is_as_accurate_as_torchs() -> None:
    fused, plain = (
        seed_vgg(image_size=64, classifier_width=256, fused=fused).to(GPU).eval()
        for fused in (True, False)
    )
    plain.load_state_dict(fused.state_dict())
    assert_as_accurate(fused, plain, torch.randn(2, 1, 64, 64, device=GPU))


def test_tf32_follows_torchs_switch(backend: str) -> None:
    values = random_arguments("conv3x3", Shape(2, 64, 64, 32, 32), torch.float32)
    doubled = Arguments(**{n: t if t is None else t.double() for n, t in vars(values).items()})
    with backends.use("reference"):
        exact = forward_backward("conv3x3", doubled)
    ieee = on("cpu", forward_backward("conv3x3", on(GPU, values)))
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    tf32 = on("cpu", forward_backward("conv3x3", on(GPU, values)))
    assert relative_error(ieee.output, exact.output) <= 2e-6
    for name in ("output", "grad_input", "grad_weight"):
        expected = getattr(exact, name)
        assert relative_error(getattr(ieee, name), expected) <= 1e-5, name
        assert 5e-5 <= relative_error(getattr(tf32, name), expected) <= 1e-3, name


def test_a_name_of_no_kernels_is_refused_in_one_sentence(monkeypatch) -> None:
    skip_if_not_built("sm_80")
    monkeypatch.setenv("VGG_FAST_GPU", "sm_42")
    environment.gpu_kernels.cache_clear()
    with backends.use("cpp"), pytest.raises(ValueError, match="VGG_FAST_GPU=sm_42 names no"):
        OPS.conv3x3(*(torch.ones(s, device=GPU).bfloat16() for s in ((1, 8, 4, 4), (8, 8, 3, 3))))
    environment.gpu_kernels.cache_clear()


# --------------------------------------------------------------------------- the dispatcher's rules


@pytest.mark.parametrize("shape", [Shape(2, 5, 9, 6, 7), Shape(2, 1, 9, 6, 7)], ids=str)
@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_opcheck(op: str, shape: Shape) -> None:
    arguments = on(GPU, random_arguments(op, shape, torch.float32))
    given = [t.requires_grad_() for t in (arguments.input, arguments.weight, arguments.bias)]
    torch.library.opcheck(getattr(OPS, op).default, given)
    saved = saved_for_backward(op, *forward(op, *given))
    detached = [tensor.detach() for tensor in saved]
    torch.library.opcheck(
        getattr(OPS, f"{op}_backward").default,
        (arguments.grad_output, given[0].detach(), given[1].detach(), *detached, *ALL),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_opcheck_of_pooling() -> None:
    input = torch.randn(2, 5, 7, 6, device=GPU, requires_grad=True)
    torch.library.opcheck(OPS.max_pool2x2.default, (input, True))


def test_tensors_on_two_devices_are_refused_in_one_sentence() -> None:
    with pytest.raises(RuntimeError, match="vgg_fast::conv3x3_relu") as error:
        OPS.conv3x3_relu(torch.randn(1, 5, 4, 4, device=GPU), torch.randn(2, 5, 3, 3))
    assert "\n" not in str(error.value).strip()


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize("shape", [WIDE, FIRST], ids=str)
def test_only_the_gradients_asked_for(backend: str, shape: Shape, needs) -> None:
    op = "conv3x3_relu"
    arguments = on(GPU, random_arguments(op, shape, torch.float32))
    saved = saved_for_backward(op, *forward(op, arguments.input, arguments.weight, arguments.bias))
    everything = backward(op, arguments, saved)
    for found, expected, needed in zip(
        backward(op, arguments, saved, needs), everything, needs, strict=True
    ):
        assert torch.equal(found, expected) if needed else found.numel() == 0


# ------------------------------------------------------------------------------ streams and graphs


@pytest.mark.parametrize("shape", [WIDE, FIRST], ids=str)
def test_the_current_stream_is_used(backend: str, shape: Shape) -> None:
    op = "conv3x3_relu_pool"
    values = random_arguments(op, shape, torch.float32)
    expected = forward_backward(op, on(GPU, values))
    arguments = on(GPU, values)
    source = arguments.input.clone()  # on the GPU: a copy from the CPU would wait for the stream
    arguments.input.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # tens of milliseconds: another stream would see the zeros
        arguments.input.copy_(source)
        found = forward_backward(op, arguments)
    stream.synchronize()
    same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_two_streams_at_once(backend: str, dtype: torch.dtype) -> None:
    op = "conv3x3_relu_pool"
    arguments = [on(GPU, random_arguments(op, Shape(4, 72, 72, 28, 28), dtype, i)) for i in (1, 2)]
    expected = [forward_backward(op, given) for given in arguments]
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in arguments], []
    for _ in range(8):
        for stream, given in zip(streams, arguments, strict=True):
            with torch.cuda.stream(stream):
                found.append(forward_backward(op, given))
    torch.cuda.synchronize()
    for i, results in enumerate(found):
        same(results, expected[i % 2])


def captured(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def test_a_training_step_in_a_cuda_graph(backend: str) -> None:
    net = network(dropout=0.0)
    input = images(4).to(GPU)
    parameters = list(net.parameters())
    found: list[Tensor] = []

    def step() -> None:
        logits = net(input)
        found[:] = [logits, *torch.autograd.grad(logits.square().sum(), parameters)]

    graph = captured(step)
    results = list(found)
    input.copy_(images(4).flip(0) * 2)
    graph.replay()
    torch.cuda.synchronize()
    replayed = [tensor.clone() for tensor in results]
    step()
    for actual, expected in zip(replayed, found, strict=True):
        assert relative_error(actual, expected) <= 1e-5


# ---------------------------------------------------------------------------- autocast and compile


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast(dtype: torch.dtype) -> None:
    fused, plain = network(dropout=0.0), network(dropout=0.0, fused=False)
    plain.load_state_dict(fused.state_dict())
    input = images().to(GPU)

    def gradients(net: VGG) -> dict[str, Tensor]:
        def autocast(x: Tensor) -> Tensor:
            with torch.autocast("cuda", dtype):
                return net(x)

        return gradients_of(net, autocast, input)

    with torch.autocast("cuda", dtype):
        assert fused[0](input).dtype == dtype
    found, torchs = gradients(fused), gradients(plain)
    exact = gradients_of(plain.double(), plain, input.double())
    for name, expected in exact.items():
        assert found[name].dtype == torchs[name].dtype, name
        bound = 2 * relative_error(torchs[name], expected) + 4e-3
        assert relative_error(found[name], expected) <= bound, name


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile(mode: str) -> None:
    torch._dynamo.reset()
    net = network(dropout=0.0)
    compiled = torch.compile(net, fullgraph=True, mode=mode)
    input = images().to(GPU)
    expected = gradients_of(net, net, input)
    for _ in range(3):  # warm-up, recording, replay
        torch.compiler.cudagraph_mark_step_begin()
        found = gradients_of(net, compiled, input)
        for name, tensor in expected.items():
            assert relative_error(found[name], tensor) <= 1e-5, name


def test_compile_and_autocast() -> None:
    torch._dynamo.reset()
    net = network().eval()
    compiled = torch.compile(net, fullgraph=True)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        found, eager = compiled(images().to(GPU)), net(images().to(GPU))
    with torch.no_grad():
        exact = net.double()(images().double().to(GPU))
    assert found.dtype == torch.bfloat16
    assert relative_error(found, exact) <= 2 * relative_error(eager, exact) + 4e-3


# ------------------------------------------------------------------------------ beyond 2³¹ elements


def enough_memory(gigabytes: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes << 30:
        pytest.skip(f"needs {gigabytes} GiB of free GPU memory")


@pytest.mark.parametrize("c", [3, 64])
def test_more_than_2_to_the_31_outputs(backend: str, c: int) -> None:
    enough_memory(24)
    images = torch.randn(9, c, 1920, 2048, device=GPU, dtype=torch.bfloat16)
    images = images.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, c, 3, 3, device=GPU, dtype=torch.bfloat16)
    output = OPS.conv3x3_relu(images, weight, None)
    assert output.numel() > 2**31
    assert torch.equal(output[-1:], OPS.conv3x3_relu(images[-1:], weight, None))
    mask = OPS._conv3x3_relu_masked(images, weight)[1]
    assert torch.equal(mask[-1:], OPS._conv3x3_relu_masked(images[-1:], weight)[1])


def test_pooling_of_more_than_2_to_the_31_inputs(backend: str) -> None:
    enough_memory(24)
    maps = torch.randn(9, 64, 1920, 2048, device=GPU, dtype=torch.bfloat16)
    maps = maps.contiguous(memory_format=torch.channels_last)
    output, argmax = OPS.max_pool2x2(maps, True)
    expected, expected_argmax = OPS.max_pool2x2(maps[-1:], True)
    assert torch.equal(output[-1:], expected) and torch.equal(argmax[-1:], expected_argmax)
    gradient = OPS.max_pool2x2_backward(output, argmax, 1920, 2048)
    alone = OPS.max_pool2x2_backward(expected, expected_argmax, 1920, 2048)
    assert torch.equal(gradient[-1:], alone)
