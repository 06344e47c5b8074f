"""The step of benchmarks.gpu that asks Nsight Compute, here a script in its place."""

from __future__ import annotations

import sys
import time

import pytest

from benchmarks.gpu import candidates, counters, once
from benchmarks.gpu import run as runs
from seed_layers import SeedLayer
from tests.support.gpu_benchmark import QUICK, main

TABLE = """==PROF== Connected to process 1
some program's own words
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","1","fprop_kernel","GPU Speed Of Light","Duration","us","123.4"
"0","1","fprop_kernel","GPU Speed Of Light","Memory Throughput","%","61.0"
"1","1","reduce_kernel","Warp State Statistics","Warp Cycles","","7.5"
"""


@pytest.fixture
def run(tmp_path):
    return runs.Run(main.parse(QUICK), {}, tmp_path / "record.json", time.monotonic() + 600)


@pytest.fixture
def ncu(tmp_path, monkeypatch):
    """Writes a script that is found as ncu."""

    def write(body: str) -> None:
        script = tmp_path / "ncu"
        script.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return write


def test_the_counters_of_each_kernel_are_kept(run, ncu, tmp_path) -> None:
    ncu(f"open({str(tmp_path / 'asked')!r}, 'a').write(' '.join(sys.argv) + chr(10))\n"
        f"print({TABLE!r})")  # fmt: skip
    counters.counters(run)
    found = run.found["counters"]
    assert len(found) == len(counters.CASES) and "note" not in found
    assert found["fprop 512-512-28, batch 1"] == {
        "0: fprop_kernel": {"Duration (us)": "123.4", "Memory Throughput (%)": "61.0"},
        "1: reduce_kernel": {"Warp Cycles": "7.5"},
    }
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "benchmarks.gpu.once conv3x3_relu_pool 512 512 28 1 fprop cpu" in asked[0]
    assert all("--clock-control none" in line for line in asked)  # the card is left as it is
    assert all(line.count("--section") == 3 for line in asked)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("print('==ERROR== no permission'); sys.exit(1)", "ncu ended with 1: ==ERROR== no perm"),
        ("import time; time.sleep(600)", "ncu took more than 1 seconds"),
    ],
)
def test_where_it_does_not_work_it_is_asked_once(run, ncu, monkeypatch, body, why) -> None:
    ncu(body)
    if "sleep" in body:
        monkeypatch.setattr(counters, "SECONDS", 1.0)
    counters.counters(run)
    assert run.found["counters"]["note"].startswith(f"not measured: {why}")
    assert len(run.found["counters"]) == 2


def test_without_it_a_note_says_so(run, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    counters.counters(run)
    assert run.found["counters"] == {"note": "not measured: there is no ncu on PATH"}


def test_a_case_runs_by_itself(monkeypatch) -> None:
    ran = []
    candidate = candidates.Candidate(lambda: lambda: ran.append(1) or {}, ())
    found = candidates.Work({}, {}, {"vgg_fast": candidate})
    asked = []
    monkeypatch.setattr(candidates, "work", lambda case, device: asked.append(case) or found)
    once.main(["conv3x3_relu", "8", "8", "4", "2", "backward", "cpu"])
    assert asked == [candidates.Case(SeedLayer("conv3x3_relu", 8, 8, 4), 2, "backward")]
    assert len(ran) == 3  # the counted one needs a GPU
