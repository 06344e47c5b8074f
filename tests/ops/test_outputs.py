"""The results' memory: PyTorch's own, of any size."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from vgg_fast.functional import conv3x3, conv3x3_relu, conv3x3_relu_pool, max_pool2x2

SIDES = [8, 128]  # 16 KiB, and 4 MiB


def results(side: int) -> list[Tensor]:
    image = torch.randn(1, 64, side, side, requires_grad=True)
    weight = torch.randn(64, 64, 3, 3, requires_grad=True)
    outputs = [conv3x3(image, weight), conv3x3_relu(image, weight)]
    outputs += [conv3x3_relu_pool(image, weight), max_pool2x2(image)]
    gradients = torch.autograd.grad(sum(output.sum() for output in outputs), (image, weight))
    return [*(output.detach() for output in outputs), *gradients]


@pytest.mark.parametrize("side", SIDES)
def test_results_can_be_resized(side: int) -> None:
    for result in results(side):
        assert result.untyped_storage().resizable()
        values = result.flatten()[:3].tolist()
        result.resize_(2 * result.numel())
        assert result.numel() == result.untyped_storage().nbytes() // 4
        assert result[:1].isfinite().all() and len(values) == 3


@pytest.mark.parametrize("side", SIDES)
def test_results_can_be_written_over_in_another_shape(side: int) -> None:
    for result in results(side):
        with pytest.warns(UserWarning, match="resized"):
            torch.cat([torch.ones(5), torch.ones(result.numel())], out=result)
        assert bool((result == 1).all())


@pytest.mark.parametrize("side", SIDES)
def test_the_memory_of_a_result_can_be_freed_and_come_back(side: int) -> None:
    """As fully sharded training does with parameters and activations."""
    for result in results(side):
        storage = result.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        assert result.data_ptr() == 0
        storage.resize_(size)
        result.fill_(2)
        assert float(result.sum()) == 2 * result.numel()


def test_too_large_a_result_is_refused_with_its_size() -> None:
    with pytest.raises(RuntimeError) as error:
        conv3x3_relu(torch.zeros(2, 1, 4000, 4000), torch.zeros(4_000_000, 1, 3, 3))
    assert re.fullmatch(
        r"vgg_fast::conv3x3_relu: not enough memory for 512000000000000 bytes \(488281250 MiB\), "
        r"with 2 images of 1 channels and 4000x4000 pixels; use fewer or smaller images, or less "
        r"workspace \(vgg_fast.cpu.set\)",
        str(error.value),
    )


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer itself maps terabytes"
)
def test_too_little_memory_for_scratch_is_refused_with_its_size() -> None:
    code = """
import resource, torch
from vgg_fast.functional import conv3x3
image = torch.zeros(1, 2048, 32, 32).contiguous(memory_format=torch.channels_last)
weight = torch.zeros(64, 2048, 3, 3)
conv3x3(image[:, :, :2, :2], weight)  # whatever is needed once
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 8 * 2**20,) * 2)
try:
    conv3x3(image, weight)
except RuntimeError as error:
    print(error)
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert re.match(
        r"vgg_fast::conv3x3: not enough memory for \d{8} bytes \(\d\d MiB\), with 1 images of 2048 "
        r"channels and 32x32 pixels",
        printed.stdout,
    ), printed.stdout + printed.stderr
    assert printed.stdout.count("\n") == 1
