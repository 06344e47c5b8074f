"""How long a kernel's instructions take to issue, against how long its bytes take: by count.

The rates are an H100's or H200's: four warp instructions a clock on each of 132 multiprocessors at
the boost clock, and what a copy is expected to reach of the memory's bandwidth.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.cuda_toolkit import cuobjdump

ISSUED_A_CLOCK = 4
MULTIPROCESSORS = 132
CLOCK = 1.755e9
BYTES_A_SECOND = 4.3e12


def times_the_bytes(instructions: float, size: float) -> float:
    """The time to issue ``instructions`` of a warp, as a multiple of the time of ``size`` bytes."""
    bytes_a_clock = BYTES_A_SECOND / CLOCK / MULTIPROCESSORS
    return instructions / ISSUED_A_CLOCK / (size / bytes_a_clock)


def functions_of(object_file: Path, architecture: str) -> dict[str, str]:
    """Of each kernel its disassembly."""
    dump = subprocess.run(
        [str(cuobjdump()), "--dump-sass", f"--gpu-architecture=sm_{architecture}", object_file],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    functions = re.split(r"Function : (\S+)", dump)[1:]
    return dict(zip(functions[::2], functions[1::2], strict=True))


def main_loops(object_file: Path, architecture: str, around: str = "") -> dict[str, list[str]]:
    """Of each kernel that loops, the instructions of the loop that multiplies most, in order.

    Where one loop lies in another, the inner one; or the innermost with an instruction ``around``.
    """
    functions = functions_of(object_file, architecture)
    loops = {name: loops_of(body) for name, body in functions.items()}
    loops = {name: [loop for loop in found if _has(loop, around)] for name, found in loops.items()}
    return {
        name: max(found, key=lambda loop: (_products(loop), -len(loop)))
        for name, found in loops.items()
        if found
    }


def loops_of(disassembly: str) -> list[list[str]]:
    """What lies between each backward branch and its target, both included."""
    lines = [
        (int(address, 16), text)
        for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", disassembly)
    ]
    loops = []
    for end, text in lines:
        branch = re.search(r"\bBRA(?:\.\w+)* .*?(0x[0-9a-f]+)", text)
        # A branch to itself follows each kernel's end.
        if branch and int(branch[1], 16) < end:
            start = int(branch[1], 16)
            loops.append([_name(text) for address, text in lines if start <= address <= end])
    return loops


def _name(instruction: str) -> str:
    return re.match(r"(?:@!?U?P\w+\s+)?([\w.]+)", instruction)[1]


def _has(loop: list[str], instruction: str) -> bool:
    return any(name.startswith(instruction) for name in loop)


def _products(loop: list[str]) -> int:
    return sum(name.startswith(("HMMA", "FFMA", "DFMA")) for name in loop)
