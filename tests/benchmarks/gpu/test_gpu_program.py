"""python -m benchmarks.gpu: its steps, their seconds, and the record that they leave."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import figures, peers, record, steps
from tests.support.gpu_benchmark import QUICK, main


def test_the_whole_program_on_a_cpu(tmp_path, capfd) -> None:
    options = [*QUICK, "--layers=1", "--seconds=3600", f"--output={tmp_path}"]
    some = ["--only=ceilings", "--only=layers", "--only=memory", "--only=more"]
    file = main.main([*options, *some])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".svg"]
    found = json.loads(file.read_text())
    assert {step["outcome"] for step in found["steps"].values()} == {"done"}
    assert list(found["steps"]) == ["ceilings", "layers", "memory", "more"]
    assert found["torch"] == torch.__version__ and found["ceilings"]["product_tflops"] > 0
    assert len(found["groups"]) == 4
    printed = capfd.readouterr().out
    for name, group in found["groups"].items():
        assert {"vgg_fast", "eager channels_last"} <= set(group["peers"])
        # What fuses on GPUs only isn't hidden, though it can't take part.
        trains = "forward and" in name or figures.TRAINING in name
        assert set(group["problems"]) == {peers.APEX} | (set() if trains else {peers.GRAPH})
        assert group["peers"]["vgg_fast"]["relative_time"] == 1
        assert name in printed
    # What a CPU takes says nothing about a GPU.
    assert all(line["found"] is None for line in found["figures"].values())
    assert printed.count(figures.NOT_YET) == len(figures.FIGURES)


def test_a_step_that_fails_loses_no_other(tmp_path, monkeypatch) -> None:
    def run_step(name, options, part, seconds):
        if name == "layers":
            return {"outcome": "ended with -11", "seconds": 1.0}
        record.write({"groups": {name: {"peers": {}, "problems": {}}}}, part)
        return {"outcome": "done", "seconds": 1.0}

    monkeypatch.setattr(main, "run_step", run_step)
    with pytest.raises(SystemExit, match="step layers: ended with -11"):
        main.main([*QUICK, f"--output={tmp_path}"])
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text())
    assert set(found["groups"]) == set(steps.STEPS) - {"layers"}


def test_a_part_of_the_steps_does_not_replace_the_whole_runs_record(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(main, "run_step", lambda *given: {"outcome": "done", "seconds": 1.0})
    whole = main.main([*QUICK, f"--output={tmp_path}"])
    part = main.main([*QUICK, "--only=block", "--only=forward", f"--output={tmp_path}"])
    assert part.name == f"{whole.stem}-block-forward.json"
    assert "only" not in json.loads(whole.read_text())
    assert json.loads(part.read_text())["only"] == ["block", "forward"]


def test_a_step_that_hangs_is_ended(tmp_path, monkeypatch) -> None:
    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    ended = main.run_step("layers", main.parse(QUICK), tmp_path / "part.json", 5)
    assert ended["outcome"] == "stopped: the time was up"


def test_steps_that_no_time_is_left_for_are_named(tmp_path) -> None:
    with pytest.raises(SystemExit, match="step ceilings: left out: the time was up"):
        main.main([*QUICK, "--seconds=5", f"--output={tmp_path}"])


def test_the_steps_fit_into_nine_minutes(tmp_path, monkeypatch) -> None:
    """Even if each of them hangs until it is ended, 10 seconds late."""
    now, given = [0.0], {}

    def run_step(name, options, part, seconds):
        given[name] = seconds
        now[0] += seconds + 10
        return {"outcome": "stopped: the time was up", "seconds": seconds + 10}

    monkeypatch.setattr(main, "run_step", run_step)
    monkeypatch.setattr(main.time, "monotonic", lambda: now[0])
    with pytest.raises(SystemExit, match="step tests: stopped"):
        main.main([*QUICK, f"--output={tmp_path}"])
    assert now[0] < 520 and set(steps.STEPS) - set(given) <= {"more"}
    assert given["tests"] > 100 and given["training"] > 40


def seconds_given(monkeypatch) -> dict[str, float]:
    """To each step from now on; every one is done at once."""
    given = {}

    def run_step(name, options, part, seconds):
        given[name] = seconds
        return {"outcome": "done", "seconds": 1.0}

    monkeypatch.setattr(main, "run_step", run_step)
    monkeypatch.setattr(main.time, "monotonic", lambda: 0.0)
    return given


def test_spare_seconds_go_to_the_steps_behind(tmp_path, monkeypatch) -> None:
    given = seconds_given(monkeypatch)
    main.main([*QUICK, f"--output={tmp_path}"])
    assert given["ceilings"] == pytest.approx(steps.STEPS["ceilings"][0], rel=0.05)
    assert given["more"] > 400


def test_fewer_steps_share_the_same_seconds(tmp_path, monkeypatch) -> None:
    given = seconds_given(monkeypatch)
    main.main([*QUICK, "--only=block", f"--output={tmp_path}"])
    assert given["block"] == pytest.approx(main.SECONDS, abs=1)


def test_without_a_gpu_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no NVIDIA GPU"):
        main.main([])


def test_the_hosts_part_is_measured_without_a_gpu() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "from benchmarks.gpu import host\n"
         "host.launch_nothing()\n"
         "print(host.measure(2, 64, 64, 4, repeats=2))"],
        cwd=steps.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "'forward'" in run.stdout and "'backward'" in run.stdout
