"""The processes that measure for benchmarks.gpu: how they answer, crash, hang, and are replaced."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import context, pool
from benchmarks.gpu.pool import Lost, Pool

# What the pool starts in place of worker.py: a process that does what its job says.
PUPPET = """
import json, os, signal, sys, time
say = lambda **line: print(json.dumps(line), flush=True)
say(ready=True)
for text in sys.stdin:
    job = json.loads(text)["arguments"]
    for line in job.get("says", []):
        say(**line)
    if "dies" in job:
        os.kill(os.getpid(), job["dies"])
    if "exits" in job:
        os._exit(job["exits"])
    if "sleeps" in job:
        time.sleep(job["sleeps"])
    say(done=True, pid=os.getpid(), choices=json.loads(text)["choices"])
"""


@pytest.fixture
def puppets(tmp_path, monkeypatch):
    (tmp_path / "benchmarks" / "gpu").mkdir(parents=True)
    (tmp_path / "benchmarks" / "gpu" / "worker.py").write_text(PUPPET)
    monkeypatch.setattr(pool, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    found = Pool("cpu")
    yield found
    found.close()


def pid(puppets: Pool) -> int:
    return list(puppets.do("any"))[-1]["pid"]


def is_alive(process: int) -> bool:
    """Whether it still runs; one that nobody has waited for yet doesn't."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_job_gives_its_lines_and_the_process_stays(puppets) -> None:
    says = [{"trying": "one"}, {"ok": "one"}]
    assert list(puppets.do("any", says=says))[:2] == says
    assert pid(puppets) == pid(puppets)


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ({"dies": signal.SIGSEGV}, "crashed: SIGSEGV"),
        ({"exits": 3}, "crashed: it ended with 3"),
        ({"says": [{"unusable": "an illegal address"}]}, "made the GPU's context unusable: an ill"),
    ],
)
def test_a_process_that_ends_is_replaced(puppets, does, why) -> None:
    first = pid(puppets)
    with pytest.raises(Lost, match=why):
        list(puppets.do("any", **does))
    assert pid(puppets) != first and not is_alive(first)


def test_a_process_that_is_silent_is_killed(puppets, monkeypatch) -> None:
    first = pid(puppets)
    monkeypatch.setattr(pool, "SILENCE", 0.5)
    with pytest.raises(Lost, match=r"hung: it said nothing for 0 seconds|hung: .* 1 seconds"):
        list(puppets.do("any", sleeps=3600))
    assert not is_alive(first)
    monkeypatch.setattr(pool, "SILENCE", 60.0)
    assert pid(puppets) != first


def test_a_line_may_ask_for_patience(puppets, monkeypatch) -> None:
    pid(puppets)
    monkeypatch.setattr(pool, "SILENCE", 0.5)
    lines = list(puppets.do("any", says=[{"trying": "slow", "patience": 60.0}], sleeps=1.5))
    assert lines[0]["trying"] == "slow" and "pid" in lines[-1]


def test_a_job_brings_the_choices_that_were_adopted(puppets) -> None:
    puppets.choices = "a file"
    assert list(puppets.do("any"))[-1]["choices"] == "a file"


def test_a_process_that_no_signal_ends_is_not_waited_for(puppets, monkeypatch) -> None:
    """As one in the driver of a GPU that hangs."""
    pid(puppets)
    monkeypatch.setattr(pool, "ENDING", 0.2)
    monkeypatch.setattr(pool, "SILENCE", 0.2)
    killed: list[int] = []
    monkeypatch.setattr(pool.os, "killpg", lambda group, signal: killed.append(group))
    with pytest.raises(Lost, match="hung"):
        list(puppets.do("any", sleeps=3600))
    monkeypatch.undo()
    assert killed
    os.killpg(killed[0], signal.SIGKILL)


def test_an_error_that_stays_ends_the_worker(monkeypatch) -> None:
    told, left = [], []
    monkeypatch.setattr(os, "_exit", left.append)
    usable = context.Context(context.torch.device("cpu"))
    usable.leave_if_unusable(lambda **line: told.append(line))
    assert not told and not left

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    monkeypatch.setattr(usable, "synchronize", broken)
    usable.leave_if_unusable(lambda **line: told.append(line))
    assert told == [{"unusable": "CUDA error: an illegal memory access"}]
    assert left == [context.LEFT]


def test_what_a_program_prints_is_no_line(tmp_path) -> None:
    """The worker itself, whose job prints, fails, and is followed by another."""
    job = '{"job": "group", "arguments": {"spec": {}, "names": [], "rounds": 0, '
    job += '"milliseconds": 1, "checked": []}, "choices": ""}\n'
    program = "import runpy, sys; print('noise'); sys.argv = ['worker', 'cpu']; "
    program += "runpy.run_module('benchmarks.gpu.worker', run_name='__main__')"
    run = pool.subprocess.run(
        [sys.executable, "-c", program], input=2 * job, capture_output=True, text=True, check=True
    )  # fmt: skip
    lines = [line for line in run.stdout.splitlines() if line != "noise"]
    assert [line for line in lines if "done" in line] == 2 * [
        '{"done": true, "problem": "KeyError: \'kind\'"}'
    ]
