"""The step of benchmarks.gpu that runs the GPU's tests, and counts them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu import outcomes, record, tests
from benchmarks.gpu import run as runs
from tests.support.gpu_benchmark import QUICK, main


def the_time_is_up_when(happened: Callable[[], bool], monkeypatch) -> None:
    """What is waited for with a time limit is given up once ``happened()``, however busy we are."""
    wait = subprocess.Popen.wait

    def wait_for_it(process: subprocess.Popen, timeout: float | None = None) -> int:
        if timeout is None:
            return wait(process)
        for _ in range(6000):  # ten minutes: only a hang takes so long
            if happened():
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                return wait(process, 0.1)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_it)


def says_a_line(file: Path) -> bool:
    return file.is_file() and file.read_text().endswith("\n")


@pytest.fixture
def tests_folder(tmp_path, monkeypatch) -> Path:
    """Where the step "tests" looks for its files."""
    monkeypatch.setattr(tests, "ROOT", tmp_path)
    monkeypatch.setattr(tests, "_is_there", lambda module: False)  # one process, no time limits
    (tmp_path / "tests" / "cuda").mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs one\n")
    return tmp_path / "tests" / "cuda"


@pytest.fixture
def run(tmp_path) -> runs.Run:
    return runs.Run(main.parse(QUICK), {}, tmp_path / "part.json", time.monotonic() + 600)


def test_the_gpu_tests_are_counted(run, tests_folder) -> None:
    (tests_folder / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.gpu\n"
        "@pytest.mark.parametrize('right', [True, True, False])\n"
        "def test_it(right):\n    assert right\n"
        "@pytest.mark.gpu\n"
        "@pytest.mark.skip(reason='why')\n"
        "def test_nothing():\n    pass\n"
    )
    (tests_folder / "test_other.py").write_text("raise ImportError\n")
    tests.every(run)
    assert record.read(run.file)["tests"] == {
        "outcome": "pytest ended with 1 in the equivalence tests",
        "passed": 2, "failed": 1, "skipped": 1,
        "failing": {"tests/cuda/test_some.py::test_it[False]": "assert False"},
    }  # fmt: skip
    assert [file.name for file in run.file.parent.glob("part.*")] == ["part.json"]


def test_the_tests_that_ran_before_the_time_was_up_are_counted(
    run, tests_folder, monkeypatch
) -> None:
    (tests_folder / "test_some.py").write_text(
        "import pytest, time\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_quick():\n    pass\n"
        "def test_sanitizer():\n    pass\n"
        "def test_slow():\n    time.sleep(300)\n"
    )
    the_time_is_up_when(lambda: says_a_line(run.file.with_suffix(".outcomes")), monkeypatch)
    tests.every(run)
    assert record.read(run.file)["tests"] == {
        "outcome": "stopped: the time was up in the equivalence tests",
        "passed": 1, "failed": 0, "skipped": 0, "failing": {},
    }  # fmt: skip


def test_a_failure_that_breaks_the_context_fails_no_other_test(
    run, tests_folder, monkeypatch
) -> None:
    """After it the process leaves, and another runs what is left."""
    (tests_folder / "conftest.py").write_text(
        "from benchmarks.gpu import outcomes\n"
        "broken = []\n"
        "outcomes.is_usable = lambda: not broken\n"
    )
    (tests_folder / "test_some.py").write_text(
        "import pytest\n"
        "from conftest import broken\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_first():\n    assert not broken\n"
        "def test_breaks():\n    broken.append(1)\n    assert False\n"
        "def test_last():\n    assert not broken\n"
    )
    tests.every(run)
    found = record.read(run.file)["tests"]
    assert (found["passed"], found["failed"]) == (2, 1)
    assert list(found["failing"]) == ["tests/cuda/test_some.py::test_breaks"]


def test_what_is_waited_for_after_a_failure(monkeypatch) -> None:
    assert outcomes.is_usable()  # this process never asked a GPU
    monkeypatch.setattr(outcomes.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(outcomes.torch.cuda, "synchronize", lambda: None)
    assert outcomes.is_usable()

    def broken() -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(outcomes.torch.cuda, "synchronize", broken)
    assert not outcomes.is_usable()


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """What would be run, with its environment at the end."""
    found = []

    def run_for(seconds: float, command: list[str], environment: dict[str, str]) -> int:
        found.append([*command, *(f"{name}={value}" for name, value in environment.items())])
        return 0

    monkeypatch.setattr(tests, "run_for", run_for)
    return found


def test_equivalence_comes_first_and_the_sanitizer_last(run, commands) -> None:
    tests.every(run)
    names = [command[command.index("-k") + 1] for command in commands]
    assert "not sanitizer" in names[0] and names[1:] == [tests.LARGE, tests.SANITIZER]
    for command in commands:
        files = [Path(word).name for word in command if word.endswith(".py")]
        assert tuple(files[:2]) == tests.EQUIVALENCE and "test_cuda_sanitizer.py" in files[2:]
        assert "OMP_NUM_THREADS=2" in command


def test_the_short_ones_are_equivalence_with_a_limit_each(run, commands, monkeypatch) -> None:
    monkeypatch.setattr(tests, "_is_there", lambda module: True)
    tests.short(run)
    (command,) = commands
    files = [Path(word).name for word in command if word.endswith(".py")]
    assert tuple(files) == tests.EQUIVALENCE and f"--timeout={tests.TIMEOUT}" in command
    monkeypatch.setattr(tests, "_is_there", lambda module: False)
    tests.short(run)
    assert not any(word.startswith("--timeout") or word == "-n" for word in commands[1])


def test_what_a_stopped_step_started_is_stopped_too(tmp_path, monkeypatch) -> None:
    file = tmp_path / "pid"
    program = (
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        f"pathlib.Path({str(file)!r}).write_text(str(child.pid) + '\\n')\n"
        "child.wait()"
    )
    the_time_is_up_when(lambda: says_a_line(file), monkeypatch)
    assert tests.run_for(1.0, [sys.executable, "-c", program], {}) is None
    state = Path(f"/proc/{file.read_text().strip()}/stat")
    for _ in range(1200):
        with contextlib.suppress(OSError):  # it ends while it is read
            if state.read_text().split()[2] != "Z":
                time.sleep(0.05)
                continue
        return
    pytest.fail("it is still running")
