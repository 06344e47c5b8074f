"""Where the CUDA compiler is, for the tests that compile csrc/cuda without a GPU, and a cache."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import setup_cuda
from vgg_fast import _extension


@functools.cache
def toolkit() -> Path | None:
    """The toolkit's folder, found as the build finds it; None where there is none."""
    return setup_cuda.find_toolkit()


def cuobjdump() -> Path | None:
    """The toolkit's disassembler, or the one inside the triton package; None where neither is."""
    found = shutil.which("cuobjdump", path=str(toolkit() / "bin")) if toolkit() else None
    return Path(found) if found else cuobjdump_of_triton()


def cuobjdump_of_triton() -> Path | None:
    """The one that knows whatever the triton package compiles; None without that package."""
    triton = importlib.util.find_spec("triton")
    if triton is None:
        return None
    folder = Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "bin"
    found = shutil.which("cuobjdump", path=str(folder))
    return Path(found) if found else None


def skip_if_not_built(kernels: str) -> None:
    """Skip a test of the CUDA C++ kernels ``kernels`` ("sm_80", "sm_90a") where they can't run."""
    if problem := _extension.cuda_library_problem():
        pytest.skip(problem)
    if kernels == "sm_90a" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")
    if kernels == "sm_90a" and not _extension.has_sm90_kernels():
        pytest.skip("built without sm_90a: TORCH_CUDA_ARCH_LIST=9.0a builds it")


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The file that ``build(path)`` writes, built once for all processes of this test run."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path, draft = folder / name, folder / f"draft-{name}"
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            build(draft)
            draft.rename(path)
    return path
