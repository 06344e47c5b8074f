"""benchmarks/gpu.py, as far as a machine without a GPU can run it."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu


class FakeClock:
    """Each call takes the milliseconds that it returns, and is written down."""

    def __init__(self) -> None:
        self.log: list[tuple[float, int]] = []

    def __call__(self, call, repeats: int) -> float:
        self.log.append((call(), repeats))
        return self.log[-1][0]


def test_peers_take_turns_and_run_equally_long() -> None:
    clock = FakeClock()
    times = gpu.interleaved({"fused": lambda: 2.0, "eager": lambda: 5.0}, clock, 3, 10)
    assert times == {"fused": [2.0] * 3, "eager": [5.0] * 3}
    assert clock.log == [(2.0, 1), (5.0, 1), *[(2.0, 5), (5.0, 2)] * 3]


def test_summary_gives_medians_spread_and_ratios() -> None:
    found = gpu.summary({"fused": [1.0, 2.0, 9.0], "eager": [3.0, 4.0, 5.0]})
    assert found["eager"] == {
        "median_ms": 4.0,
        "fastest_ms": 3.0,
        "slowest_ms": 5.0,
        "times_fused": 2.0,
    }


def test_a_peer_that_computes_something_else_is_named() -> None:
    ones = torch.ones(4)
    found = gpu.disagreements({"fused": ones, "eager": [ones * 1.001], "compile": ones * 2})
    assert list(found) == ["compile"] and "differs from fused by 1.0e+00" in found["compile"]


def test_the_whole_program_on_a_cpu(tmp_path, capsys) -> None:
    # Sixty seconds are too few to compile anything.
    options = ["--device=cpu", "--preset=fast", "--batch=1", "--rounds=2", "--milliseconds=1"]
    file = gpu.main([*options, "--layers=1", "--seconds=60", f"--output={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    record = json.loads(file.read_text())
    assert len(record["groups"]) == 4
    printed = capsys.readouterr().out
    for name, group in record["groups"].items():
        assert group["problems"] == {"compile": "left out: the time was up"}
        assert {"fused", "eager channels_last"} <= set(group["peers"])
        assert group["peers"]["fused"]["times_fused"] == 1
        assert name in printed
    assert record["torch"] == torch.__version__


def test_without_a_gpu_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no NVIDIA GPU"):
        gpu.main([])
