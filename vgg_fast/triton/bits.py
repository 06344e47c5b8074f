"""Bits for the backward pass of a frozen weight: packed by the forward pass, and read again.

    mask     one bit a value of the output: whether the ReLU passes its gradient on
    windows  two bits a pooled value: the column and the row of the largest in its window

Bit ``k % 8`` of byte ``k // 8`` is channel ``k``'s; vgg_fast/ops/frozen.py says what they mean.

In a tensor core's accumulators, whose rows are channels, eight rows lie in eight lanes of a warp.
So a byte takes three exchanges between lanes, and four bytes travel in one word: those of four
pixels that one thread holds, or of a window's mask, column and row.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pack(words):
    """(K, M) of words that have bits at 0, 8, 16 and 24, as (K // 8, M) of four bytes each."""
    BLOCK_K: tl.constexpr = words.shape[0]
    M: tl.constexpr = words.shape[1]
    places = tl.arange(0, 8)
    rows = tl.reshape(words, (BLOCK_K // 8, 8, M)) << places[None, :, None]
    return tl.sum(rows, axis=1)


@triton.jit
def store_mask(passes, mask, first, pixels, inside, k0, k, K):
    """Pack and store ``passes`` (channels, pixels) of a patch.

    Args:
        passes: whether each value's gradient is passed on.
        mask: the tensor that the bits are stored in.
        first: the number of the patch's first pixel in the map, which may have more than 2^31.
        pixels: the number of each, from there on.
        inside: whether it is in the map at all.
        k0: the first channel, a multiple of 8.
        k: the channels.
        K: how many there are.
    """
    BLOCK_K: tl.constexpr = passes.shape[0]
    M: tl.constexpr = passes.shape[1]
    bits = (passes & (k < K)[:, None]).to(tl.int32)
    # Four pixels that a thread holds: a left and a right one, in the upper and the lower half.
    two = tl.arange(0, 2)
    shifts = 8 * (2 * two[:, None, None] + two[None, None, :])[None, :, :, :]
    fours = tl.reshape(bits, (BLOCK_K, 2, M // 4, 2)) << shifts
    words = pack(tl.sum(tl.sum(fours, axis=3), axis=1))
    bytes = (words[:, None, :, None] >> shifts) & 255
    _store_bytes(tl.reshape(bytes, (BLOCK_K // 8, M)), mask, first, pixels, 1, 0, inside, k0, K)


@triton.jit
def store_window_bits(passes, position, mask, windows, first, pixels, inside, k0, k, K):
    """Pack and store the mask of pooled values, and the ``position`` of each in its window."""
    words = _pack_windows(position, passes.to(tl.int32), k, K)
    _store_bytes(words & 255, mask, first, pixels, 1, 0, inside, k0, K)
    _store_bytes((words >> 8) & 255, windows, first, pixels, 2, 0, inside, k0, K)
    _store_bytes(words >> 16, windows, first, pixels, 2, 1, inside, k0, K)


@triton.jit
def store_windows(position, windows, first, pixels, inside, k0, k, K):
    """Pack and store the ``position`` of each largest value alone."""
    words = _pack_windows(position, tl.zeros_like(position).to(tl.int32), k, K)
    _store_bytes(words >> 8 & 255, windows, first, pixels, 2, 0, inside, k0, K)
    _store_bytes(words >> 16, windows, first, pixels, 2, 1, inside, k0, K)


@triton.jit
def _pack_windows(position, flags, k, K):
    position = position.to(tl.int32)
    flags += (position & 1) << 8
    flags += (position >> 1) << 16
    # A NaN of the input reaches the channels that aren't there too.
    return pack(tl.where((k < K)[:, None], flags, 0))


@triton.jit
def _store_bytes(bytes, to, first, pixels, planes, plane, inside, k0, K):
    """Store (channels // 8, pixels) as the ``plane`` of so many of each pixel."""
    BYTES: tl.constexpr = bytes.shape[0]
    count = tl.cdiv(K, 8)
    byte = k0 // 8 + tl.arange(0, BYTES)
    places = (pixels * (planes * count) + plane * count)[:, None] + byte[None, :]
    tl.store(
        to + first * (planes * count) + places,
        tl.trans(bytes.to(tl.uint8)),
        mask=inside[:, None] & (byte < count)[None, :],
    )


@triton.jit
def load_bits(bits, places, inside, k0, K, COLUMNS: tl.constexpr):
    """The bits, 0 or 1, of COLUMNS channels from ``k0`` on: (places, COLUMNS)."""
    count = tl.cdiv(K, 8)
    byte = k0 // 8 + tl.arange(0, COLUMNS // 8)
    bytes = tl.load(
        bits + (places * count)[:, None] + byte[None, :],
        mask=inside[:, None] & (byte < count)[None, :],
        other=0,
    )
    spread = (bytes.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(spread, (places.shape[0], COLUMNS))
