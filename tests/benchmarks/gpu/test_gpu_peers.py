"""The peers that a step of benchmarks.gpu compares: which take part, and why others don't."""

from __future__ import annotations

import os
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import clock, figures, peers, record, steps
from benchmarks.peers import PEERS
from benchmarks.peers.base import Unavailable
from seed_layers import SEED_LAYERS, SeedLayer
from tests.support.gpu_benchmark import QUICK, main
from vgg_fast import backends


def test_nothing_is_compiled_when_the_time_is_nearly_up(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(steps, "COMPILE_SECONDS", 3600.0)
    steps.run("block", main.parse(QUICK), tmp_path / "part.json", 1800)
    (group,) = record.read(tmp_path / "part.json")["groups"].values()
    assert group["problems"] == {"compile": "left out: the time was up"}
    assert {"vgg_fast", "eager channels_last"} == set(group["peers"])


def test_a_peer_that_fails_is_a_finding(tmp_path, capsys) -> None:
    step = steps.Step(main.parse(QUICK), tmp_path / "part.json", 10)

    def broken():
        raise RuntimeError("an illegal instruction\nand more")

    step.group("layer", True, {"vgg_fast": lambda: lambda: torch.ones(2), "cpp": broken})
    (group,) = record.read(tmp_path / "part.json")["groups"].values()
    assert list(group["peers"]) == ["vgg_fast"]
    assert group["problems"]["cpp"] == "failed: RuntimeError: an illegal instruction"
    assert "illegal instruction" in capsys.readouterr().out


def test_a_peer_that_is_not_installed_says_so(tmp_path) -> None:
    step = steps.Step(main.parse(QUICK), tmp_path / "part.json", 10)

    def missing():
        raise Unavailable("isn't installed")

    step.group("layer", True, {"vgg_fast": lambda: lambda: torch.ones(2), "apex": missing})
    (group,) = record.read(tmp_path / "part.json")["groups"].values()
    assert group["problems"] == {"apex": "isn't installed"}


def test_a_convolution_alone_may_give_other_numbers(tmp_path) -> None:
    step = steps.Step(main.parse(QUICK), tmp_path / "part.json", 10)
    ones = torch.ones(2)
    prepared = {"vgg_fast": lambda: lambda: ones, peers.ALONE: lambda: lambda: -ones}
    step.group("layer", False, prepared)
    (group,) = record.read(tmp_path / "part.json")["groups"].values()
    assert set(group["peers"]) == {"vgg_fast", peers.ALONE} and not group["problems"]


def test_variants_that_no_time_is_left_for_are_named(tmp_path) -> None:
    steps.run("more", main.parse(QUICK), tmp_path / "part.json", 1)
    groups = record.read(tmp_path / "part.json")["groups"]
    assert list(groups) == [figures.VARIANTS[0].group(train) for train in (False, True)]
    assert all(g["problems"] == {"all peers": "left out: the time was up"} for g in groups.values())


@pytest.fixture
def fused_by_stand_ins(monkeypatch):
    """cuDNN's fused graph and apex's ConvBiasReLU, as plain PyTorch on a CPU."""

    def graph(input, weight, bias, stride, padding, dilation, groups):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups).relu()

    def apex(input, weight, bias, padding, stride):
        assert input.dtype == weight.dtype == bias.dtype == torch.float16
        return F.conv2d(input, weight, bias.flatten(), stride, padding).relu()

    module = types.SimpleNamespace(ConvBiasReLU=apex)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", graph)
    for peer in ("cudnn", "apex"):
        monkeypatch.setattr(PEERS[peer], "version", lambda: "1", raising=False)
    monkeypatch.setitem(sys.modules, "apex.contrib.conv_bias_relu", module)
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.contrib", types.ModuleType("apex.contrib"))


@pytest.mark.parametrize("train", [False, True], ids=["forward", "training"])
def test_what_fuses_on_gpus_computes_what_we_do(fused_by_stand_ins, train: bool) -> None:
    cpu, bf16 = torch.device("cpu"), torch.bfloat16
    options = {"conv_arch": ((1, 8), (2, 16)), "image_size": 8, "classifier_width": 16}
    small = SeedLayer("conv3x3_relu_pool", 4, 6, 6)
    for prepared in (
        peers.layer(small, 2, train, cpu, bf16),
        peers.network(2, train, cpu, bf16, options),
    ):
        names = ["vgg_fast", peers.APEX] + [peers.GRAPH] * (not train)
        results = {name: prepared[name]()() for name in names}
        assert clock.disagreements(results) == {}
        ours, theirs = ([r] if not train else r for r in (results["vgg_fast"], results[peers.APEX]))
        assert len(ours) == len(theirs)


def test_cpp_kernels_that_fail_on_small_shapes_are_left_out(tmp_path, monkeypatch) -> None:
    (tmp_path / "tests" / "support").mkdir(parents=True)
    (tmp_path / "tests" / "support" / "sanitized.py").write_text(
        "import os, sys, time\n"
        "if os.environ['VGG_FAST_GPU'] == 'sm_90a':\n"
        "    sys.exit('Traceback\\nRuntimeError: an illegal instruction')\n"
        "time.sleep(float(sys.path[0].endswith('slow') and 60))\n"
    )
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    monkeypatch.setattr(steps, "TRIAL_SECONDS", 600.0)
    monkeypatch.setenv("PYTHONPATH", "")
    failed = steps._cpp_that_fails()
    assert list(failed) == ["cpp sm_90a"]
    assert failed["cpp sm_90a"].endswith("on small shapes: RuntimeError: an illegal instruction")

    slow = tmp_path.rename(tmp_path.with_name("slow"))
    monkeypatch.setattr(steps, "ROOT", slow)
    monkeypatch.setattr(steps, "TRIAL_SECONDS", 1.0)
    assert steps._cpp_that_fails()["cpp"] == "left out: on small shapes it took more than 1 s"


def test_a_peer_that_is_left_out_is_not_tried(tmp_path) -> None:
    step = steps.Step(main.parse(QUICK), tmp_path / "part.json", 10)
    prepared = {"vgg_fast": lambda: lambda: torch.ones(2), "cpp": lambda: pytest.fail("was tried")}
    step.group("layer", True, prepared, {"cpp": "left out: why", "another": "left out: why"})
    (group,) = record.read(tmp_path / "part.json")["groups"].values()
    assert list(group["peers"]) == ["vgg_fast"] and group["problems"] == {"cpp": "left out: why"}


def test_each_cpp_peer_names_its_kernels_while_it_runs(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        peers.functional, "conv3x3_relu",
        lambda *given: seen.append((backends.get(), os.environ.get("VGG_FAST_GPU"))),
    )  # fmt: skip
    monkeypatch.delenv("VGG_FAST_GPU", raising=False)
    monkeypatch.setattr(peers, "_arguments", lambda *given: [torch.ones(())] * 3)
    prepared = peers.layer(SEED_LAYERS[2], 1, False, torch.device("cuda"), torch.bfloat16)
    for peer in ("vgg_fast", "cpp", "cpp sm_90a", "triton"):
        prepared[peer]()()
    assert seen == [("auto", None), ("cpp", "sm_80"), ("cpp", "sm_90a"), ("triton", None)]
