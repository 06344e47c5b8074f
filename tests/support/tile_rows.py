"""The rows of Triton's tile table: which calls reach them, and whether their tiles are right."""

from __future__ import annotations

import torch

from tests.support.cases import TOLERANCES
from tests.support.numerics import relative_error
from tests.support.poison import poisoned_memory
from vgg_fast.dispatch import tiles
from vgg_fast.triton import trial, tuning

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
