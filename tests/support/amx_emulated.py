"""A copy of the package whose kernels for matrix tiles run on any x86-64 processor.

``amx_emulation.h`` has plain functions in the place of the tiles' instructions. Beside them stand
AVX-512's vectors, as on a processor with AMX, or those of any processor. What doesn't know of them
is taken from the objects of the ordinary build, so this compiles eight files.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TAG = f"objects-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
OBJECTS = ROOT / "build" / TAG / "vgg_fast._C"
LEFT_OUT = shutil.ignore_patterns("*.so", "__pycache__", "data")


def emulated(vectors: str) -> Path:
    """The folder of the copy with these ``vectors``, up to date; skips where it can't be built."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("matrix tiles are for x86-64 and Linux")
    if not (OBJECTS / "csrc" / "library.o").is_file():
        pytest.skip("needs the objects of a build in this folder: make test builds them")
    folder = ROOT / "build" / f"emulated-amx-{vectors}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in ("csrc", "tests", "vgg_fast"):
            # With the files' times, by which the build finds what has changed.
            shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT, dirs_exist_ok=True)
        for name in ("setup.py", "setup_cuda.py", "pyproject.toml", "README.md", "seed_layers.py"):
            shutil.copy2(ROOT / name, folder)
        build = subprocess.run(
            # Forced to link: it doesn't know that the other objects have changed.
            [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"],
            cwd=folder,
            env={
                **os.environ,
                "VGG_FAST_CUDA": "0",
                "VGG_FAST_EMULATE_AMX": str(OBJECTS),
                "VGG_FAST_EMULATE_AMX_VECTORS": vectors,
            },
            capture_output=True,
            text=True,
            check=False,
        )
    assert build.returncode == 0, build.stdout[-4000:] + build.stderr[-4000:]
    return folder


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """``python arguments`` in that folder, with the tiles in force."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "VGG_FAST_CPU": "amx", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
