"""python -m benchmarks.gpu: its steps, their seconds, and the record that they leave."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks.gpu import candidates, figures, pool, steps
from tests.support import bad_peers
from tests.support.gpu_benchmark import QUICK, main

ROOT = pool.ROOT


def test_the_whole_program_on_a_cpu(tmp_path, capfd) -> None:
    options = [*QUICK, "--layers=1", "--seconds=3600", f"--output={tmp_path}"]
    some = [
        "compiling",
        "probe",
        "ceilings",
        "profile",
        "layers",
        "forward",
        "memory",
        "launching",
        "frozen",
    ]
    file = main.main([*options, *(f"--only={step}" for step in some)])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["json", "svg"]
    found = json.loads(file.read_text())
    assert list(found["steps"]) == some
    assert {step["outcome"] for step in found["steps"].values()} == {"done"}
    assert found["torch"] == torch.__version__ and "problems" not in found
    assert found["compiled ahead"] == "nothing: Triton compiles for GPUs"
    assert set(found["ceilings"]) == {"product_tflops", "copy_tbs", "l2_copy_tbs"}
    assert min(found["ceilings"].values()) > 0
    for peer in ("vgg_fast", "eager channels_last"):
        kernels = found["kernels"][peer]
        assert kernels == sorted(kernels, key=lambda kernel: -kernel["ms"])
        assert any("conv" in kernel["kernel"] for kernel in kernels), peer
        assert found["host_microseconds"][peer] > 0 and found["fast_preset"][peer]["replayed_ms"]
    assert len(found["probe"]) == len(steps.PROBED_WORK)
    for group in found["probe"].values():
        assert list(group["errors"]) == ["vgg_fast"] and not group["problems"]
    forward, backward, network, frozen = found["groups"].values()
    # What runs on GPUs only isn't hidden, though it can't take part.
    assert set(forward["problems"]) == {candidates.APEX, candidates.GRAPH}
    assert set(forward["peers"]) == {"vgg_fast", "eager channels_last", candidates.ALONE}
    assert set(backward["errors"]["vgg_fast"]) == {"grad_weight", "grad_bias"}
    assert set(frozen["errors"]["vgg_fast"]) == {"grad_input"}
    assert set(network["errors"]["vgg_fast"]) == {"output"}
    printed = capfd.readouterr().out
    for name, group in found["groups"].items():
        assert group["peers"]["vgg_fast"]["relative_time"] == 1 and name in printed
    # What a CPU takes says nothing about a GPU.
    assert all(line["found"] is None for line in found["figures"].values())
    assert printed.count(figures.NOT_YET) == len(figures.FIGURES)


def test_peers_that_crash_and_lie_are_told_at_the_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pool, "SILENCE", 5.0)
    options = [*QUICK, "--layers=1", "--only=layers", "--seconds=3600", f"--output={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        main.main([*options, f"--peers={bad_peers.__name__}"])
    told = str(ended.value)
    for peer, why in (
        ("lies", "wrong: relative L2 error of output"),
        ("crashes", "crashed: SIGSEGV"),
        ("hangs", "hung: it said nothing for 5 seconds"),
    ):
        assert f"{peer} in conv3x3_relu_pool 1-64-224 forward, batch 1: {why}" in told
    assert "honest" not in told and "apex" not in told
    (file,) = tmp_path.glob("*.json")
    peers = next(iter(json.loads(file.read_text())["groups"].values()))["peers"]
    assert set(peers) == {"vgg_fast", "eager channels_last", candidates.ALONE, "honest"}


@pytest.fixture
def no_steps(monkeypatch):
    """Each step notes its seconds, and is done at once; or does what ``does`` says."""
    given: dict[str, float] = {}
    does: dict[str, object] = {}

    def noting(name: str):
        def step(run) -> None:
            given[name] = run.step_end - main.time.monotonic()
            if name in does:
                does[name](run)

        return step

    for plan in (steps.FIRST, steps.SECOND, steps.STEPS):
        for name, (share, _) in plan.items():
            monkeypatch.setitem(plan, name, (share, noting(name)))
    given["does"] = does
    return given


def test_a_step_that_fails_loses_no_other(tmp_path, no_steps) -> None:
    def fail(run) -> None:
        run.found["groups"]["half"] = {"peers": {}, "problems": {}}
        raise RuntimeError("no more")

    no_steps["does"]["layers"] = fail
    with pytest.raises(SystemExit, match="step layers: failed: RuntimeError: no more"):
        main.main([*QUICK, f"--output={tmp_path}"])
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text())
    assert set(found["groups"]) == {"half"}
    assert {name for name, step in found["steps"].items() if step["outcome"] == "done"} == set(
        steps.FIRST
    ) - {"layers"}


def test_each_plan_and_each_part_has_a_record_of_its_own(tmp_path, no_steps) -> None:
    first = main.main([*QUICK, f"--output={tmp_path}"])
    second = main.main([*QUICK, "--plan=second", f"--output={tmp_path}"])
    part = main.main([*QUICK, "--only=short tests", "--only=forward", f"--output={tmp_path}"])
    assert second.name == f"{first.stem}-second.json"
    assert part.name == f"{first.stem}-forward-short-tests.json"
    assert "only" not in json.loads(first.read_text())
    assert json.loads(part.read_text())["only"] == ["forward", "short tests"]
    assert list(json.loads(second.read_text())["steps"]) == list(steps.SECOND)


@pytest.mark.parametrize("plan", sorted(steps.PLANS))
def test_a_call_ends_inside_nine_and_a_half_minutes(plan, tmp_path, monkeypatch, no_steps) -> None:
    """The build included, even if each step takes all of its seconds, and a hang's more."""
    now = [0.0]

    def take_all(run) -> None:
        now[0] = run.step_end + pool.SILENCE

    no_steps["does"].update(dict.fromkeys(steps.STEPS, take_all))
    monkeypatch.setattr(main.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(main.time, "time", lambda: 1000.0)
    with contextlib.suppress(SystemExit):  # a short step may be left out
        main.main([*QUICK, "--since=850", f"--plan={plan}", f"--output={tmp_path}"])
    assert now[0] + 150 < 570  # of which the build took 150
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["seconds_before"] == 150.0


def test_spare_seconds_go_to_the_steps_behind(tmp_path, no_steps) -> None:
    main.main([*QUICK, f"--output={tmp_path}"])
    total = sum(share for share, _ in steps.FIRST.values())
    assert no_steps["probe"] == pytest.approx(60 * main.SECONDS / total, rel=0.1)
    assert no_steps["tuning"] > 500


def test_steps_that_no_time_is_left_for_are_named(tmp_path) -> None:
    with pytest.raises(SystemExit, match="step compiling: left out: the time was up"):
        main.main([*QUICK, "--seconds=1", f"--output={tmp_path}"])
    with pytest.raises(SystemExit, match="step forward: left out: the time was up"):
        since = f"--since={time.time() - 1000}"
        main.main([*QUICK, since, "--only=forward", f"--output={tmp_path}"])


def test_without_a_gpu_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no NVIDIA GPU"):
        main.main([])


def test_the_hosts_part_is_measured_without_a_gpu() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "from benchmarks.gpu import host\n"
         "host.launch_nothing()\n"
         "print(host.measure(2, 64, 64, 4, repeats=2))"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "'forward'" in run.stdout and "'backward'" in run.stdout
