"""Every operator on shapes, dtypes, layouts, values and settings drawn at random.

The same few examples on every run of ``make test``; ``make fuzz`` (tests/fuzz.py) draws many more,
on each instruction set.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis", reason="needs the package hypothesis")


from tests.ops.test_max_pool2x2 import assert_is_torchs
from tests.support.cases import CONVOLUTIONS, DIRECT_CHANNELS
from tests.support.drawn_cases import (
    CHANGES,
    ConvolutionCase,
    PoolingCase,
    SavedCase,
    convolution_cases,
    pooling_cases,
    saved_cases,
)
from tests.support.drawn_tensors import Placed
from tests.support.fuzzing import fuzzed
from tests.support.operators import (
    ANY,
    NORMAL,
    OPS,
    REPEATED,
    Results,
    assert_equals_fp64,
    assert_gradients_equal_fp64,
    assert_same,
    backward,
    forward_backward,
)

# A process warns once about a workspace that is too small, in whichever case it meets it first.
pytestmark = pytest.mark.filterwarnings("ignore:vgg_fast. a layer runs the direct algorithm")


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_convolutions_equal_fp64(op: str, record_property) -> None:
    fuzzed(convolution_cases(op), check_convolution, op, record_property)


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_backward_operators_equal_fp64(op: str, record_property) -> None:
    fuzzed(saved_cases(op), check_backward, op, record_property)


def test_pooling_is_torchs(record_property) -> None:
    fuzzed(pooling_cases, check_pooling, "max_pool2x2", record_property)


def check_convolution(case: ConvolutionCase) -> None:
    placed = case.place()
    arguments, values = case.arguments(placed), values_of(case, placed)
    last = None
    for change in ("everything", *case.further_calls):
        change_weight(placed["weight"], change)
        before = memory_of(placed)
        with case.setting.in_force():
            results = forward_backward(case.op, arguments, case.needs)
        assert memory_of(placed) == before, "an argument was written to"
        if change == "none":
            assert_same_bits(results, last)
        else:
            assert_equals_fp64(case.op, arguments, results, values)
        last = results


def check_backward(drawn: SavedCase) -> None:
    case = drawn.case
    placed, output, argmax = drawn.place()
    arguments = case.arguments(placed)
    saved = {"conv3x3": (), "conv3x3_relu": (output,), "conv3x3_relu_pool": (output, argmax)}
    tensors = tuple(one.tensor for one in saved[case.op])
    before = memory_of(placed), bytes(output.memory), bytes(argmax.memory)
    with case.setting.in_force():
        gradients = backward(case.op, arguments, tensors, case.needs)
    for gradient, needed in zip(gradients, case.needs, strict=True):
        assert needed or gradient.numel() == 0
    asked_for = [g if needed else None for g, needed in zip(gradients, case.needs, strict=True)]
    results = Results(output.tensor, argmax.tensor, *asked_for)
    values = values_of(case, {**placed, "output": output})
    assert_gradients_equal_fp64(case.op, arguments, results, values)
    after = memory_of(placed), bytes(output.memory), bytes(argmax.memory)
    assert after == before, "an argument was written to"


def check_pooling(case: PoolingCase) -> None:
    input, grad_output, argmax = placed = case.place()
    before = [bytes(one.memory) for one in placed]
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        assert_is_torchs(input.tensor, grad_output.tensor)
        size = case.shape[2:]
        gradient = OPS.max_pool2x2_backward(grad_output.tensor, argmax.tensor, *size)
    finally:
        torch.set_num_threads(threads)
    for position in range(4):
        rows, columns = size[0] // 2 * 2, size[1] // 2 * 2
        window = gradient[:, :, position // 2 : rows : 2, position % 2 : columns : 2]
        expected = torch.where(argmax.tensor == position, grad_output.tensor, 0)
        torch.testing.assert_close(window, expected, rtol=0, atol=0, equal_nan=True)
    assert not gradient[:, :, rows:].any() and not gradient[:, :, :, columns:].any()
    assert [bytes(one.memory) for one in placed] == before, "an argument was written to"


# ---------------------------------------------------------------------------------------------


def change_weight(weight: Placed, change: str) -> None:
    assert change in CHANGES
    if change == "everything":
        weight.fill()
    elif change == "one element":
        weight.write(weight.drawn.layout.offset, 0.125)
    elif change == "signs":
        weight.flip_signs()


def memory_of(placed: dict[str, Placed | None]) -> list[bytes]:
    return [bytes(one.memory) for one in placed.values() if one is not None]


def values_of(case: ConvolutionCase, placed: dict[str, Placed | None]) -> str:
    """What the values are like, as tests.support.operators has it."""
    drawn = [one.drawn for one in placed.values() if one is not None]
    # Terms are products of two tensors: where both have equal elements, so have their products.
    # Those of the bias's gradient are the other gradient's elements. All of them have one scale.
    terms = [one.drawn for name, one in placed.items() if one is not None and name != "scale"]
    if sum(one.repeats for one in terms) >= 2 or placed["grad_output"].drawn.repeats:
        return REPEATED
    # A tile mixes all nine taps of a filter. On a map of one or two rows or columns, or with one
    # pooling window, whose gradient is a single pixel, a result has few of these for its own terms,
    # and yet the rounding errors of all.
    one_window = 4 if case.op == "conv3x3_relu_pool" else 3
    lost = 2 * (case.padding == "valid")
    if min(case.shape.h, case.shape.w) - lost < one_window:
        return REPEATED
    # Few channels are computed tap by tap, unless tiles are asked for.
    tiles = case.shape.c in DIRECT_CHANNELS and case.setting.algorithm != "auto"
    return ANY if tiles or not all(one.is_normal for one in drawn) else NORMAL


def assert_same_bits(actual: Results, expected: Results) -> None:
    """As :func:`assert_same`, with each NaN the same as another."""
    assert_same(*(without_nans(results) for results in (actual, expected)))


def without_nans(results: Results) -> Results:
    return Results(
        *(
            tensor if tensor is None or tensor.dtype == torch.uint8 else tensor.nan_to_num(7.0)
            for tensor in vars(results).values()
        )
    )
