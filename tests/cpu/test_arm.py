"""The kernel table against fp64 without torch: on this processor, and on an emulated 64-bit Arm.

Both are compiled here: the sources below csrc/cpu/isa/kernels.h and tests/support/kernel_checks.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vgg_fast import _bindings

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "kernel_checks"
PREFIX = "aarch64-linux-gnu-"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
]
needs_arm = pytest.mark.skipif(
    not (shutil.which(f"{PREFIX}g++") and shutil.which("qemu-aarch64")),
    reason="needs Arm's compiler and an emulator: apt-get install g++-aarch64-linux-gnu qemu-user",
)


def make(target: str) -> str:
    """What `make target` prints; one process of a test run compiles at a time."""
    outer = {name for name in os.environ if name.startswith("MAKE")} | {"VGG_FAST_CPU"}
    BUILT.mkdir(parents=True, exist_ok=True)
    with open(BUILT / f"{target.replace('/', '-')}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.run(
            ["make", "--no-print-directory", target],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name not in outer},
            capture_output=True,
            text=True,
            check=False,
        )
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-4000:]
    return process.stdout


def sets_without_failures(output: str) -> list[str]:
    found = re.findall(r"^(\w+): (\d+) checks, 0 failed$", output, re.MULTILINE)
    assert all(int(checks) > 30_000 for _, checks in found), output
    return [name for name, _ in found]


def test_this_processor_s_tables_equal_fp64_and_the_checks_can_fail() -> None:
    output = make("kernels")
    assert sets_without_failures(output) == _bindings.cpu_instruction_sets()
    assert "each function is missed where it does nothing" in output


@needs_arm
def test_arm_s_tables_equal_fp64_under_emulation() -> None:
    assert sets_without_failures(make("arm")) == ["generic", "neon"]


@needs_arm
def test_arm_refuses_the_instruction_sets_of_other_processors() -> None:
    make("build/kernel_checks/arm/run")
    process = subprocess.run(
        ["qemu-aarch64", str(BUILT / "arm/run")],
        env={**os.environ, "VGG_FAST_CPU": "avx2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert "this processor runs generic, neon; set it to one of these" in process.stderr


@needs_arm
def test_arm_s_micro_kernels_keep_their_sums_in_registers() -> None:
    make("build/kernel_checks/arm/run")
    objects = BUILT / "arm/csrc/cpu/isa/kernels_neon.o"
    listing = subprocess.run(
        [f"{PREFIX}objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(objects)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # The widest, of Winograd (with sums of 16 terms at a time) and of the direct algorithm.
    for name, multiply_adds in (
        ("multiply_rows<4", 16 * 24),
        ("multiply_scattered_rows<float, 4", 24),
    ):
        bodies = [
            body
            for body in re.split(r"^$", listing, flags=re.MULTILINE)
            if f"::{name}l" in body[:200]
        ]
        assert bodies
        for body in bodies:
            assert len(re.findall(r"\tfmla\t.*\.s\[", body)) >= multiply_adds
            assert not re.search(r"\t(ldr|ldp|str|stp)\tq.*\[sp", body), "a vector goes to memory"
