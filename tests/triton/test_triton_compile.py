"""Every row of the shipped tile table compiles for its GPUs, ahead of time and without one.

No register is spilled, shared memory suffices, and the instructions are the ones that the design
counts on: wgmma and the tensor memory accelerator on Hopper, mma.sync and cp.async on Ampere.
"""

from __future__ import annotations

import itertools
import re

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this platform")

from tests.support.ahead_of_time import SHARED_MEMORY, Compiled, compile_ahead
from tests.support.tile_rows import row_name
from vgg_fast.dispatch import policy, tiles
from vgg_fast.triton import expand, expand_bits, launch, max_pool2x2, reduce, tuning

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(launch.INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled"),
]

if not launch.INTERPRETED:
    from tests.support.triton_launches import Launch, launches

targets = pytest.mark.parametrize("target", [80, 90])
rows = pytest.mark.parametrize("row", tiles.shipped(), ids=row_name)


@rows
def test_a_row_of_the_table(row: tiles.Row) -> None:
    check_row(row, list(launches(row)))


@pytest.mark.parametrize(
    "row", [r for r in tiles.shipped() if r.kernel in ("fprop", "direct")], ids=row_name
)
def test_a_row_of_the_table_that_packs_bits(row: tiles.Row) -> None:
    # Seven patches of few columns and of 32 images or so, of the largest tiles, leave registers to
    # memory: in the epilogue, once a tile.
    check_row(row, list(launches(row, packing=True)), spilled=192)


@pytest.mark.parametrize(
    "row", [r for r in tiles.shipped() if r.kernel not in ("dgrad", "wgrad")], ids=row_name
)
def test_a_row_of_the_table_with_a_scale_and_a_slope(row: tiles.Row) -> None:
    check_row(row, list(launches(row, later=True)))


def check_row(row: tiles.Row, reached: list[Launch], spilled: int = 0) -> None:
    assert reached, f"no call reaches {row}"
    for launched in reached:
        compiled = launched.compile(row.family)
        assert compiled.spilled <= spilled, f"{launched.constants}: {compiled.spilled} bytes"
        assert compiled.shared <= shared_memory(row), launched.constants
        assert_uses_what_it_should(row, launched, compiled)


def shared_memory(row: tiles.Row) -> int:
    # The rows of sm_80 serve every GPU but Hopper, the small ones too.
    return SHARED_MEMORY[86 if row.family == "sm_80" else 90]


def assert_uses_what_it_should(row: tiles.Row, launched: Launch, compiled: Compiled) -> None:
    ptx, hopper = compiled.ptx, row.family == "sm_90"
    if row.arithmetic == "float32":
        assert "mma" not in ptx  # IEEE fp32
        return
    # wgmma multiplies 64 rows at a time, and not fp64.
    wgmma = hopper and row.arithmetic != "float64" and row.tile.block_k >= 64
    assert ("wgmma.mma_async" in ptx) == wgmma
    assert ("mma.sync" in ptx) == (not wgmma)
    assert ("cp.async.bulk.tensor" in ptx) == row.tile.descriptors
    if row.tile.descriptors and row.arithmetic == "half":
        # Both operands go from shared memory to the tensor cores, and the next product is issued
        # before the last one is done.
        assert "ttg.local_load" not in compiled.ttgir
        assert re.search(r"wgmma.wait_group.sync.aligned [123]", ptx)
    if row.tile.descriptors:
        stages = compiled.ttgir.count("ttng.async_tma_copy_global_to_local")
        assert stages >= 2 * row.tile.num_stages
    if not row.tile.descriptors and row.multiple == 16:
        assert len(re.findall(r"cp\.async\.c[ag]", ptx)) >= row.tile.num_stages
        # Later stages are under way while one is waited for.
        assert re.search(r"cp\.async\.wait_group\s+[1-9]", ptx)


def test_every_layer_of_vgg_is_served_without_a_last_resort() -> None:
    for family in ("sm_80", "sm_90"):
        for arithmetic in ("half", "tf32"):
            for c, k, size in ((64, 64, 224), (64, 128, 112), (256, 512, 28), (512, 512, 14)):
                for kernel in ("fprop", "dgrad", "wgrad"):
                    call = tiles.Call(kernel, arithmetic, 256, size, size, c, k)
                    row = tiles.find(tiles.shipped(), family, call)
                    assert row and not row.last_resort, call
                    hopper = family == "sm_90" and (arithmetic == "half" or kernel != "wgrad")
                    measured = row.origin.startswith("measured on ")
                    assert measured or row.tile.descriptors == hopper


def test_any_call_finds_a_row() -> None:
    for family in ("sm_80", "sm_90"):
        for kernel in tiles.KERNELS:
            for arithmetic in policy.ARITHMETICS:
                direct = kernel.startswith("direct")
                if direct and arithmetic == "float64":
                    continue
                c = 3 if direct else 5
                for aligned in (False, True):
                    call = tiles.Call(kernel, arithmetic, 1, 3, 3, c, 7, False, aligned)
                    assert tiles.find(tiles.shipped(), family, call), call


def test_rows_are_read_as_they_were_written() -> None:
    for row in tiles.shipped():
        assert tiles.Row.load(row.dump()) == row
    with pytest.raises(ValueError, match="has no colour"):
        tiles.Row.load({"colour": "red"})


def test_pointers_and_eight_warps_are_refused() -> None:
    with pytest.raises(ValueError, match="4 warps at most"):
        tiles.Tile(128, 128, 32, num_warps=8, num_stages=3)


@targets
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("k", [64, 5])
def test_the_kernels_without_a_product(k: int, dtype: str, target: int) -> None:
    value, sums = f"*{dtype}", "*fp64" if dtype == "fp64" else "*fp32"
    whole = {"grad_output": value, "sums": sums, "rows": 9, "H": 28, "W": 28, "K": k, "steps": 7}
    whole |= {"slope": "fp64"}
    relu = whole | {"output": value, "grad": value}
    torch_type = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    tile, pooled = (
        expand.tile_of(k, torch_type.get(dtype, torch.float64), pool) for pool in (False, True)
    )
    split = {"workspace": sums, "output": value, "count": 9 * k * k, "splits": 33}
    split |= {"channels": k, "programs": 9, "count_2": k, "splits_2": 33}
    both = split | {"workspace_2": sums, "output_2": value}
    large = {"SPLITS_2": 32, "BLOCK_2": 64}
    linear = {"RELU": False, "LEAKY": False, "POOL": False}
    masks = [linear | {"RELU": True, "LEAKY": leaky} for leaky in (False, True)]
    windows = relu | {"argmax": "*u8"}
    for kernel, arguments, constants in (
        (expand.expand_kernel, whole, tile | linear),
        *((expand.expand_kernel, relu, tile | mask) for mask in masks),
        *((expand.expand_kernel, windows, pooled | mask | {"POOL": True}) for mask in masks),
        (reduce.sum_splits_kernel, both, large | {"TAPS_LAST": True, "SPLITS": 32, "BLOCK": 64}),
        (reduce.sum_splits_kernel, split, large | {"TAPS_LAST": False, "SPLITS": 1, "BLOCK": 2048}),
    ):
        assert compile_ahead(kernel, arguments, constants, target).spilled == 0


@targets
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("k", [64, 5])
def test_a_gradient_expanded_by_bits(k: int, dtype: str, target: int) -> None:
    value, torch_type = f"*{dtype}", tuning.TYPES["float64" if dtype == "fp64" else "half"]
    shared = {"grad": value, "mask": "*u8", "rows": 9, "H": 28, "W": 28, "K": k, "slope": "fp64"}
    full, pooled = {"grad_output": value}, {"grad_pooled": value, "windows": "*u8"}
    for given, leaky in itertools.product((full, pooled, full | pooled), (False, True)):
        tile = expand_bits.tile_for(k, torch_type, "grad_pooled" in given)
        kernel = expand_bits.expand_bits_kernel
        compiled = compile_ahead(kernel, shared | given, {"LEAKY": leaky, **tile}, target)
        assert compiled.spilled == 0
        if k == 64:  # 16 bytes a thread of the maps, whatever is read of the bits
            assert all(".v" in a for a in re.findall(r"st\.global\S*", compiled.ptx))


@targets
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize(("c", "size"), [(64, 224), (512, 28), (5, 7)])
def test_pooling(c: int, size: int, layout: str, dtype: str, target: int) -> None:
    value, nchw = f"*{dtype}", layout == "NCHW"

    def described(side: int) -> dict[str, int]:
        like = torch.empty((2, c, side, side), device="meta")
        like = like if nchw else like.contiguous(memory_format=torch.channels_last)
        names = ("stride_n", "stride_c", "stride_h", "stride_w")
        sizes = {"H": size, "W": size, "C": c}
        return sizes | dict(zip(names, like.stride(), strict=True))

    pool = {"input": value, "output": value, **described(size)}
    unpool = {"grad_output": value, "argmax": "*u8", "grad_input": value, **described(size // 2)}
    _, tile = max_pool2x2.tiling(2, size // 2, c, nchw)
    _, packing = max_pool2x2.tiling(2, size // 2, max(8, c), nchw)
    _, back = max_pool2x2.tiling(2, (size + 1) // 2, c, nchw)
    for kernel, arguments, constants in (
        (max_pool2x2.pool_kernel, pool, {"NCHW": nchw, **tile}),
        (max_pool2x2.pool_kernel, pool | {"argmax": "*u8"}, {"NCHW": nchw, **tile}),
        (max_pool2x2.pool_kernel, pool | {"windows": "*u8"}, {"NCHW": nchw, **packing}),
        (max_pool2x2.unpool_kernel, unpool, back),
    ):
        compiled = compile_ahead(kernel, arguments, constants, target)
        assert compiled.spilled == 0
        if (
            size == 224 and "windows" not in arguments
        ):  # 16 bytes a thread: reads and writes are contiguous in either layout
            accesses = re.findall(r"(?:ld|st)\.global\S*", compiled.ptx)
            assert accesses and all(".v" in access for access in accesses)
