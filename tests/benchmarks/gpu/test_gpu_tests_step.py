"""The step of benchmarks.gpu that runs the GPU's tests, and counts them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu import record, steps
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
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    (tmp_path / "tests" / "cuda").mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs one\n")
    return tmp_path / "tests" / "cuda"


def test_the_gpu_tests_are_counted(tmp_path, tests_folder) -> None:
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
    steps.run("tests", main.parse(QUICK), tmp_path / "part.json", 600)
    assert record.read(tmp_path / "part.json")["tests"] == {
        "outcome": "pytest ended with 1 in the equivalence tests",
        "passed": 2, "failed": 1, "skipped": 1,
        "failing": {"tests/cuda/test_some.py::test_it[False]": "assert False"},
    }  # fmt: skip


def test_the_tests_that_ran_before_the_time_was_up_are_counted(
    tmp_path, tests_folder, monkeypatch
) -> None:
    (tests_folder / "test_some.py").write_text(
        "import pytest, time\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_quick():\n    pass\n"
        "def test_sanitizer():\n    pass\n"
        "def test_slow():\n    time.sleep(300)\n"
    )
    the_time_is_up_when(lambda: says_a_line(tmp_path / "part.outcomes"), monkeypatch)
    steps.run("tests", main.parse(QUICK), tmp_path / "part.json", 60)
    assert record.read(tmp_path / "part.json")["tests"] == {
        "outcome": "stopped: the time was up in the equivalence tests",
        "passed": 1, "failed": 0, "skipped": 0, "failing": {},
    }  # fmt: skip


def test_equivalence_comes_first_and_the_sanitizer_last(tmp_path, monkeypatch) -> None:
    commands = []

    def run_for(seconds: float, command: list[str]) -> int:
        commands.append(command)
        return 0

    monkeypatch.setattr(steps, "_run_for", run_for)
    steps.run("tests", main.parse(QUICK), tmp_path / "part.json", 60)
    names = [command[command.index("-k") + 1] for command in commands]
    assert "not sanitizer" in names[0] and names[1:] == [steps.LARGE, steps.SANITIZER]
    for command in commands:
        files = [Path(word).name for word in command if word.endswith(".py")]
        assert tuple(files[:2]) == steps.EQUIVALENCE and "test_cuda_sanitizer.py" in files[2:]


def test_what_a_stopped_step_started_is_stopped_too(tmp_path, monkeypatch) -> None:
    file = tmp_path / "pid"
    program = (
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        f"pathlib.Path({str(file)!r}).write_text(str(child.pid) + '\\n')\n"
        "child.wait()"
    )
    the_time_is_up_when(lambda: says_a_line(file), monkeypatch)
    assert steps._run_for(1.0, [sys.executable, "-c", program]) is None
    state = Path(f"/proc/{file.read_text().strip()}/stat")
    for _ in range(1200):
        with contextlib.suppress(OSError):  # it ends while it is read
            if state.read_text().split()[2] != "Z":
                time.sleep(0.05)
                continue
        return
    pytest.fail("it is still running")
