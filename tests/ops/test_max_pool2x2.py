"""max_pool2x2: bit for bit what torch's pooling gives, with ties, NaNs and signed zeros."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from tests.support.cases import DTYPES, LAYOUTS, POOL_SHAPES
from tests.support.operators import OPS, is_channels_last, torch_indices
from tests.support.poison import poisoned_memory
from vgg_fast import functional

SMALL = (2, 5, 7, 9)

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
layouts = pytest.mark.parametrize("layout", LAYOUTS)
dense = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


def assert_is_torchs(input: torch.Tensor, grad_output: torch.Tensor) -> None:
    """Output, winners and gradient, bit for bit; of an output down to the sign of a zero.

    A gradient of -0 keeps its sign, where torch adds it to 0.
    """
    expected_leaf = input.detach().clone().requires_grad_()
    expected, indices = torch.nn.functional.max_pool2d(expected_leaf, 2, return_indices=True)
    (torchs_gradient,) = torch.autograd.grad(expected, expected_leaf, grad_output)
    leaf = input.detach().requires_grad_()
    output, argmax = OPS.max_pool2x2(leaf, True)
    (gradient,) = torch.autograd.grad(output, leaf, grad_output)
    assert argmax.dtype == torch.uint8
    assert torch.equal(torch_indices(argmax, input.shape[3]), indices)
    assert is_channels_last(output)
    assert gradient.stride() == torchs_gradient.stride()
    for ours, torchs in ((output, expected), (gradient, torchs_gradient)):
        assert ours.dtype == input.dtype
        torch.testing.assert_close(ours, torchs, rtol=0, atol=0, equal_nan=True)
        numbers = ~torchs.isnan() & ((torchs != 0) | (ours is output))
        assert torch.equal(ours.signbit()[numbers], torchs.signbit()[numbers])


def random(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """An input and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    n, c, height, width = shape
    return (
        torch.randn(shape, generator=generator).to(dtype),
        torch.randn((n, c, height // 2, width // 2), generator=generator).to(dtype),
    )


class TestMaxPool2x2:
    # ------------------------------------------------------------------------------- equivalence

    @dtypes
    @dense
    @pytest.mark.parametrize("shape", POOL_SHAPES, ids=str)
    def test_equals_torch(self, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
        assert_is_torchs(*map(LAYOUTS[layout], random(shape, dtype)))

    @dtypes
    @dense
    def test_of_equal_values_the_first_wins(self, layout: str, dtype: torch.dtype) -> None:
        input, grad_output = map(LAYOUTS[layout], random((2, 20, 12, 14), dtype))
        assert_is_torchs(input.sign(), grad_output)
        assert not OPS.max_pool2x2(torch.ones_like(input), True)[1].any()

    @dtypes
    @dense
    def test_the_last_nan_of_a_window_wins(self, layout: str, dtype: torch.dtype) -> None:
        input, grad_output = map(LAYOUTS[layout], random((1, 35, 4, 32), dtype))
        windows = torch.arange(32).view(2, 16)  # every subset of a window's pixels is NaN
        for position in range(4):
            pixels = input[:, :, position // 2 :: 2, position % 2 :: 2]
            pixels[:, :, (windows >> position) % 2 == 1] = torch.nan
        assert_is_torchs(input, grad_output)

    @dtypes
    @dense
    def test_minus_zero_is_no_less_than_zero(self, layout: str, dtype: torch.dtype) -> None:
        input, grad_output = map(LAYOUTS[layout], random((1, 20, 8, 8), dtype))
        assert_is_torchs(torch.where(input < 0, -0.0, 0.0).to(dtype), grad_output)

    @dtypes
    @dense
    def test_infinities(self, layout: str, dtype: torch.dtype) -> None:
        input, grad_output = map(LAYOUTS[layout], random((2, 9, 6, 6), dtype))
        assert_is_torchs(torch.where(input < 0.5, -torch.inf, input), grad_output)
        assert_is_torchs(torch.where(input > 0.5, torch.inf, input), grad_output)

    @dense
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_every_value_of_16_bits_equals_torch(self, layout: str, dtype: torch.dtype) -> None:
        values = torch.arange(1 << 16).to(torch.int16)
        order = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))
        windows = torch.stack([values, values[order], values.flip(0), values[order].roll(1)])
        input = windows.view(dtype).view(2, 2, 32, 64, 32).permute(3, 4, 2, 0, 1)
        input = LAYOUTS[layout](input.reshape(64, 32, 64, 2))
        assert_is_torchs(input, torch.ones(64, 32, 32, 1, dtype=dtype))

    @dtypes
    def test_a_nan_stays_in_its_window(self, dtype: torch.dtype) -> None:
        input, _ = random(SMALL, dtype)
        clean, _ = OPS.max_pool2x2(input, False)
        input[1, 2, 3, 5] = torch.nan
        input[0, 0, 6, 8] = torch.nan  # in the odd last row and column
        output, _ = OPS.max_pool2x2(input, False)
        assert output.isnan().nonzero().tolist() == [[1, 2, 1, 2]]
        output[1, 2, 1, 2] = clean[1, 2, 1, 2]
        assert torch.equal(output, clean)

    # ----------------------------------------------------------------------------------- layouts

    @dtypes
    @layouts
    def test_layouts(self, layout: str, dtype: torch.dtype) -> None:
        input, grad_output = random(SMALL, dtype)
        assert_is_torchs(LAYOUTS[layout](input), grad_output)
        assert_is_torchs(input, LAYOUTS[layout](grad_output))

    @dtypes
    @dense
    def test_slices_in_every_dimension(self, layout: str, dtype: torch.dtype) -> None:
        larger, larger_gradient = map(LAYOUTS[layout], random((4, 40, 14, 46), dtype))
        slices = (slice(1, 3), slice(2, 37))
        assert_is_torchs(
            larger[(*slices, slice(3, 14), slice(5, 44))],
            larger_gradient[(*slices, slice(1, 6), slice(2, 21))],
        )

    @pytest.mark.parametrize("layout", [name for name in LAYOUTS if "expanded" not in name])
    def test_layouts_of_the_argmax(self, layout: str) -> None:
        input, grad_output = random(SMALL, torch.float32)
        _, argmax = OPS.max_pool2x2(input, True)
        found = OPS.max_pool2x2_backward(grad_output, LAYOUTS[layout](argmax.contiguous()), 7, 9)
        assert torch.equal(found, OPS.max_pool2x2_backward(grad_output, argmax, 7, 9))

    def test_rows_that_overlap_at_an_odd_address(self) -> None:
        """A copy that aligns it has other strides."""
        memory = bytearray(b"\0" + random((2, 1, 1, 4), torch.float32)[0].numpy().tobytes())
        elements = torch.frombuffer(memory, dtype=torch.float32, offset=1)
        input = elements.as_strided((1, 2, 2, 3), (8, 4, 1, 1))
        assert_is_torchs(input, torch.ones(1, 2, 1, 1))

    def test_a_view_with_the_negative_bit(self) -> None:
        input, grad_output = random(SMALL, torch.float32)
        assert_is_torchs(torch._neg_view(input), grad_output)

    @layouts
    def test_fake_tensors_have_the_shapes_and_strides_of_real_ones(self, layout: str) -> None:
        input, grad_output = random(SMALL, torch.float16)
        input, grad_output = LAYOUTS[layout](input), LAYOUTS[layout](grad_output)

        def run(input, grad_output):
            output, argmax = OPS.max_pool2x2(input, True)
            return output, argmax, OPS.max_pool2x2_backward(grad_output, argmax, 7, 9)

        real = run(input, grad_output)
        mode = FakeTensorMode()
        with mode:
            fake = run(mode.from_tensor(input), mode.from_tensor(grad_output))
        for ours, imitation in zip(real, fake, strict=True):
            assert imitation.shape == ours.shape and imitation.dtype == ours.dtype
            assert imitation.stride() == ours.stride()

    # ------------------------------------------------------------------- memory and repeatability

    @dtypes
    @dense
    @pytest.mark.parametrize("shape", POOL_SHAPES, ids=str)
    def test_every_element_is_written_whatever_memory_held(self, shape, layout, dtype) -> None:
        input, grad_output = map(LAYOUTS[layout], random(shape, dtype))
        with poisoned_memory():
            assert_is_torchs(input, grad_output)

    @dense
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_any_number_of_threads(self, count: int, layout: str, threads) -> None:
        threads(count)
        for shape in POOL_SHAPES:
            assert_is_torchs(*map(LAYOUTS[layout], random(shape, torch.float32)))

    # --------------------------------------------------------------------------------- gradients

    def test_gradcheck(self) -> None:
        # All values differ by more than gradcheck's step, so that no winner changes.
        input = torch.randperm(60, dtype=torch.float64).view(2, 2, 3, 5).requires_grad_()
        assert torch.autograd.gradcheck(functional.max_pool2x2, (input,))

    def test_without_the_argmax_the_output_is_the_same(self) -> None:
        input, _ = random(SMALL, torch.float32)
        output, argmax = OPS.max_pool2x2(input, False)
        assert argmax.numel() == 0 and argmax.dtype == torch.uint8
        assert torch.equal(output, OPS.max_pool2x2(input, True)[0])

    @pytest.mark.parametrize("return_argmax", [True, False])
    def test_gradients_need_not_have_the_argmax_returned(self, return_argmax: bool) -> None:
        input, grad_output = random(SMALL, torch.float32)
        leaf = input.requires_grad_()
        output, argmax = OPS.max_pool2x2(leaf, return_argmax)
        assert argmax.numel() == (output.numel() if return_argmax else 0)
        assert argmax.dtype == torch.uint8 and not argmax.requires_grad
        (found,) = torch.autograd.grad(output, leaf, grad_output)
        expected = torch.nn.functional.max_pool2d(leaf, 2)
        assert torch.equal(found, torch.autograd.grad(expected, leaf, grad_output)[0])

    # ----------------------------------------------------------------------- PyTorch's machinery

    @pytest.mark.parametrize("return_argmax", [True, False])
    def test_opcheck(self, return_argmax: bool) -> None:
        input, _ = random(SMALL, torch.float32)
        torch.library.opcheck(OPS.max_pool2x2.default, (input, return_argmax))
        torch.library.opcheck(OPS.max_pool2x2.default, (input.requires_grad_(), return_argmax))

    def test_opcheck_of_the_backward_operator(self) -> None:
        input, grad_output = random(SMALL, torch.float32)
        _, argmax = OPS.max_pool2x2(input, True)
        torch.library.opcheck(OPS.max_pool2x2_backward.default, (grad_output, argmax, 7, 9))

    @dtypes
    def test_autocast_leaves_the_dtype_as_torchs_pooling_does(self, dtype: torch.dtype) -> None:
        input, _ = random(SMALL, dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(
                functional.max_pool2x2(input), torch.nn.functional.max_pool2d(input, 2)
            )
            assert functional.max_pool2x2(input).dtype == dtype

    # -------------------------------------------------------------------------------- functional

    def test_one_image_without_a_batch(self) -> None:
        input, grad_output = random(SMALL, torch.float32)
        one = input[1].clone().requires_grad_()
        batch = input.clone().requires_grad_()
        output, expected = functional.max_pool2x2(one), functional.max_pool2x2(batch)
        assert torch.equal(output, expected[1])
        output.backward(grad_output[1])
        expected.backward(grad_output)
        assert torch.equal(one.grad, batch.grad[1])

    def test_no_grad_and_inference_mode_give_the_same_numbers(self) -> None:
        input, _ = random(SMALL, torch.float32)
        expected = functional.max_pool2x2(input.requires_grad_())
        assert expected.requires_grad
        with torch.no_grad():
            assert torch.equal(functional.max_pool2x2(input), expected)
        with torch.inference_mode():
            output = functional.max_pool2x2(input)
            assert output.is_inference() and torch.equal(output, expected)
