"""The arithmetic of a 2×2 window, as in ``csrc/cuda/common/window.cuh``.

max:  the first maximum in row-major order; any NaN beats it, and the last NaN beats all
mask: the gradient passes where the activation's output is positive, and elsewhere times the slope:
      a ReLU's is 0. Of a NaN it passes the ReLU, and is multiplied by a leaky one's slope.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vgg_fast.triton.launch import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def widen(value):
    """fp32 for 16-bit values: the interpreter compares the raw bits of bf16."""
    return value if value.dtype == tl.float64 else value.to(tl.float32)


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """``value`` rounded to nearest, ties to even, which the interpreter doesn't do for bf16."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
        value = tl.where(value == value, rounded, value)
    return value.to(dtype)


@triton.jit
def passes(output, LEAKY: tl.constexpr):
    """Whether the activation with this ``output``, as it is stored, passes the whole gradient."""
    return widen(output) > 0 if LEAKY else ~(widen(output) <= 0)


@triton.jit
def mask_gradient(gradient, passed, slope, LEAKY: tl.constexpr):
    """``gradient`` where it is ``passed``, else its product with the slope, or 0."""
    if LEAKY:
        wide = widen(gradient)
        product = wide * tl.full(wide.shape, slope, wide.dtype)
        return tl.where(passed, gradient, narrow(product, gradient.dtype))
    else:
        return tl.where(passed, gradient, 0.0)


@triton.jit
def window_max(v00, v01, v10, v11):
    """The maximum and its position ``2·row + column``."""
    best = v00
    position = tl.zeros_like(v00).to(tl.uint8)
    wins = (v01 > best) | (v01 != v01)
    best = tl.where(wins, v01, best)
    position = tl.where(wins, 1, position)
    wins = (v10 > best) | (v10 != v10)
    best = tl.where(wins, v10, best)
    position = tl.where(wins, 2, position)
    wins = (v11 > best) | (v11 != v11)
    best = tl.where(wins, v11, best)
    position = tl.where(wins, 3, position)
    return best, position.to(tl.uint8)
