"""A library of CUDA C++ kernels that holds no code for a GPU is passed over. Needs no GPU."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support.cases import OPERATORS
from vgg_fast import _extension, backends, info
from vgg_fast.dispatch import architectures, choices, route

A100, RTX_3090, H100, B200, RTX_5090 = (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)


@pytest.mark.parametrize(
    ("listed", "served"),
    [
        ("8.0;9.0a", {A100, RTX_3090, H100}),
        ("9.0a", {H100}),
        ("9.0a+PTX", {H100}),  # PTX of 9.0a is for no other GPU either
        ("8.0", {A100, RTX_3090}),
        ("8.6", {RTX_3090}),
        ("8.0 8.6+PTX", {A100, RTX_3090, H100, B200, RTX_5090}),
        ("9.0+PTX", {H100, B200, RTX_5090}),
        ("10.0f", {B200}),
        ("7.5", set()),
        ("7.5;Ampere", {A100, RTX_3090, H100, B200, RTX_5090}),  # what a name means isn't known
    ],
)
def test_code_for_one_gpu_runs_on_these(listed: str, served: set) -> None:
    gpus = (A100, RTX_3090, H100, B200, RTX_5090)
    assert {gpu for gpu in gpus if architectures.run_on(listed, gpu)} == served


@pytest.fixture
def library(monkeypatch):
    """Sets what the library was built for, and which GPU there is."""

    def built_for(listed: str, gpu: tuple[int, int]) -> None:
        facts = {"cuda version": "13.0", "cuda architectures": listed}
        monkeypatch.setattr(_extension, "cuda_facts", lambda: facts)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: gpu)
        for cache in (architectures.why_not, choices.family, choices._order):
            cache.cache_clear()

    monkeypatch.delenv("VGG_FAST_CHOICES", raising=False)
    monkeypatch.setattr(choices, "gpu", lambda index: None)
    for op in OPERATORS:
        monkeypatch.setitem(route._native, (op, "CUDA"), f"cpp {op}")
        monkeypatch.setitem(route._sm90, op, f"cpp sm_90a {op}")
    monkeypatch.setattr(route, "_triton_kernel", lambda name, key: (f"triton {name}", ""))
    yield built_for
    monkeypatch.undo()
    for cache in (architectures.why_not, choices.family, choices._order):
        cache.cache_clear()


IMAGE = torch.empty(1, 3, 8, 8, device="meta", dtype=torch.bfloat16)
WEIGHT = torch.empty(64, 3, 3, 3, device="meta", dtype=torch.bfloat16)


def chosen(name: str, *args) -> str:
    return route.kernel_for(name, "CUDA", *args)[0]


@pytest.mark.parametrize(
    ("listed", "gpu", "backend"),
    [
        ("9.0a", A100, "triton"),
        ("9.0a", H100, "cpp"),
        ("8.0", H100, "triton"),
        ("8.0+PTX", H100, "cpp"),
        ("8.0;9.0a", RTX_5090, "triton"),
    ],
)
def test_without_code_for_the_gpu_the_next_row_decides(library, listed, gpu, backend) -> None:
    library(listed, gpu)
    assert chosen("conv3x3_relu", IMAGE, WEIGHT) == backend
    assert chosen("max_pool2x2", IMAGE, True) == backend


def test_a_row_for_hoppers_kernels_is_passed_over_too(library, monkeypatch) -> None:
    rows = (choices.Row(choices.HOPPER, "measured"), choices.Row("triton", "measured"))
    monkeypatch.setattr(choices, "order", lambda name, args: rows)
    library("9.0a", H100)
    assert chosen("conv3x3", IMAGE, WEIGHT) == choices.HOPPER
    library("9.0a", A100)
    assert chosen("conv3x3", IMAGE, WEIGHT) == "triton"


def test_asked_for_by_name_they_are_missed_in_one_sentence(library) -> None:
    library("9.0a", A100)
    sentence = (
        "vgg_fast::conv3x3: the C++ kernels are built for 9.0a, and this GPU's compute capability "
        "is 8.0; build them with TORCH_CUDA_ARCH_LIST=8.0, or use the backend 'auto'"
    )
    with backends.use("cpp"), pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
        chosen("conv3x3", IMAGE, WEIGHT)
    library("9.0a", H100)
    with backends.use("cpp"):
        assert chosen("conv3x3", IMAGE, WEIGHT) == "cpp"


def test_info_says_of_each_gpu_whether_they_run_there(library, monkeypatch) -> None:
    properties = type("Properties", (), {"name": "Invented", "major": 8, "minor": 0})
    properties.total_memory = 2**36
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    library("9.0a", A100)
    assert info._gpus()[0]["C++ kernels"] == architectures.why_not(0)
    library("8.0;9.0a", A100)
    assert info._gpus()[0]["C++ kernels"] == "built for 8.0;9.0a"
    monkeypatch.setattr(_extension, "cuda_facts", dict)
    assert info._gpus()[0]["C++ kernels"] == "not there"
