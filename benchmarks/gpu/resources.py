"""What every tile of the shipped table takes, compiled ahead of time: needs no GPU.

    python -m benchmarks.gpu.resources      # a table in Markdown

Of the kernels that a row's calls launch, the one that takes most registers. The helpers of the
tests that compile every row compile them here too, so that both see the same kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import triton

from tests.support.ahead_of_time import Compiled
from tests.support.triton_launches import launches
from vgg_fast.dispatch import tiles

INSTRUCTIONS = {
    "wgmma": r"wgmma\.mma_async\S*\.(m\d+n\d+k\d+)",
    "mma.sync": r"mma\.sync\S*\.(m\d+n\d+k\d+)",
}


def product(ptx: str) -> str:
    """The instruction of the matrix product and its shape."""
    for name, pattern in INSTRUCTIONS.items():
        found = re.search(pattern, ptx)
        if found:
            return f"{name} {found[1]}"
    return "fma"


def loads(ptx: str) -> str:
    """How the operands come into shared memory."""
    if "cp.async.bulk.tensor" in ptx:
        return "boxes"
    return "cp.async" if re.search(r"cp\.async\.c[ag]", ptx) else "registers"


def lines() -> Iterator[str]:
    """The table, row by row."""
    yield f"Compiled ahead of time by Triton {triton.__version__}:"
    yield ""
    yield "| GPU | kernel | arithmetic | tile | product | loads | registers | shared | spilled |"
    yield "|---|---|---|---|---|---|---:|---:|---:|"
    seen = set()
    for row in tiles.shipped():
        line = (row.family, row.kernel, row.arithmetic, row.tile)
        if line in seen:
            continue
        seen.add(line)
        compiled = max((one.compile(row.family) for one in launches(row)), key=_registers)
        yield (
            f"| {row.family} | {row.kernel} | {row.arithmetic} | {row.tile} | "
            f"{product(compiled.ptx)} | {loads(compiled.ptx)} | {compiled.registers} | "
            f"{compiled.shared / 1024:.0f} KiB | {compiled.spilled} |"
        )


def _registers(compiled: Compiled) -> int:
    return compiled.registers


if __name__ == "__main__":
    for text in lines():
        print(text, flush=True)
