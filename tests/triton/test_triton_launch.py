"""A launch leaves to Triton what only Triton knows, once, and hands over the rest. Needs no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this platform")

import triton

from vgg_fast.triton import launch

STREAM = 3


class Driver:
    @staticmethod
    def get_current_stream(device: int) -> int:
        return STREAM


class Compiled:
    """What Triton compiled: it writes down how it is launched."""

    function, packed_metadata = 11, (4, 1, 0)

    def __init__(self) -> None:
        self.runs: list[tuple] = []
        self.by_triton: list[tuple] = []

    def run(self, *given) -> None:
        self.runs.append(given)

    def __getitem__(self, grid: tuple[int, int, int]):
        return lambda *given: self.by_triton.append((grid, given))


class Kernel:
    """Writes down what is asked of it, and compiles again each time."""

    arg_names = ("input", "output", "N", "floor", "WIDE", "BLOCK")

    def __init__(self, interpreted: bool = False) -> None:
        self.interpreted = interpreted
        self.asked: list[tuple] = []
        self.compiled = Compiled()

    def __getitem__(self, grid: tuple[int, int, int]):
        def start(*given, **constants):
            self.asked.append((grid, given, constants))
            return None if self.interpreted else self.compiled

        return start


CONSTANTS = {"BLOCK": 64, "num_warps": 4, "WIDE": True}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=Driver()))


def test_only_the_first_launch_asks_triton() -> None:
    kernel, maps = Kernel(), torch.zeros(8)
    start = launch.Launch(kernel, (5, 2), (7, -1.0), CONSTANTS)
    for _ in range(3):
        start(maps, None)
    assert kernel.asked == [((5, 2, 1), (maps, None, 7, -1.0), CONSTANTS)]
    # Pointers, then numbers, then constants in the kernel's order; no options, and no hooks.
    known = (5, 2, 1, STREAM, 11, (4, 1, 0), None, None, None)
    assert kernel.compiled.runs == [(*known, maps.data_ptr(), None, 7, -1.0, True, 64)] * 2


def test_tensors_that_are_not_aligned_are_left_to_triton() -> None:
    kernel, maps = Kernel(), torch.zeros(8)
    start = launch.Launch(kernel, 1, (7, 0.0), CONSTANTS)
    for tensor in (maps[1:], maps[1:], maps, maps[1:], maps):
        start(tensor, maps)
    assert len(kernel.asked) == 4 and len(kernel.compiled.runs) == 1
    assert kernel.compiled.runs[0][-6] == maps.data_ptr()


def test_what_is_interpreted_is_never_compiled() -> None:
    kernel, maps = Kernel(interpreted=True), torch.zeros(8)
    start = launch.Launch(kernel, 1, (7, 0.0), {})
    for _ in range(2):
        start(maps, maps)
    assert len(kernel.asked) == 2 and not kernel.compiled.runs


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_a_profiler_hears_of_every_launch(name: str, monkeypatch) -> None:
    kernel, maps = Kernel(), torch.zeros(8)
    start = launch.Launch(kernel, 1, (7, 0.0), CONSTANTS)
    start(maps, maps)
    monkeypatch.setattr(triton.knobs.runtime, name, lambda metadata: None)
    start(maps, None)
    assert kernel.compiled.by_triton == [((1, 1, 1), (maps, None, 7, 0.0, True, 64))]
    assert len(kernel.asked) == 1 and not kernel.compiled.runs


@pytest.mark.slow
def test_every_kernel_is_launched_as_triton_launches_it(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "libcuda.so.1"
    source = Path(__file__).parents[1] / "support" / "recording_driver.c"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    places = dict.fromkeys(("TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"), str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.triton_recorded", str(library)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **places, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for kernel in ("fprop", "wgrad", "wgrad_of_images", "direct", "direct_wgrad", "expand",
                   "expand_bits", "sum_splits", "pool", "unpool"):  # fmt: skip
        assert f" {kernel}_kernel" in run.stdout
