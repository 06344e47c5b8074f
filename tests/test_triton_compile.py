"""Every Triton kernel compiles for Ampere and Hopper, ahead of time and without a GPU.

No register is spilled, which ``cuobjdump`` (inside the triton package) reports as a stack or local
memory, and the matrix products use the tensor cores of the target.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

triton = pytest.importorskip("triton", reason="there is no Triton for this platform")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from vgg_fast.triton import (  # noqa: E402
    conv3x3_relu,
    fprop,
    launch,
    max_pool2x2,
    reduce,
    tiles,
    wgrad,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(launch.INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled"),
]

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TARGETS = (80, 90)


class Mode(NamedTuple):
    """A row of the tile tables, the element type that it is compiled for, and its alignment."""

    row: str
    dtype: str
    aligned: bool  # channels are multiples of 16, which Triton compiles another kernel for


MODES = (
    Mode("half", "bf16", True),
    Mode("half", "fp16", True),
    Mode("half_narrow", "bf16", False),
    Mode("half_narrow", "fp16", False),
    Mode("half_narrow", "fp16", True),
    Mode("tf32", "fp32", True),
    Mode("tf32_narrow", "fp32", False),
    Mode("float32", "fp32", True),
    Mode("float32", "fp32", False),
    Mode("float64", "fp64", False),
    Mode("float64", "fp64", True),
)

targets = pytest.mark.parametrize("target", TARGETS)
modes = pytest.mark.parametrize("mode", MODES, ids=lambda m: "-".join(map(str, m)))


def compile_kernel(
    kernel, types: dict[str, str], target: int, aligned=(), options=None, **constants
):
    """The kernel for a GPU of compute capability ``target``.

    Args:
        types: Triton's name for the type of each argument that isn't constant; pointers are taken
            to be 16-byte aligned.
        aligned: the integers that are multiples of 16.
    """
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    multiples = [name for name, type in types.items() if type[0] == "*" or name in aligned]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in multiples},
    )
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options or {})


def assert_no_spills(compiled, tmp_path: Path) -> None:
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    report = subprocess.run(
        [os.fspath(CUOBJDUMP), "--dump-resource-usage", os.fspath(cubin)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    assert usage, report
    assert int(usage[2]) == 0 and int(usage[3]) == 0, usage[0]


def assert_uses_tensor_cores(compiled, mode: Mode, target: int) -> None:
    ptx = compiled.asm["ptx"]
    if mode.row == "float32":
        assert "mma" not in ptx  # IEEE fp32
    elif mode.row == "float64" or target < 90:
        assert "mma.sync" in ptx
    else:
        assert "wgmma.mma_async" in ptx


def tile_of(table: dict[str, tiles.Tile], mode: Mode) -> dict:
    tile = table[mode.row]
    accumulator = "float64" if mode.dtype == "fp64" else "float32"
    return {
        "options": {"num_warps": tile.num_warps, "num_stages": tile.num_stages},
        "ACCUMULATOR": getattr(triton.language, accumulator),
        "PRECISION": "tf32" if mode.row.startswith("tf32") else "ieee",
        "PATCH_H": tile.patch_h,
        "PATCH_W": tile.patch_w,
        "BLOCK_K": tile.block_k,
        "BLOCK_C": tile.block_c,
    }


def test_every_row_of_the_tables_is_compiled_here() -> None:
    assert {mode.row for mode in MODES} == set(tiles.FPROP) == set(tiles.WGRAD)


@targets
@modes
@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pool"])
def test_fprop(pool: bool, mode: Mode, target: int, tmp_path: Path) -> None:
    sizes = ("H", "W", "C", "K", "patches_y", "patches_x", "bias_channels", "argmax_channels")
    types = dict.fromkeys(("input", "weight", "bias", "output"), f"*{mode.dtype}")
    types |= dict.fromkeys(sizes, "i32") | {"floor": "fp32"}
    constants = tile_of(tiles.FPROP, mode) | {"POOL": pool}
    if pool:
        types["argmax"] = "*u8"
    else:
        constants["argmax"] = None
    aligned = ("C", "K", "bias_channels", "argmax_channels") if mode.aligned else ()
    compiled = compile_kernel(fprop.fprop_kernel, types, target, aligned, **constants)
    assert_no_spills(compiled, tmp_path)
    assert_uses_tensor_cores(compiled, mode, target)


@targets
@modes
def test_wgrad(mode: Mode, target: int, tmp_path: Path) -> None:
    accumulator = "*fp64" if mode.dtype == "fp64" else "*fp32"
    types = dict.fromkeys(("grad", "input"), f"*{mode.dtype}") | {"workspace": accumulator}
    sizes = ("H", "W", "C", "K", "patches", "patches_y", "patches_x", "patches_per_split")
    types |= dict.fromkeys(sizes, "i32")
    aligned = ("C", "K") if mode.aligned else ()
    compiled = compile_kernel(
        wgrad.wgrad_kernel, types, target, aligned, **tile_of(tiles.WGRAD, mode)
    )
    assert_no_spills(compiled, tmp_path)
    assert_uses_tensor_cores(compiled, mode, target)


@targets
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
def test_the_kernels_without_a_matrix_product(dtype: str, target: int, tmp_path: Path) -> None:
    value = f"*{dtype}"
    sums = "*fp64" if dtype == "fp64" else "*fp32"
    size = {"H": "i32", "W": "i32", "C": "i32"}
    pool = {"input": value, "output": value, **size}
    unpool = {"grad_output": value, "argmax": "*u8", "grad_input": value, **size}
    split = {"workspace": sums, "output": value, "count": "i32", "splits": "i32"}
    rows = {"grad": value, "workspace": sums, "rows": "i32", "K": "i32", "steps_per_split": "i32"}
    mask = {"grad_output": value, "output": value, "grad": value, "count": "i64"}
    block = max_pool2x2.BLOCK
    for kernel, types, constants in (
        (max_pool2x2.pool_kernel, pool, {"argmax": None, "BLOCK": block}),
        (max_pool2x2.pool_kernel, pool | {"argmax": "*u8"}, {"BLOCK": block}),
        (max_pool2x2.unpool_kernel, unpool, {"output": None, "BLOCK": block}),
        (max_pool2x2.unpool_kernel, unpool | {"output": value}, {"BLOCK": block}),
        (reduce.sum_splits_kernel, split, {"BLOCK": reduce.BLOCK}),
        (reduce.sum_rows_kernel, rows, {"ROWS": reduce.ROWS, "COLUMNS": reduce.COLUMNS}),
        (conv3x3_relu.mask_kernel, mask, {"BLOCK": conv3x3_relu.BLOCK}),
    ):
        assert_no_spills(compile_kernel(kernel, types, target, **constants), tmp_path)
