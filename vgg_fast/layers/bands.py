"""Two convolutions and a pooling in bands, so that the map between them is never there as a whole.

The map between a VGG's first two convolutions takes 256 bytes for a pixel of the image in float32:
more than all that comes later. Nobody wants it, and its gradient neither. So where the weights are
frozen, both convolutions, their ReLUs and the pooling are computed for some rows of a large image
at a time, or for some images, and so are their gradients; what is kept are the bits of
:mod:`vgg_fast.ops.frozen`. Neighbouring bands overlap by a tile of the Winograd algorithm, of whose
rows those at the seam, where zeros stand for the neighbour, aren't taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vgg_fast._layout import empty_channels_last, lay_out, suggests_channels_last
from vgg_fast.dispatch import state
from vgg_fast.dispatch.folding import fold
from vgg_fast.ops import frozen

BAND_BYTES = 64 << 20
"""Of the map between the convolutions, in one band."""

FEWEST_ROWS = 128
"""Of a band: with fewer, the overlap would count for more than a sixteenth."""

OVERLAP = 4


class Layer(NamedTuple):
    """A convolution with its ReLU.

    Attributes:
        weight: (K, C, 3, 3).
        bias: (K), or None.
        scale: (K), or None.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None


class Band(NamedTuple):
    """Rows of some images: those that are computed, and those that are taken of them.

    Attributes:
        images: of the batch.
        computed: rows of the map, from an even one on.
        taken: rows of the map, inside the computed ones.
    """

    images: slice
    computed: slice
    taken: slice

    @property
    def inside(self) -> slice:
        """The rows that are taken, in the band's own numbering."""
        start = self.computed.start
        return slice(self.taken.start - start, self.taken.stop - start)


def bands(images: int, height: int, row_bytes: int) -> Iterator[Band]:
    """The bands of ``images`` maps, each row of which takes ``row_bytes``."""
    rows = max(FEWEST_ROWS, BAND_BYTES // row_bytes // OVERLAP * OVERLAP)
    together = max(1, rows // height)
    for image in range(0, images, together):
        some = slice(image, min(images, image + together))
        for start in range(0, height, rows):
            stop = min(height, start + rows)
            computed = slice(max(0, start - OVERLAP), min(height, stop + OVERLAP))
            yield Band(some, computed, slice(start, stop))


def is_worth_it(input: Tensor, first: Layer, second: Layer) -> bool:
    """Whether the two are to be computed in bands: for large maps on a CPU, with frozen weights."""
    # Asked first: a compiler would make a guard of the sizes.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    channels, (height, width) = first.weight.shape[0], input.shape[2:]
    bytes = input.shape[0] * height * width * channels * input.element_size()
    if bytes < 2 * BAND_BYTES or height < 2 or width < 2:
        return False
    if type(input) is not Tensor or input.device.type != "cpu":
        return False
    if state.get() not in ("auto", "cpp"):
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if second.weight.shape[1] != channels or second.weight.shape[0] == 1:
        return False
    tensors = [tensor for layer in (first, second) for tensor in layer if tensor is not None]
    same = all(tensor.device == input.device for tensor in tensors)
    same = same and first.weight.dtype == second.weight.dtype == input.dtype
    return same and not any(tensor.requires_grad for tensor in tensors)


def block(images: Tensor, first: Layer, second: Layer) -> Tensor:
    """(N, C, H, W) to (N, K, H // 2, W // 2): convolution, ReLU, convolution, ReLU, pooling."""
    return _Block.apply(images, first, second)


class _Block(torch.autograd.Function):
    """Keeps the weights, both masks and the windows, if the images want a gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, first: Layer, second: Layer) -> Tensor:
        n, _, height, width = images.shape
        channels = first.weight.shape[0], second.weight.shape[0]
        pooled = empty_channels_last(images, channels[1], height // 2, width // 2)
        keeps = ctx.needs_input_grad[0]
        if keeps:
            halves = height // 2, width // 2
            mask = _new_bits(images, channels[0], height, width)
            pooled_mask = _new_bits(images, channels[1], *halves)
            windows = _new_bits(images, channels[1], *halves, 2)
        ops = torch.ops.vgg_fast
        for band in bands(n, height, width * channels[0] * images.element_size()):
            some, rows, inside = band.images, band.taken, band.inside
            windows_of, taken = _halved(rows), _halved(inside)
            part = images[some, :, band.computed]
            if not keeps:
                between = ops.conv3x3_relu(part, *first)
                found, _ = ops.conv3x3_relu_pool(between, *second[:2], False, second.scale)
            else:
                between, bits = ops._conv3x3_relu_masked(part, *first)
                mask[some, rows] = bits[:, inside]
                found, bits, of_windows = ops._conv3x3_relu_pool_masked(between, *second)
                pooled_mask[some, windows_of] = bits[:, taken]
                windows[some, windows_of] = of_windows[:, taken]
            pooled[some, :, windows_of] = found[:, :, taken]
        if keeps:
            weights = (fold(*layer)[0] for layer in (first, second))
            ctx.save_for_backward(*weights, mask, pooled_mask, windows)
            ctx.size = height, width
            ctx.channels_last = any(map(suggests_channels_last, (images, first.weight)))
        return pooled

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        first, second, mask, pooled_mask, windows = ctx.saved_tensors
        height, width = ctx.size
        if torch.is_grad_enabled():  # to be differentiated again
            gradient = frozen.reference_relu_pool_dgrad(
                grad_output, second, pooled_mask, windows, height, width
            )
            return frozen.reference_relu_dgrad(gradient, first, mask), None, None
        n = grad_output.shape[0]
        found = empty_channels_last(grad_output, first.shape[1], height, width)
        ops = torch.ops.vgg_fast
        for band in bands(n, height, width * first.shape[0] * grad_output.element_size()):
            some, rows, pooled = band.images, band.computed, _halved(band.computed)
            gradient = ops._conv3x3_relu_pool_dgrad(
                grad_output[some, :, pooled],
                second,
                pooled_mask[some, pooled],
                windows[some, pooled],
                rows.stop - rows.start,
                width,
            )
            gradient = ops._conv3x3_relu_dgrad(gradient, first, mask[some, rows])
            found[some, :, band.taken] = gradient[:, :, band.inside]
        return lay_out(found, ctx.channels_last), None, None


def _new_bits(images: Tensor, channels: int, *places: int) -> Tensor:
    shape = (images.shape[0], *places, frozen.bytes_for(channels))
    return images.new_empty(shape, dtype=torch.uint8)


def _halved(rows: slice) -> slice:
    """Of the pooled map. An odd last row has no window."""
    return slice(rows.start // 2, rows.stop // 2)
