"""Triton's kernels, compiled before anything is measured: here for a GPU that isn't there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.gpu import ahead, pool
from benchmarks.gpu import run as runs
from tests.support.gpu_benchmark import QUICK, main

pytest.importorskip("triton", reason="there is no Triton for this platform")

# Part 1 of 8 has the second layer of both batches, part 0 the first layer.
PROGRAM = """
import sys, torch
from benchmarks.gpu import ahead, host
host.launch_nothing()
torch.cuda.get_device_capability = lambda: (9, 0)
ahead.main(sys.argv[1:])
"""


def compiled(folder, *arguments: str) -> tuple[set[str], str]:
    """The kernels in the cache after a process's part, and what it said."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=pool.ROOT, check=True, text=True,
        env={**os.environ, "TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0"},
        stdout=subprocess.PIPE,
    )  # fmt: skip
    return {file.stem for file in folder.rglob("*.cubin")}, run.stdout


def test_a_process_compiles_its_part(tmp_path) -> None:
    first, said = compiled(tmp_path / "first", "0", "8", "8", "256")
    assert said.startswith("compiled 1 layers, ")
    second, _ = compiled(tmp_path / "second", "1", "8", "8", "256")
    assert first and second and first != second
    assert any("wgrad" in name for name in second) and any("expand" in name for name in second)


def test_a_layer_that_does_not_compile_is_told(tmp_path, monkeypatch, capsys) -> None:
    def broken(layer, batch) -> None:
        raise RuntimeError("no registers")

    monkeypatch.setattr(ahead, "compile_case", broken)
    monkeypatch.setattr(ahead.torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(ahead.launch, "interpreted_family", "sm_80")
    ahead.main(["0", "1", "2", "16"])
    told = capsys.readouterr().out
    assert "compiling 1-64-224, batch 16: RuntimeError: no registers" in told
    assert "compiled 2 layers" in told


def test_processes_that_take_too_long_are_ended(tmp_path, monkeypatch) -> None:
    run = runs.Run(main.parse([*QUICK, "--device=cuda"]), {}, tmp_path / "record.json", 0.0)
    start, sleeps, left = subprocess.Popen, iter([0, 600]), iter([60.0, 0.1])
    started = []

    def begin(command, cwd):
        assert command[2:6] == ["benchmarks.gpu.ahead", str(len(started)), "2", "8"]
        program = f"import time; time.sleep({next(sleeps)})"
        started.append(start([sys.executable, "-c", program]))
        return started[-1]

    monkeypatch.setattr(ahead.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(ahead.subprocess, "Popen", begin)
    monkeypatch.setattr(runs.Run, "seconds_left", lambda run: next(left))
    ahead.compile_ahead(run, (16,))
    assert run.found["compiled ahead"] == "1 of 2 processes came to their end"
    assert started[1].wait(60) < 0
