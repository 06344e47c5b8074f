"""``--profile``: which steps are recorded, and what is left of them."""

from __future__ import annotations

import gzip
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from tests.train.test_train import Run, run
from tests.train.test_watching import cut_at
from vgg_fast.train import profiling
from vgg_fast.train.loop import Training

__all__ = ["run"]


def trace(folder: str) -> list[dict[str, Any]]:
    with gzip.open(Path(folder) / profiling.TRACE, "rt") as file:
        return json.load(file)["traceEvents"]


def updates(folder: str) -> int:
    """How often the optimizer stepped in the trace."""
    return sum(event["name"] == "Optimizer.step#SGD.step" for event in trace(folder))


def operators(out: str) -> list[tuple[float, str]]:
    """The shares and names in the lines of the profile."""
    found = re.findall(r"^ +([\d.]+)% +[\d.]+ ms/step +\S+ calls/step  (.+)$", out, re.MULTILINE)
    return [(float(share), name) for share, name in found]


def test_leaves_a_trace_a_table_and_lines(run: Run) -> None:
    code, out, err = run("--fused", "--epochs", "1", "--profile", "3", "--output-dir", "run")
    assert code == 0 and err == ""
    assert updates("run") == 3
    table = Path("run", profiling.TABLE).read_text()
    assert table.startswith("steps 6 to 8 of the run") and "vgg_fast::conv3x3_relu_pool" in table
    shown = operators(out)
    assert len(shown) == profiling.SHOWN
    shares = [share for share, _ in shown]
    assert shares == sorted(shares, reverse=True) and 50 < sum(shares) <= 100.5
    assert all(name in table for _, name in shown)
    assert "profile of 3 steps" in out and "images/s of epoch 1" in out
    assert out.index("epoch  1/1") < out.index("profile of") < out.rindex("test accuracy")


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["--profile", "100", "--epochs", "2"], 5),  # to the end of its epoch: no test in it
        (["--profile", "3", "--steps", "7"], 2),  # to the end of the run
        (["--profile", "2", "--batch-size", "100", "--epochs", "2"], 2),  # in the second epoch
    ],
)
def test_which_steps(run: Run, arguments: list[str], steps: int) -> None:
    code, out, err = run(*arguments, "--output-dir", "run")
    assert code == 0, err
    assert updates("run") == steps and f"profile of {steps} steps" in out
    forwards = re.findall(r"max_pool2d_with_indices +.*?(\d+) *$", table := Path(
        "run", profiling.TABLE).read_text(), re.MULTILINE)  # fmt: skip
    assert forwards == [str(2 * steps)], table


def test_of_a_compiled_network(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile  # without Inductor, whose C++ takes half a minute
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled(model, backend="aot_eager"))
    code, out, err = run(
        "--fused", "--compile", "--steps", "9", "--profile", "2", "--output-dir", "run"
    )
    assert code == 0, err
    assert updates("run") == 2 and "vgg_fast::conv3x3_relu_pool" in out


def test_a_run_within_the_warm_up_is_refused(run: Run) -> None:
    code, out, err = run("--profile", "3", "--steps", "5", "--output-dir", "run")
    assert code == 1 and err.count("\n") == 1 and "epoch " not in out
    assert "--profile begins after 5 steps, and this run has only 5" in err


def test_applies_to_one_run_only(run: Run) -> None:
    run("--epochs", "2", "--steps", "9", "--profile", "2", "--output-dir", "run")
    before = Path("run", profiling.TRACE).read_bytes()
    code, out, _ = run("--resume", "run")
    assert code == 0 and "profile of" not in out
    assert Path("run", profiling.TRACE).read_bytes() == before


def test_a_resumed_run_warms_up_too(run: Run) -> None:
    run("--epochs", "2", "--steps", "2", "--output-dir", "run")
    assert run("--resume", "run", "--profile", "2")[0] == 0
    assert Path("run", profiling.TABLE).read_text().startswith("steps 8 to 9 of the run")


def test_cut_while_it_records(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cut_at(8, patch, signal.SIGTERM)
        code, _, err = run("--epochs", "1", "--profile", "4", "--output-dir", "run")
    assert code == 143 and "the state is saved" in err
    assert not Path("run", profiling.TRACE).exists()
    code, out, _ = run("--epochs", "1", "--profile", "4", "--output-dir", "again")
    assert code == 0 and "profile of 4 steps" in out, "the first one still records"


class Event:
    """What the profiler tells of an operator, or of a kernel."""

    def __init__(self, key: str, on_cpu: float, on_gpu: float, kind: DeviceType = DeviceType.CPU):
        self.key, self.count, self.device_type = key, 2, kind
        self.self_cpu_time_total, self.self_device_time_total = on_cpu, on_gpu
        self.is_user_annotation = "#" in key


def test_on_a_gpu_operators_are_sorted_by_their_kernels() -> None:
    events = [
        Event("aten::cheap", 900.0, 1000.0),
        Event("vgg_fast::dear", 100.0, 3000.0),
        Event("a_kernel", 0.0, 3000.0, DeviceType.CUDA),
        Event("Optimizer.step#SGD.step", 50.0, 4000.0),
        Event("aten::view", 10.0, 0.0),
    ]
    lines = list(profiling.summary(events, "self_device_time_total", 2))
    assert operators("\n".join(lines)) == [(75.0, "vgg_fast::dear"), (25.0, "aten::cheap")]
    assert "1.50 ms/step" in lines[0] and "1 calls/step" in lines[0]


@pytest.mark.gpu
def test_on_a_gpu(run: Run) -> None:
    code, out, err = run(
        *("--fused", "--device", "cuda", "--epochs", "1", "--profile", "3", "--output-dir", "run")
    )
    assert code == 0, err
    assert any(event.get("cat") == "kernel" for event in trace("run"))
    assert "self_device_time_total" in Path("run", profiling.TABLE).read_text()
    assert any("vgg_fast::" in name for _, name in operators(out))


def test_times_the_profiler_takes_are_no_training_time(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting, and writing a large trace, may take seconds."""
    import time

    stop = profiling.Profiling._stop
    monkeypatch.setattr(profiling.Profiling, "_stop", lambda self: (time.sleep(1.5), stop(self)))
    seen: list[float] = []
    train_step = Training._train_step

    def note(self: Training, *batch: torch.Tensor) -> None:
        train_step(self, *batch)
        seen.append(self.epoch_seconds)

    monkeypatch.setattr(Training, "_train_step", note)
    assert run("--epochs", "1", "--profile", "2", "--output-dir", "run")[0] == 0
    assert seen[-1] < 1.5
