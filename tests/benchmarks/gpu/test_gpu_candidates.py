"""The candidates that benchmarks.gpu compares, and what it takes for right."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from torch import nn

from benchmarks.gpu import candidates, peers
from benchmarks.gpu.candidates import PASSES, Case
from benchmarks.gpu.check import LAYER, errors, verdict
from benchmarks.peers.base import Unavailable
from seed_layers import SeedLayer
from vgg_fast import backends

CPU = torch.device("cpu")
LAYERS = [
    SeedLayer("conv3x3_relu_pool", 8, 12, 10),
    SeedLayer("conv3x3_relu_pool", 1, 8, 7),
    SeedLayer("conv3x3_relu", 16, 8, 6),
]
GIVES = {
    "forward": ("output",),
    "fprop": ("output", "argmax"),
    "backward": ("grad_input", "grad_weight", "grad_bias"),
    "dgrad": ("grad_input",),
    "wgrad": ("grad_weight",),
    "frozen": ("grad_input",),
}


@pytest.mark.parametrize("work", PASSES)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_candidate_of_a_cpu_computes_what_fp32_does(layer: SeedLayer, work: str) -> None:
    found = candidates.work(Case(layer, 6, work), CPU)
    gives = set(GIVES[work]) - ({"grad_input"} if layer.c == 1 and work == "backward" else set())
    gives -= {"argmax"} if layer.op == "conv3x3_relu" else set()
    names = ["vgg_fast", "reference", "eager channels_last"]
    names += [candidates.ALONE] if work == "forward" else []
    for name in names:
        candidate = found.candidates[name]
        with torch.no_grad():
            result = found.compared(candidate.prepare()())
        expected = {tensor: found.expected[tensor] for tensor in candidate.gives}
        assert verdict(errors(result, expected), found.bound) == "", name
        eager = name.startswith("eager") and work == "fprop"
        wanted = {"sums"} if name == candidates.ALONE else gives - ({"argmax"} if eager else set())
        assert set(candidate.gives) == wanted, name


@pytest.mark.parametrize("op", ["conv3x3_relu", "conv3x3_relu_pool"])
@pytest.mark.parametrize("work", PASSES)
def test_a_fifth_of_any_tensor_that_is_zero_is_wrong(op: str, work: str) -> None:
    found = candidates.work(Case(SeedLayer(op, 8, 12, 10), 6, work), CPU)
    candidate = found.candidates["vgg_fast"]
    expected = {tensor: found.expected[tensor] for tensor in candidate.gives}
    for tensor in expected:
        with torch.no_grad():
            result = {name: t.clone() for name, t in candidate.prepare()().items()}
        result[tensor].permute(*reversed(range(result[tensor].dim())))[::5] = 0
        told = verdict(errors(found.compared(result), expected), found.bound)
        assert told.startswith(f"wrong: relative L2 error of {tensor} by "), tensor
        assert told.count(" by ") == 1, tensor


def test_only_what_compiles_may_be_silent_for_longer() -> None:
    found = candidates.work(Case(LAYERS[0], 1, "forward"), CPU).candidates
    patient = {name for name, candidate in found.items() if candidate.patience}
    assert patient == {"vgg_fast", "triton"}


def test_what_is_missing_or_not_a_number_is_wrong() -> None:
    right = {"output": torch.ones(4), "grad": torch.ones(2)}
    for wrong in ({}, {"grad": torch.ones(3)}, {"grad": torch.full((2,), torch.nan)}):
        found = errors({"output": right["output"], **wrong}, right)
        assert found == {"output": 0.0, "grad": float("inf")}
        assert verdict(found, LAYER) == "wrong: relative L2 error of grad by inf"
    assert verdict(errors(right, right), {"output": 0.1, "grad": 0.5}) == ""


def test_each_cpp_candidate_names_its_kernels_while_it_runs(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        candidates, "_operator",
        lambda case: lambda given: seen.append((backends.get(), os.environ.get("VGG_FAST_GPU")))
        or {"output": torch.ones(1)},
    )  # fmt: skip
    monkeypatch.delenv("VGG_FAST_GPU", raising=False)
    found = candidates.work(Case(LAYERS[2], 1, "fprop"), CPU)
    seen.clear()
    for name in ("vgg_fast", "cpp", "cpp sm_90a", "triton"):
        found.candidates[name].prepare()()
    assert seen == [("auto", None), ("cpp", "sm_80"), ("cpp", "sm_90a"), ("triton", None)]
    assert "VGG_FAST_GPU" not in os.environ


@pytest.mark.parametrize(
    ("kind", "train"), [("network", False), ("network", True), ("block", True)], ids=str
)
def test_a_networks_candidates_agree_in_every_tensor(kind: str, train: bool) -> None:
    options = {"conv_arch": ((1, 8), (2, 16)), "image_size": 8, "classifier_width": 16}
    spec = {"kind": kind, "batch": 4, "train": train, "dtype": "bfloat16", "tf32": False}
    found = peers.work({**spec, "options": options}, CPU)
    if train:
        assert all(name.endswith(("weight", "bias")) for name in found.expected)
        assert len(found.expected) == {"block": 2, "network": 12}[kind]
    else:
        assert list(found.expected) == ["output"]
    for name in set(found.candidates) & {"vgg_fast", "eager", peers.EAGER}:
        result = found.candidates[name].prepare()()
        assert verdict(errors(result, found.expected), found.bound) == "", name
    name = list(found.expected)[-1]
    wrong = {**found.expected, name: torch.zeros_like(found.expected[name])}
    assert name in verdict(errors(wrong, found.expected), found.bound)


def test_what_is_not_installed_says_so() -> None:
    forward = candidates.work(Case(LAYERS[0], 1, "forward"), CPU)
    for name in (candidates.GRAPH, candidates.APEX):
        with pytest.raises(Unavailable):
            forward.candidates[name].prepare()
    spec = {"kind": "network", "batch": 1, "train": True, "dtype": "float32", "tf32": False}
    options = {"conv_arch": ((1, 8),), "image_size": 4, "classifier_width": 8}
    found = peers.work({**spec, "options": options}, CPU)
    with pytest.raises(Unavailable, match="computes in 16 bits only"):
        found.candidates[candidates.APEX].prepare()


def test_a_peer_that_replaces_modules_gets_the_layers_tensors(monkeypatch) -> None:
    seen: dict[str, nn.Module] = {}

    def fused_by(name: str, model: nn.Module) -> nn.Module:
        seen[name] = model
        return model

    monkeypatch.setattr(peers, "fused_by", fused_by)
    for layer, (name, peer) in itertools.product(
        (LAYERS[0], LAYERS[2]), ((candidates.GRAPH, "cudnn"), (candidates.APEX, "apex"))
    ):
        found = candidates.work(Case(layer, 2, "forward"), CPU)
        result = found.candidates[name].prepare()()
        assert verdict(errors(result, {"output": found.expected["output"]}), LAYER) == ""
        dtype = torch.float16 if peer == "apex" else torch.bfloat16
        assert seen[peer][0].weight.dtype == result["output"].dtype == dtype
