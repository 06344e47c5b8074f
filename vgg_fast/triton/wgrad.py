"""The weight gradient of a 3×3 convolution: a matrix product over all pixels, for each tap.

grad_weight[k, r, s, c] = Σ_{n, y, x} grad[n, y, x, k] · input[n, y+r-1, x+s-1, c]

grid (K blocks × C blocks × 9 taps) × splits: each split sums its own range of patches into a
workspace (splits, K, 3, 3, C) in the accumulator's precision, which reduce.py adds up in order.
No atomics, so the same call gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vgg_fast.triton import tiles
from vgg_fast.triton.launch import channels_last, check_extents, on_device_of
from vgg_fast.triton.patch import dot, load_pixels, patch_origin
from vgg_fast.triton.reduce import accumulator_of, sum_splits

# Programs to aim at: some waves of an H100's 132 multiprocessors, whatever the GPU, so that the
# order of the sums, and with it the result, depends on the shape alone.
_PROGRAMS = 1024
# Fewer patches than these would cost more in the workspace than they gain.
_PATCHES_PER_SPLIT = 8


@triton.jit
def wgrad_kernel(
    grad,
    input,
    workspace,
    H,
    W,
    C,
    K,
    patches,
    patches_y,
    patches_x,
    patches_per_split,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tap = tl.program_id(0) % 9
    block = tl.program_id(0) // 9
    blocks_c = tl.cdiv(C, BLOCK_C)
    k = block // blocks_c * BLOCK_K + tl.arange(0, BLOCK_K)
    c = block % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(1)
    m = tl.arange(0, PATCH_H * PATCH_W)

    sums = tl.zeros((BLOCK_K, BLOCK_C), ACCUMULATOR)
    first = split * patches_per_split
    for patch in range(first, tl.minimum(first + patches_per_split, patches)):
        image, y0, x0 = patch_origin(patch, patches_y, patches_x, PATCH_H, PATCH_W)
        y = y0 + m // PATCH_W
        x = x0 + m % PATCH_W
        gradients = load_pixels(grad, image, y0, y, x, k, H, W, K)
        # Beyond the map's edge a gradient is 0, but 0 times a NaN of the next tap would not be.
        y = tl.where(y < H, y + (tap // 3 - 1), -1)
        x = tl.where(x < W, x + (tap % 3 - 1), -1)
        pixels = load_pixels(input, image, y0, y, x, c, H, W, C)
        sums = dot(tl.trans(gradients), pixels, sums, PRECISION)

    weights = ((split.to(tl.int64) * K + k) * 9 + tap) * C
    tl.store(
        workspace + weights[:, None] + c[None, :],
        sums,
        mask=(k < K)[:, None] & (c < C)[None, :],
    )


def wgrad(grad: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """The gradient of ``weight``, in its layout, from the convolution's gradient ``grad``."""
    n, c, h, w = input.shape
    k = weight.shape[0]
    result = torch.empty_like(weight)
    if n == 0:
        return result.zero_()
    check_extents(n, h, w, max(c, k))
    precision = tiles.precision(input.dtype)
    tile = tiles.WGRAD[tiles.kind(input.dtype, c, precision)]
    patches_y, patches_x = triton.cdiv(h, tile.patch_h), triton.cdiv(w, tile.patch_w)
    patches = n * patches_y * patches_x
    programs = 9 * triton.cdiv(k, tile.block_k) * triton.cdiv(c, tile.block_c)
    per_split = max(_PATCHES_PER_SPLIT, triton.cdiv(patches, triton.cdiv(_PROGRAMS, programs)))
    splits = triton.cdiv(patches, per_split)
    workspace = input.new_empty((splits, k, 3, 3, c), dtype=accumulator_of(input))
    with on_device_of(input):
        wgrad_kernel[(programs, splits)](
            channels_last(grad),
            channels_last(input),
            workspace,
            h,
            w,
            c,
            k,
            patches,
            patches_y,
            patches_x,
            per_split,
            ACCUMULATOR=tl.float64 if input.dtype == torch.float64 else tl.float32,
            PRECISION=precision,
            PATCH_H=tile.patch_h,
            PATCH_W=tile.patch_w,
            BLOCK_K=tile.block_k,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    return result.copy_(sum_splits(workspace, weight.dtype).permute(0, 3, 1, 2))
