"""The tests that are marked ``gpu``, in processes that may be stopped: counts and failures.

A test that hangs is ended by pytest-timeout, where that is installed. One that leaves the GPU's
context unusable ends its process (outcomes.py), and the tests behind it go on in another.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import outcomes, pool
from benchmarks.gpu.run import Run

ROOT = pool.ROOT
PROCESSES = 8  # at most: each holds a CUDA context, and a few GiB at times
TIMEOUT = 60  # seconds of one test, most of which is compiling
LARGE = "2_to_the_31"  # in the names of tests that take tens of GiB
SANITIZER = "sanitizer"  # in the names of tests that run kernels a hundred times as slowly
EQUIVALENCE = ("test_cuda_gpu.py", "test_triton_gpu.py")  # without which all else is worthless


def short(run: Run) -> None:
    """Equivalence, of shapes that take no time."""
    files = [file for file in _files() if file.name in EQUIVALENCE]
    _run(run, files, [("the equivalence tests", f"not {LARGE} and not {SANITIZER}", True)])


def every(run: Run) -> None:
    """All of them: equivalence first, and compute-sanitizer last, so that a stop costs least."""
    parts = [
        ("the equivalence tests", f"not {LARGE} and not {SANITIZER}", True),
        ("the largest tensors", LARGE, False),
        ("compute-sanitizer", SANITIZER, True),
    ]
    _run(run, _files(), parts)


def _files() -> list[Path]:
    return [
        file
        for file in sorted(
            (ROOT / "tests").rglob("test_*.py"), key=lambda f: (f.name not in EQUIVALENCE, f.name)
        )
        if "mark.gpu" in file.read_text(encoding="utf-8")
    ]


def _run(run: Run, files: list[Path], parts: list[tuple[str, str, bool]]) -> None:
    """Each part, in several processes if it may; a stop ends all."""
    told = run.file.with_suffix(".outcomes")
    told.unlink(missing_ok=True)
    run.pool.restart()  # its memory is the tests' now
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["-p", outcomes.__name__, *(str(file) for file in files)]
    if _is_there("pytest_timeout"):
        command.append(f"--timeout={TIMEOUT}")
    processes = min(PROCESSES, os.cpu_count() or 1) if _is_there("xdist") else 0
    environment = {outcomes.VARIABLE: str(told), "OMP_NUM_THREADS": "2"}
    problems: list[str] = []
    for what, names, many in parts:
        some = [*command, "-k", names] + (["-n", str(processes)] if many and processes else [])
        status = _until_done(some, environment, run, told)
        if status is None:
            problems.append(f"stopped: the time was up in {what}")
        elif status not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            problems.append(f"pytest ended with {status} in {what}")
        outcome = ", ".join(problems) or "passed"
        run.found["tests"] = {"outcome": outcome, **outcomes.summary(told)}
        run.write()
        if status is None:
            break
    told.unlink(missing_ok=True)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _until_done(
    command: list[str], environment: dict[str, str], run: Run, told: Path
) -> int | None:
    """As :func:`run_for`, and once more without the tests that ran, where a process was lost."""
    while True:
        before = outcomes.tests(told)
        again = [f"--deselect={test}" for test in before]
        status = run_for(run.seconds_left(), [*command, *again], environment)
        if status != outcomes.LOST or outcomes.tests(told) == before:
            return status


def run_for(seconds: float, command: list[str], environment: dict[str, str]) -> int | None:
    """The exit status; None if the time was up. Nothing that it started disturbs later steps."""
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True
    )
    try:
        return process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(pool.ENDING)
