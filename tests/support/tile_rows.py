"""The rows of Triton's tile table: which calls reach them, and whether their tiles are right."""

from __future__ import annotations

import torch

from tests.support.cases import TOLERANCES, Shape
from tests.support.frozen import packed, packed_windows
from tests.support.numerics import relative_error
from tests.support.operators import random_arguments
from tests.support.poison import poisoned_memory
from vgg_fast._layout import empty_channels_last, to_channels_last
from vgg_fast.dispatch import tiles
from vgg_fast.triton import direct, fprop, trial, tuning
from vgg_fast.triton.epilogue import run

CHANNELS = (1, 3, 16, 32, 48, 64, 128, 256, 7)
# The tensor cores cut both operands of TF32 after 10 bits.
TF32_ERROR = 2.0**-9


def row_name(row: tiles.Row) -> str:
    return f"{tiles.shipped().index(row)}-{row.family}-{row.kernel}-{row.arithmetic}"


def calls(row: tiles.Row, batch: int, sizes: tuple[tuple[int, int], ...]) -> list[tiles.Call]:
    """Calls that this row of the shipped table serves: maps of these sizes, one C and K."""
    first = row.kernel.startswith("direct")
    pools = [False, True] if row.kernel == "fprop" or first else [False]
    for c in CHANNELS[:2] if first else CHANNELS[2:]:
        for k in CHANNELS:
            found = [
                tiles.Call(row.kernel, row.arithmetic, batch, h, w, c, k, pool)
                for pool in pools
                for h, w in sizes
            ]
            served = [c for c in found if tiles.find(tiles.shipped(), row.family, c) is row]
            if served:
                return served
    return []


def check_tile(row: tiles.Row, device: torch.device, size: tuple[int, int]) -> None:
    """The row's tile gives PyTorch's fp64 result for calls of this size that reach the row."""
    reached = calls(row, max(1, row.batch[0]), (size,))
    assert reached, f"no call reaches {row}"
    for call in reached:
        check_call(call, row.tile, tuning.TYPES[call.arithmetic], device)


def check_bits(row: tiles.Row, device: torch.device, size: tuple[int, int]) -> None:
    """The row's tile packs what it stores: the output's mask, and the argmax of a pooling."""
    for call in calls(row, max(1, row.batch[0]), (size,)):
        dtype = tuning.TYPES[call.arithmetic]
        n, c, h, w, k = call.n, call.c, call.h, call.w, call.k
        given = random_arguments("conv3x3_relu", Shape(n, c, k, h, w), dtype)
        input, weight, bias = (t.to(device) for t in (given.input, given.weight, given.bias))
        plan = direct.plan(call, row.tile) if c <= 3 else fprop.plan(call, row.tile, device)
        input, weight = to_channels_last(input), to_channels_last(weight)
        shape = (h // 2, w // 2) if call.pool else (h, w)
        with poisoned_memory():
            outputs = [empty_channels_last(input, k, *shape) for _ in range(2)]
            argmax = empty_channels_last(input, k, *shape, torch.uint8) if call.pool else None
            mask = input.new_empty((n, *shape, (k + 7) // 8), dtype=torch.uint8)
            windows = input.new_empty((n, *shape, 2, (k + 7) // 8), dtype=torch.uint8)
        run(plan.launch(True, True, call.pool), input, weight, bias, outputs[0], argmax)
        if not call.pool:
            windows = None
        run(plan.launch(True, True, False), input, weight, bias, outputs[1], None, mask, windows)
        assert torch.equal(*outputs)
        assert torch.equal(mask.cpu(), packed(~(outputs[0] <= 0)))
        assert windows is None or torch.equal(windows.cpu(), packed_windows(argmax))


def check_call(
    call: tiles.Call, tile: tiles.Tile, dtype: torch.dtype, device: torch.device
) -> None:
    """``tile`` gives PyTorch's fp64 result: the relative L2 error, and that of each element."""
    ready = trial.prepare(call, tile, dtype, device)
    with poisoned_memory():
        ready.run()
    result, exact = ready.result(), ready.by_torch(torch.float64, False)
    tolerance = TOLERANCES[dtype]
    # The interpreter doesn't cut them.
    rounded = TF32_ERROR if call.arithmetic == "tf32" and device.type == "cuda" else 0.0
    bound = max(tolerance.weight_gradient, rounded)
    assert relative_error(result, exact) <= bound, call
    terms = ready.by_torch(torch.float32, True).double()
    slack = max(tolerance.weight_element, rounded) * terms
    allowed = slack + tolerance.rounding * (exact.abs() + slack)
    worst = float(((result.double() - exact).abs() - allowed).max())
    assert worst <= 0, f"{call}: an element misses by {worst:.1e} more than it may"
