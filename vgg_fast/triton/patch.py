"""Where a program's pixels are.

   x0          x0 + PATCH_W
y0 ┌──┬──┬ … ┐
   │  │  │   │   One program works on a 2-D patch of one image, pixel m of it at
   ├──┼──┼ … ┤   (y0 + m // PATCH_W, x0 + m % PATCH_W). Both sides are even, so each 2×2 window
   └──┴──┴ … ┘   lies in one patch. Maps are channels_last: pixel × channels + channel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vgg_fast.triton.launch import INTERPRETED

# The interpreter multiplies the raw bits of a bf16 operand.
_WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def patch_origin(patch, patches_y, patches_x, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr):
    """The image, first row and first column of the patch with this number."""
    image = patch // (patches_y * patches_x)
    in_image = patch % (patches_y * patches_x)
    return image, in_image // patches_x * PATCH_H, in_image % patches_x * PATCH_W


@triton.jit
def load_pixels(map, image, y0, y, x, c, H, W, C):
    """The tile (pixels, channels) of ``map``; zero outside of the image, which is the padding."""
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    # A map may hold more than 2^31 elements, but not the few rows of one patch.
    map += (image.to(tl.int64) * H + y0) * W * C
    pixel = ((y - y0) * W + x) * C
    return tl.load(
        map + (pixel[:, None] + c[None, :]), mask=inside[:, None] & (c < C)[None, :], other=0.0
    )


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """``accumulator + a @ b``, in the precision of the accumulator."""
    if _WIDEN:
        a = a.to(accumulator.dtype)
        b = b.to(accumulator.dtype)
    return tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=accumulator.dtype)
