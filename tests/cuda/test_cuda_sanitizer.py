"""compute-sanitizer finds no bad access and no race in the CUDA C++ kernels, on small shapes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cuda_toolkit import skip_if_not_built, toolkit

pytestmark = pytest.mark.gpu


def sanitizer() -> str | None:
    folders = [os.environ.get("PATH", "")]
    folders += [str(toolkit() / "bin"), str(toolkit() / "compute-sanitizer")] if toolkit() else []
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


@pytest.mark.parametrize("kernels", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_kernels_are_clean(tool: str, kernels: str) -> None:
    skip_if_not_built(kernels)
    program = sanitizer()
    if program is None:
        pytest.skip("needs compute-sanitizer, which CUDA's toolkit has")
    run = subprocess.run(
        [
            program,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            "-m",
            "tests.support.sanitized",
        ],
        cwd=Path(__file__).parents[2],
        # A cached block would hide a read behind the end of a tensor.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "VGG_FAST_GPU": kernels},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Device not supported" in run.stdout + run.stderr:
        pytest.skip("compute-sanitizer doesn't support this machine's GPU")
    assert run.returncode == 0 and "all kernels ran" in run.stdout, run.stdout + run.stderr
