"""What the operators refuse: with one sentence, the same from the C++ kernels, the reference and
the fake kernels, and without a crash."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map_only

from tests.support.cases import CONVOLUTIONS
from tests.support.operators import OPS
from vgg_fast import backends, functional

convolutions = pytest.mark.parametrize("op", CONVOLUTIONS)


def some(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def sentences(call: Callable, *args) -> set[str]:
    """What each path says as it refuses ``call(*args)``."""
    said = set()
    for backend in ("auto", "cpp", "reference"):
        with backends.use(backend), pytest.raises(RuntimeError) as error:
            call(*args)
        said.add(str(error.value))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    imitations = tree_map_only(Tensor, mode.from_tensor, args)
    with mode, pytest.raises(RuntimeError) as error:
        call(*imitations)
    said.add(str(error.value))
    return said


def assert_refused(match: str, call: Callable, *args) -> None:
    """Every path refuses ``call(*args)`` with the very sentence that ``match`` matches."""
    (sentence,) = sentences(call, *args)
    assert re.fullmatch(r"vgg_fast::\w+: " + match, sentence), sentence
    assert "\n" not in sentence


# ------------------------------------------------------------------------------------- convolutions


@convolutions
@pytest.mark.parametrize("shape", [(), (3,), (8, 8), (3, 8, 8), (1, 2, 3, 8, 8)], ids=str)
def test_another_rank(op: str, shape: tuple[int, ...]) -> None:
    assert_refused(
        rf"input must have 4 dimensions \(N, C, H, W\), but its shape is {re.escape(str(shape))}",
        getattr(OPS, op), some(*shape), some(4, 3, 3, 3), some(4),
    )  # fmt: skip


@pytest.mark.parametrize("op", [*CONVOLUTIONS, "max_pool2x2"])
@pytest.mark.parametrize("shape", [(), (3,), (8, 8), (1, 2, 3, 8, 8)], ids=str)
def test_another_rank_of_a_function(op: str, shape: tuple[int, ...]) -> None:
    weights = () if op == "max_pool2x2" else (some(4, 3, 3, 3), some(4))
    with pytest.raises(RuntimeError, match="input must have 4 dimensions"):
        getattr(functional, op)(some(*shape), *weights)


@pytest.mark.parametrize("op", [*CONVOLUTIONS, "max_pool2x2"])
@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16,
     torch.uint32, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)  # fmt: skip
def test_integers_complex_numbers_and_8_bit_floats(op: str, dtype: torch.dtype) -> None:
    weights = () if op == "max_pool2x2" else (some(4, 3, 3, 3, dtype=dtype), some(4, dtype=dtype))
    assert_refused(
        r"input must be float32, bfloat16, float16 or float64, but it is "
        rf"{str(dtype).removeprefix('torch.')}; convert it first",
        getattr(OPS, op), some(1, 3, 8, 8, dtype=dtype), *weights,
    )  # fmt: skip


@pytest.mark.parametrize("op", [*CONVOLUTIONS, "max_pool2x2"])
@pytest.mark.parametrize("shape", [(1, 0, 8, 8), (1, 3, 0, 8), (1, 3, 8, 0), (0, 0, 8, 8)], ids=str)
def test_nothing_but_the_batch_may_be_empty(op: str, shape: tuple[int, ...]) -> None:
    weights = () if op == "max_pool2x2" else (some(4, shape[1], 3, 3), some(4))
    assert_refused(
        r"input may have an empty batch, but it has {} channels of {}x{} pixels".format(*shape[1:]),
        getattr(OPS, op), some(*shape), *weights,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("op", [*CONVOLUTIONS, "max_pool2x2"])
@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("layout", ["sparse_coo", "_mkldnn"])
def test_a_layout_that_is_not_dense(op: str, argument: int, layout: str) -> None:
    given = [some(1, 3, 8, 8), some(4, 3, 3, 3), some(4)][: 1 if op == "max_pool2x2" else 3]
    if argument >= len(given):
        pytest.skip("max_pool2x2 takes no weights")
    convert = {"sparse_coo": Tensor.to_sparse, "_mkldnn": Tensor.to_mkldnn}[layout]
    given[argument] = convert(given[argument])
    name = ("input", "weight", "bias")[argument]
    with pytest.raises(RuntimeError) as error:
        getattr(functional, op)(*given)
    assert str(error.value) == (
        f"vgg_fast::{op}: {name} must be a dense tensor, but its layout is torch.{layout}; call "
        "its to_dense() first"
    )


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
@pytest.mark.parametrize("op", [*CONVOLUTIONS, "max_pool2x2"])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors(op: str, layout: torch.layout) -> None:
    images = torch.nested.nested_tensor([some(3, 8, 8), some(3, 8, 8)], layout=layout)
    weights = () if op == "max_pool2x2" else (some(4, 3, 3, 3), some(4))
    with pytest.raises(RuntimeError) as error:
        getattr(functional, op)(images, *weights)
    assert str(error.value) == (
        f"vgg_fast::{op}: input is a nested tensor; pad its images to one size first, with "
        "to_padded_tensor()"
    )


@pytest.mark.parametrize("op", [*CONVOLUTIONS, "max_pool2x2"])
@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((0, 8, 8), "input may have an empty batch, but it has 0 channels of 8x8 pixels"),
        ((3, 0, 8), "input may have an empty batch, but it has 3 channels of 0x8 pixels"),
        ((5, 8, 8), "input has 5 channels, but weight (4, 3, 3, 3) takes 3"),
    ],
    ids=str,
)
def test_one_image_is_reported_as_one(op: str, shape: tuple[int, ...], sentence: str) -> None:
    if op == "max_pool2x2" and "weight" in sentence:
        pytest.skip("takes no weights")
    weights = () if op == "max_pool2x2" else (some(4, 3, 3, 3), some(4))
    with pytest.raises(RuntimeError) as error:
        getattr(functional, op)(some(*shape), *weights)
    assert str(error.value) == f"vgg_fast::{op}: {sentence}"


@convolutions
@pytest.mark.parametrize(
    "shape", [(4, 3, 5, 5), (4, 3, 1, 1), (4, 3, 3, 1), (4, 3, 1, 3), (4, 3, 3), (4, 3, 3, 3, 3),
              (0, 3, 3, 3), ()], ids=str,
)  # fmt: skip
def test_a_kernel_that_is_not_3x3(op: str, shape: tuple[int, ...]) -> None:
    assert_refused(
        rf"weight must be \(K, C, 3, 3\), but its shape is {re.escape(str(shape))}; for other "
        "kernel sizes use torch.nn.Conv2d",
        getattr(OPS, op), some(1, 3, 8, 8), some(*shape), None,
    )  # fmt: skip


@convolutions
@pytest.mark.parametrize("channels", [0, 1, 2, 4])
def test_channels_that_do_not_match(op: str, channels: int) -> None:
    assert_refused(
        rf"input has 3 channels, but weight \(4, {channels}, 3, 3\) takes {channels}",
        getattr(OPS, op), some(1, 3, 8, 8), some(4, channels, 3, 3), some(4),
    )  # fmt: skip


@convolutions
@pytest.mark.parametrize("shape", [(3,), (5,), (0,), (1,), (4, 1), (1, 4), ()], ids=str)
def test_a_bias_of_another_length(op: str, shape: tuple[int, ...]) -> None:
    assert_refused(
        r"bias must have one value for each of the 4 output channels, but its shape is "
        + re.escape(str(shape)),
        getattr(OPS, op), some(1, 3, 8, 8), some(4, 3, 3, 3), some(*shape),
    )  # fmt: skip


@convolutions
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_mixed_dtypes(op: str, name: str, dtype: torch.dtype) -> None:
    given = {"weight": some(4, 3, 3, 3), "bias": some(4)}
    given[name] = given[name].to(dtype)
    assert_refused(
        rf"input is float32, but {name} is {str(dtype).removeprefix('torch.')}; convert one of "
        "them, or use torch.autocast",
        getattr(OPS, op), some(1, 3, 8, 8), *given.values(),
    )  # fmt: skip


@convolutions
@pytest.mark.parametrize("name", ["input", "weight", "bias"])
def test_mixed_devices(op: str, name: str) -> None:
    given = {"input": some(1, 3, 8, 8), "weight": some(4, 3, 3, 3), "bias": some(4)}
    given[name] = given[name].to("meta")
    with pytest.raises(
        RuntimeError, match=r"input is on \w+, but \w+ is on \w+; move one"
    ) as error:
        getattr(OPS, op)(*given.values())
    assert "\n" not in str(error.value)


@pytest.mark.gpu
@convolutions
@pytest.mark.parametrize("name", ["input", "weight", "bias"])
def test_a_mixture_of_cpu_and_gpu(op: str, name: str) -> None:
    given = {"input": some(1, 3, 8, 8), "weight": some(4, 3, 3, 3), "bias": some(4)}
    given[name] = given[name].cuda()
    with pytest.raises(RuntimeError, match=r"input is on (cpu|cuda:0), but \w+ is on (cpu|cuda:0)"):
        getattr(OPS, op)(*given.values())


@pytest.mark.parametrize(("height", "width"), [(1, 8), (8, 1), (1, 1)])
def test_an_image_without_a_single_window(height: int, width: int) -> None:
    match = (
        rf"2x2 pooling needs a height and width of at least 2, but the input is {height}x{width}; "
        "use larger images or fewer blocks"
    )
    input = some(1, 3, height, width)
    assert_refused(match, OPS.max_pool2x2, input)
    assert_refused(match, OPS.conv3x3_relu_pool, input, some(4, 3, 3, 3), some(4))


# ------------------------------------------------------------------------------- backward operators


def backward_arguments(op: str) -> list:
    """Arguments that the backward operator of ``op`` takes."""
    pooled = op == "conv3x3_relu_pool"
    size = 4 if pooled else 8
    saved = {"conv3x3": 0, "conv3x3_relu": 1, "conv3x3_relu_pool": 1}[op]
    return [
        some(2, 4, size, size), some(2, 3, 8, 8), some(4, 3, 3, 3),
        *[some(2, 4, size, size)] * saved,
        *[some(2, 4, size, size, dtype=torch.uint8)] * pooled,
        True, True, True,
    ]  # fmt: skip


BACKWARD_TENSORS = [
    (op, index, name)
    for op in CONVOLUTIONS
    for index, name in ((0, "grad_output"), (3, "output"), (4, "argmax"))
    if isinstance(dict(enumerate(backward_arguments(op))).get(index), Tensor)
]


@convolutions
def test_the_backward_operators_take_what_the_tests_below_break(op: str) -> None:
    arguments = backward_arguments(op)
    gradients = getattr(OPS, op + "_backward")(*arguments)
    assert [gradient.shape for gradient in gradients[:2]] == [t.shape for t in arguments[1:3]]


@pytest.mark.parametrize(("op", "index", "name"), BACKWARD_TENSORS)
@pytest.mark.parametrize("shape", [(2, 4, 7, 7), (2, 3, 8, 8), (1, 4, 8, 8), (8, 8), ()], ids=str)
def test_a_saved_tensor_of_another_shape(op: str, index: int, name: str, shape) -> None:
    arguments = backward_arguments(op)
    expected = tuple(arguments[index].shape)
    arguments[index] = some(*shape, dtype=arguments[index].dtype)
    assert_refused(
        rf"{name} must have shape {re.escape(str(expected))} on cpu, but it has "
        rf"{re.escape(str(shape))} on cpu",
        getattr(OPS, op + "_backward"), *arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("op", "index", "name"), [case for case in BACKWARD_TENSORS if case[2] != "argmax"]
)
def test_a_saved_tensor_of_another_dtype(op: str, index: int, name: str) -> None:
    arguments = backward_arguments(op)
    arguments[index] = arguments[index].half()
    assert_refused(
        rf"input is float32, but {name} is float16; convert one of them, or use torch.autocast",
        getattr(OPS, op + "_backward"), *arguments,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_an_argmax_of_another_dtype(dtype: torch.dtype) -> None:
    match = (
        "argmax must be uint8, as the forward operator returns it, but it is "
        rf"{str(dtype).removeprefix('torch.')}"
    )
    arguments = backward_arguments("conv3x3_relu_pool")
    arguments[4] = arguments[4].to(dtype)
    assert_refused(match, OPS.conv3x3_relu_pool_backward, *arguments)
    assert_refused(
        match, OPS.max_pool2x2_backward, some(2, 4, 4, 4), some(2, 4, 4, 4, dtype=dtype), 8, 8
    )


@convolutions
def test_a_backward_operator_checks_the_convolution_too(op: str) -> None:
    arguments = backward_arguments(op)
    arguments[2] = some(4, 2, 3, 3)
    assert_refused(
        r"input has 3 channels, but weight \(4, 2, 3, 3\) takes 2",
        getattr(OPS, op + "_backward"), *arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("grad", "argmax", "size"),
    [((2, 4, 4, 4), (2, 4, 4, 3), (8, 8)), ((2, 4, 4, 4), (2, 4, 4, 4), (8, 10)),
     ((2, 4, 4, 4), (2, 4, 4, 4), (7, 8)), ((2, 4, 4, 4), (4, 4), (8, 8))],
    ids=str,
)  # fmt: skip
def test_a_pooling_gradient_of_another_input(grad, argmax, size) -> None:
    assert_refused(
        rf"grad_output {re.escape(str(grad))} on cpu and argmax {re.escape(str(argmax))} on cpu "
        rf"don't belong to an input of {size[0]}x{size[1]}",
        OPS.max_pool2x2_backward, some(*grad), some(*argmax, dtype=torch.uint8), *size,
    )  # fmt: skip


def test_an_argmax_out_of_range_writes_nothing_elsewhere() -> None:
    # The byte names one of 4 pixels; another value, which no forward pass gives, names none.
    argmax = torch.full((1, 1, 2, 2), 200, dtype=torch.uint8)
    gradient = OPS.max_pool2x2_backward(torch.ones(1, 1, 2, 2), argmax, 4, 4)
    assert not gradient.any()
