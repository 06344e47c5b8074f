"""Compiles a Triton kernel for a GPU that isn't there, and says what it takes and uses."""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.support.cuda_toolkit import cuobjdump_of_triton

SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}  # bytes that a block may have


class Compiled(NamedTuple):
    """A kernel's resources and code; ``spilled`` is its stack and local memory, in bytes."""

    registers: int
    spilled: int
    shared: int
    ptx: str
    ttgir: str


def compile_ahead(
    kernel: Any, arguments: dict[str, Any], constants: dict[str, Any], target: int
) -> Compiled:
    """``kernel`` as a launch with these arguments would compile it.

    Args:
        arguments: for each that isn't constant Triton's name of its type ("*bf16", "fp32"), an
            integer, which is specialised as a launch does it, or None. Pointers are aligned to 16
            bytes.
        constants: with num_warps and num_stages.
        target: the compute capability, 80 for 8.0.
    """
    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    constexprs = {name: value for name, value in constants.items() if name not in options}
    signature: dict[str, str] = {}
    attributes = {}
    for position, name in enumerate(kernel.arg_names):
        value = arguments.get(name)
        if isinstance(value, str):
            signature[name] = value
        elif value is None or value == 1:
            signature[name] = "constexpr"
            constexprs.setdefault(name, value)
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
        aligned = value % 16 == 0 if isinstance(value, int) else str(value).startswith("*")
        if signature[name] != "constexpr" and aligned:
            attributes[position,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    registers, stack, local = _usage(compiled.asm["cubin"])
    return Compiled(
        registers, stack + local, compiled.metadata.shared, compiled.asm["ptx"],
        compiled.asm["ttgir"],
    )  # fmt: skip


def _usage(cubin: bytes) -> tuple[int, int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [str(cuobjdump_of_triton()), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    assert usage, report
    return int(usage[1]), int(usage[2]), int(usage[3])
