"""The model of the schedule, against what the emulated kernels ask for and multiply."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import schedule
from benchmarks.gpu.schedule import Shape
from seed_layers import SEED_LAYERS
from tests.support.emulated import (
    EPILOGUES,
    channels_last,
    dense_weight,
    emulation,
    longs,
    pointer,
    pooled,
    problem,
)
from vgg_fast.dispatch.tiles import Call

PAGE = Path(__file__).parents[3] / "docs" / "performance" / "gpu.md"
BF16 = 1
# Groups and patches; columns or rows divided, one block or a cluster; two channel steps; a cluster
# whose second block has no channels; rows of four images; a tile of two patches that has one
FPROPS = [
    (4, 16, 2, 14, 64),
    (3, 24, 5, 7, 136),
    (5, 8, 8, 8, 264),
    (2, 72, 6, 4, 72),
    (7, 8, 8, 32, 64),
    (4, 72, 8, 8, 72),
    (2, 72, 8, 16, 136),
]
# Split sums, clusters, three and four strips, more runs than tiles, boxes that hang over the edge
WGRADS = [(8, 16, 2, 14, 64), (3, 72, 5, 7, 136), (1, 200, 6, 6, 264), (9, 8, 12, 14, 72)]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(emulation(tmp_path_factory, "cuda_hopper_emulation.cpp")))
    loaded.emulate_wgrad_workspace.restype = ctypes.c_int64
    return loaded


def counted(emulated: ctypes.CDLL) -> tuple[int, int]:
    """Bytes asked of the L2 cache and clocks of the tensor cores, since the last call."""
    numbers = longs(0, 0)
    emulated.counted(numbers)
    return numbers[0], numbers[1]


@pytest.mark.parametrize("shape", FPROPS)
@pytest.mark.parametrize("epilogue", ["conv3x3", "conv3x3_relu_pool"])
def test_fprop_asks_for_what_the_model_says(emulated, shape, epilogue: str) -> None:
    input, weight, bias = problem(shape, torch.bfloat16)
    output = torch.empty(pooled(shape, epilogue), dtype=torch.bfloat16)
    output = output.contiguous(memory_format=torch.channels_last)
    counted(emulated)
    arguments = (
        EPILOGUES.index(epilogue), BF16, longs(*shape), pointer(channels_last(input)),
        pointer(dense_weight(weight)), pointer(bias), pointer(output), None,
    )  # fmt: skip
    assert not emulated.emulate_fprop(*arguments)
    found = schedule.fprop(Shape(*shape), pool=epilogue.endswith("pool"))
    assert counted(emulated) == (found.l2_bytes, found.all_clocks)


@pytest.mark.parametrize("shape", WGRADS)
def test_wgrad_asks_for_what_the_model_says(emulated, shape) -> None:
    n, _, h, w, k = shape
    input, weight, _ = problem(shape, torch.bfloat16)
    gradient = channels_last(torch.randn(n, k, h, w).bfloat16())
    workspace = torch.empty(emulated.emulate_wgrad_workspace(BF16, longs(*shape)))
    counted(emulated)
    assert not emulated.emulate_wgrad(
        BF16, longs(*shape), pointer(gradient), pointer(channels_last(input)),
        pointer(weight), longs(*weight.stride()), pointer(workspace),
    )  # fmt: skip
    found = schedule.wgrad(Shape(*shape))
    assert counted(emulated) == (found.l2_bytes, found.all_clocks)


@pytest.mark.parametrize("batch", [256, 32, 16, 1])
@pytest.mark.parametrize("layer", SEED_LAYERS[1:], ids=str)
def test_wgrads_runs_are_those_of_the_kernel(emulated, layer, batch: int) -> None:
    shape = (batch, layer.c, layer.size, layer.size, layer.k)
    numbers = (ctypes.c_int32 * 6)()
    emulated.wgrad_plan(longs(*shape), numbers)
    tiles, steps, runs, run_steps, strips, cluster = numbers
    found = schedule.wgrad(Shape(*shape))
    clocks = 2 * 128 * strips * 64 * 64 / schedule.FLOP_A_CLOCK  # of a step
    assert (found.units, found.at_a_time) == (runs, schedule.MULTIPROCESSORS // cluster)
    assert found.clocks == run_steps * clocks
    assert found.all_clocks == tiles * steps * cluster * clocks


@pytest.mark.parametrize("layer", SEED_LAYERS[1:], ids=str)
def test_a_large_batch_keeps_all_multiprocessors_busy_with_what_is_needed(layer) -> None:
    for name, found in schedule.schedules(layer, 256):
        assert 0.95 <= found.busy <= 1 and found.useful > 0.99, name
        assert found.l2_bytes_a_clock <= (80 if "triton" in name else 54), name


def test_tritons_programs_share_a_multiprocessor() -> None:
    """Two at a time take twice as long each: the same busy share as one that takes all clocks."""
    found = schedule.triton_fprop(Call("fprop", "half", 256, 56, 56, 64, 64))
    pixels = 256 * 56 * 56
    assert found.units == pixels / 256 and found.at_a_time == 2 * 132
    assert found.all_clocks == 9 * pixels * 64 * 64 * 2 / 4096
    assert found.l2_bytes_a_clock == (256 + 64) * 128 / (2 * 256 * 64 * 64 / 4096)
    assert schedule.triton_fprop(Call("fprop", "half", 256, 56, 56, 48, 64)) is None


def test_the_notebook_shows_the_models_table() -> None:
    assert "\n".join(schedule.lines()) in PAGE.read_text(encoding="utf-8")
