"""Runs triton_interpreted*.py in processes of its own, where Triton interprets its kernels.

Whether it does is settled when a kernel is first imported, hence not in this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from torch.torch_version import TorchVersion

pytest.importorskip("triton", reason="there is no Triton for this platform")

import triton

TESTS = Path(__file__).parent


def python(*arguments: str, interpret: bool) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    environment |= {"OMP_NUM_THREADS": "1"}
    environment.pop("VGG_FAST_BACKEND", None)
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=TESTS.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.skipif(
    TorchVersion(triton.__version__) < (3, 7) and TorchVersion(numpy.__version__) >= (2, 4),
    reason="the interpreter of Triton 3.6 takes arrays of one value for numbers: NumPy below 2.4",
)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("triton_interpreted.py", "TestConvolutions and not relu"),
        ("triton_interpreted.py", "TestConvolutions and relu and not pool"),
        ("triton_interpreted.py", "TestConvolutions and relu and pool"),
        ("triton_interpreted.py", "not TestConvolutions"),
        ("triton_interpreted_tiles.py", "TestDescriptors"),
        ("triton_interpreted_tiles.py", "not TestDescriptors"),
    ],
)
def test_interpreted(file: str, tests: str) -> None:
    run = python(
        "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist",
        str(TESTS / file), "-k", tests, interpret=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout and " skipped" not in run.stdout, run.stdout


def test_cpu_tensors_without_the_interpreter_are_refused_in_one_sentence() -> None:
    run = python(
        "-c",
        "import torch, vgg_fast\n"
        "with vgg_fast.backends.use('triton'):\n"
        "    vgg_fast.functional.max_pool2x2(torch.ones(1, 1, 2, 2))",
        interpret=False,
    )
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == (
        "RuntimeError: vgg_fast::max_pool2x2: the backend 'triton' can't run: CPU tensors need "
        "TRITON_INTERPRET=1, set before Python starts"
    )
