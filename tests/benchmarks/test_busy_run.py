"""python -m benchmarks.busy: quiet and busy phases in turns, and processes that leave nothing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import busy, others
from benchmarks.peers import Call
from benchmarks.record import newest


def seconds_of(pid: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_others_compute_in_the_block_alone_and_then_end(monkeypatch) -> None:
    monkeypatch.setattr(others, "SETTLING_SECONDS", 0.1)
    with others.started(2, pinned=False) as ours:
        pids = [process.pid for process in ours.processes]
        before = [seconds_of(pid) for pid in pids]
        with ours.computing():
            time.sleep(0.5)
        meanwhile = [seconds_of(pid) for pid in pids]
        assert all(now > then for now, then in zip(meanwhile, before, strict=True))
        time.sleep(0.3)
        assert [seconds_of(pid) for pid in pids] == meanwhile
    assert not any(map(is_alive, pids))


def test_pinned_ones_stay_on_the_first_core() -> None:
    with others.started(1, pinned=True) as ours:
        usable = os.sched_getaffinity(ours.processes[0].pid)
        assert usable == {min(os.sched_getaffinity(0))}


def test_they_end_with_whatever_happens(monkeypatch) -> None:
    with pytest.raises(KeyboardInterrupt), others.started(1, pinned=False) as ours:
        pid = ours.processes[0].pid
        with ours.computing():
            raise KeyboardInterrupt
    assert not is_alive(pid)
    with (
        pytest.raises(RuntimeError, match="has ended"),
        others.started(1, pinned=False) as ours,
        ours.computing(),
    ):
        ours.processes[0].kill()
        ours.processes[0].wait()
    monkeypatch.setattr(others, "PROGRAM", "")
    with pytest.raises(RuntimeError, match="didn't start"), others.started(1, pinned=False):
        raise AssertionError("it never gets here")


@pytest.mark.parametrize("computes", [True, False])
def test_they_end_even_with_a_process_that_is_killed(computes) -> None:
    block = "ours.computing()" if computes else "contextlib.nullcontext()"
    program = (
        "import contextlib, os\n"
        "from benchmarks import others\n"
        "with others.started(1, False) as ours:\n"
        f"    with {block}:\n"
        "        print(ours.processes[0].pid, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    pid = int(done.stdout)
    ends = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_phases_and_peers_take_turns(monkeypatch) -> None:
    now, log, is_busy = [0.0], [], [False]
    monkeypatch.setattr(busy.time, "perf_counter", lambda: now[0])

    @contextlib.contextmanager
    def computing():
        is_busy[0] = True
        yield
        is_busy[0] = False

    def call(name: str, quiet: float) -> Call:
        def spend(_) -> None:
            log.append(name.upper() if is_busy[0] else name)
            now[0] += quiet * (3 if is_busy[0] else 1)

        return Call(run=spend, results=lambda _: [])

    calls = {"f": call("f", 1.0), "e": call("e", 2.0)}
    found = busy.phases(calls, rounds=2, seconds=0.0, computing=computing)
    assert found["f"] == {"quiet": [1.0, 1.0], "busy": [3.0, 3.0]}
    turns = [name for i, name in enumerate(log) if i == 0 or log[i - 1] != name]
    assert "".join(turns) == "feF" + "E" + "Fef"  # E ends one round, and begins the next
    assert busy.summary(found["e"])["ratio"] == {"median": 3.0, "q1": 3.0, "q3": 3.0}


@pytest.mark.parametrize(
    ("threads", "processes", "cores", "expected"),
    [(2, 1, 2, 1.5), (2, 1, 4, 1.0), (1, 1, 2, 1.0), (2, 2, 2, 2.0), (4, 1, 2, 1.25)],
)
def test_a_fair_share(threads, processes, cores, expected) -> None:
    assert busy.fair(threads, processes, cores) == expected


def test_as_many_rounds_as_the_minutes_hold() -> None:
    assert busy.rounds_for(busy.Options(minutes=3)) == 20
    assert busy.rounds_for(busy.Options(minutes=0.01)) == 3
    assert busy.rounds_for(busy.Options(quick=True)) == 2


def test_a_quick_run_shows_that_everything_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    path = tmp_path / "busy-a.json"
    arguments = ["--quick", "--pinned", "--output", str(path)]
    assert busy.main([*arguments, "--peers", "vgg_fast", "eager", "openvino"]) == path
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["work"] == "seed-training-b2" and found["rounds"] == 2 and found["fair"] >= 1
    assert found["openmp"]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert found["options"]["processes"] == 1 and found["options"]["pinned"]
    for name in ("vgg_fast", "eager"):
        for kind in ("quiet", "busy", "ratio"):
            assert found["peers"][name][kind]["median"] > 0
    assert "quiet" not in found["peers"]["openvino"] and found["peers"]["openvino"]["problem"]
    printed = capsys.readouterr().out
    assert "OMP_WAIT_POLICY is PASSIVE" in printed and "A fair share of the cores" in printed
    assert newest(tmp_path) == ([], [])  # it is no record of benchmarks.run


def test_it_measures_the_preset_fast() -> None:
    work = busy.works()[busy.WORK]
    assert work.shape == (128, 1, 32, 32) and work.kind == "training step"
    assert busy.QUICK_WORK in busy.works(quick=True)


def test_by_itself_a_quick_run_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(busy, "RESULTS", tmp_path)
    assert busy.main(["--quick", "--peers", "eager"]) is None and list(tmp_path.iterdir()) == []
    assert "No file was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads must be at least 1, but it is 0"),
        (["--processes", "0"], "--processes must be at least 1, but it is 0"),
        (["--minutes", "-1"], "--minutes must be above 0, but it is -1"),
        (["--phase", "0"], "--phase must be above 0, but it is 0"),
        (["--peers", "nobody"], "no peer 'nobody': choose among vgg_fast, .*"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message) -> None:
    with pytest.raises(SystemExit, match=f"^benchmarks.busy: {message}$"):
        busy.main(["--quick", *arguments])
