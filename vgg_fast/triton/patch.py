"""Which pixels a program works on.

   x0          x0 + PATCH_W
y0 ┌──┬──┬ … ┐
   │  │  │   │   A patch is PATCH_H × PATCH_W pixels of PATCH_N successive images, pixel m of it at
   ├──┼──┼ … ┤   (n0 + m // (PATCH_H · PATCH_W), y0 + m // PATCH_W % PATCH_H, x0 + m % PATCH_W).
   └──┴──┴ … ┘   Sides are even, so each 2×2 window lies in one patch. Maps are channels_last.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton
import triton.language as tl

from vgg_fast.triton.launch import INTERPRETED

# The interpreter multiplies the raw bits of a bf16 operand.
_WIDEN = tl.constexpr(INTERPRETED)


class Patch(NamedTuple):
    """Images × rows × columns; powers of two, sides even."""

    n: int
    h: int
    w: int

    def cover(self, n: int, h: int, w: int) -> tuple[int, int, int]:
        """How many patches cover ``n`` maps of ``h × w``: along the images, rows and columns."""
        return triton.cdiv(n, self.n), triton.cdiv(h, self.h), triton.cdiv(w, self.w)

    def pixels(self, n: int, h: int, w: int) -> int:
        """How many pixels those patches have, those beyond the maps' edges included."""
        patches_n, patches_y, patches_x = self.cover(n, h, w)
        return patches_n * patches_y * patches_x * self.n * self.h * self.w


@functools.cache
def patch_for(n: int, h: int, w: int, pixels: int, images: int) -> Patch:
    """The patch of this many pixels that wastes fewest of them beyond the edges of the maps.

    Among equals the one that is nearest to a square, because its halo is smallest. Maps of 28² and
    14² are cut without waste by 4×4 pixels of 16 images and 2×2 of 64, say, where 16×16 pixels of
    one image would waste a quarter or more. A patch takes ``images`` at most.
    """
    patches = [
        Patch(pixels // (rows * columns), rows, columns)
        for rows in (2, 4, 8, 16)
        for columns in (2, 4, 8, 16, 32, 64, 128)
        if rows * columns <= pixels <= images * rows * columns
    ]
    return min(
        patches,
        key=lambda p: (p.pixels(n, h, w), (p.h + 2) * (p.w + 2) / (p.h * p.w), p.h),
    )


def images_that_fit(h: int, w: int, channels: int) -> int:
    """How many images a patch may take so that offsets within them fit into 32 bits."""
    return max(1, (2**31 - 1) // (h * w * channels))


@triton.jit
def patch_origin(
    patch, patches_y, patches_x,
    PATCH_N: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
):  # fmt: skip
    """The first image, row and column of the patch with this number."""
    image = patch // (patches_y * patches_x)
    in_image = patch % (patches_y * patches_x)
    return image * PATCH_N, in_image // patches_x * PATCH_H, in_image % patches_x * PATCH_W


@triton.jit
def patch_pixels(n0, y0, x0, PATCH_N: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr):
    """The image, row and column of each pixel of a patch."""
    m = tl.arange(0, PATCH_N * PATCH_H * PATCH_W)
    return n0 + m // (PATCH_H * PATCH_W), y0 + m // PATCH_W % PATCH_H, x0 + m % PATCH_W


@triton.jit
def first_pixel(n0, y0, H, W, channels):
    """Where a patch's first row starts in a map, which may have more than 2^31 values."""
    return (n0.to(tl.int64) * H + y0) * W * channels


@triton.jit
def load_pixels(map, n0, y0, n, y, x, c, N, H, W, C):
    """The tile (pixels, channels) of ``map``; zero outside of the image, which is the padding."""
    inside = (n < N) & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    # The map may hold more than 2^31 values, but not the images of one patch.
    offsets = (((n - n0) * H + (y - y0)) * W + x) * C
    return tl.load(
        map + first_pixel(n0, y0, H, W, C) + (offsets[:, None] + c[None, :]),
        mask=inside[:, None] & (c < C)[None, :],
        other=0.0,
    )


@triton.jit
def describe_map(map, N, H, W, C, PATCH_N, PATCH_H, PATCH_W, BLOCK: tl.constexpr):
    """A channels_last map as the tensor memory accelerator sees it; outside of it are zeros."""
    row = tl.cast(W, tl.int64) * C
    return tl.make_tensor_descriptor(
        map,
        shape=[N, H, W, C],
        strides=[row * H, row, tl.cast(C, tl.int64), 1],
        block_shape=[PATCH_N, PATCH_H, PATCH_W, BLOCK],
    )


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """``accumulator + a @ b``, in the precision of the accumulator."""
    if _WIDEN:
        a = a.to(accumulator.dtype)
        b = b.to(accumulator.dtype)
    return tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=accumulator.dtype)
