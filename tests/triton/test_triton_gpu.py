"""The Triton kernels on an NVIDIA GPU: every tile of the table, VGG's shapes, threads, graphs.

Skipped where there is no GPU; `make gpu` runs them. What holds for every backend is in
test_cuda_gpu.py.
"""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F

triton = pytest.importorskip("triton", reason="there is no Triton for this platform")

from seed_layers import SEED_LAYERS  # noqa: E402
from tests.support.cases import LAYOUTS, Shape  # noqa: E402
from tests.support.operators import OPS, Results, forward_backward, random_arguments  # noqa: E402
from tests.support.tile_rows import check_bits, check_call, check_tile, row_name  # noqa: E402
from vgg_fast import backends  # noqa: E402
from vgg_fast.dispatch import policy, tiles  # noqa: E402
from vgg_fast.triton import tuning  # noqa: E402

pytestmark = pytest.mark.gpu

# On a Hopper GPU all of these are loaded by descriptors, forward and backward.
DESCRIBED = Shape(32, 64, 128, 28, 28)
OP = "conv3x3_relu_pool"


def rows_here(*kernels: str) -> list[tiles.Row]:
    """The rows that this GPU's calls can reach; where there is no GPU, all."""
    here = torch.cuda.is_available()
    family = policy.family_of(torch.cuda.get_device_capability()) if here else None
    return [
        row
        for row in tiles.shipped()
        if family in (None, row.family) and (not kernels or row.kernel in kernels)
    ]


def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _triton(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # what is measured here stays here
    monkeypatch.setenv("VGG_FAST_AUTOTUNE", "0")
    tuning.forget()
    with backends.use("triton"):
        yield
    tuning.forget()


def results(dtype: torch.dtype = torch.bfloat16) -> Results:
    arguments = random_arguments(OP, DESCRIBED, dtype)
    for name, tensor in vars(arguments).items():
        setattr(arguments, name, tensor.to(gpu()))
    return forward_backward(OP, arguments)


def same(found: Results, expected: Results) -> None:
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(found, name), tensor), name


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("size", [(28, 28), (13, 34)], ids=str)
@pytest.mark.parametrize("row", rows_here(), ids=row_name)
def test_every_row_of_the_table(row: tiles.Row, size: tuple[int, int]) -> None:
    check_tile(row, gpu(), size)


@pytest.mark.parametrize("size", [(28, 28), (13, 34)], ids=str)
@pytest.mark.parametrize("row", rows_here("fprop", "direct"), ids=row_name)
def test_every_row_of_the_table_packs_what_it_stores(row: tiles.Row, size: tuple[int, int]) -> None:
    check_bits(row, gpu(), size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layer", dict.fromkeys(SEED_LAYERS), ids=str)
def test_the_seed_networks_layers_with_many_images(layer, dtype: torch.dtype) -> None:
    torch.cuda.empty_cache()
    arithmetic = "tf32" if dtype == torch.float32 else "half"
    shape = (arithmetic, 32, layer.c, layer.size, layer.size, layer.k)
    calls = [*tiles.calls_of(layer.op, *shape), *tiles.calls_of(f"{layer.op}_backward", *shape)]
    for call in calls:
        check_call(call, tuning.choice_for(call, gpu()).tile, dtype, gpu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(8, 64, 56, 56), (3, 130, 13, 35), (2, 3, 224, 224)], ids=str)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_pooling_reads_every_layout(layout: str, shape, dtype: torch.dtype) -> None:
    n, c, h, w = shape
    given = torch.randn(shape).to(gpu(), dtype), torch.randn(n, c, h // 2, w // 2).to(gpu(), dtype)
    input, grad_output = map(LAYOUTS[layout], given)
    theirs = input.clone().requires_grad_()
    expected = F.max_pool2d(theirs, 2)
    expected.backward(grad_output)
    output, argmax = OPS.max_pool2x2(input, True)
    assert torch.equal(output, expected)
    assert torch.equal(OPS.max_pool2x2_backward(grad_output, argmax, h, w), theirs.grad)


# ------------------------------------------------------------------------ threads, streams, graphs


def test_a_thread_that_never_set_an_allocator() -> None:
    expected = results()
    found: list[Results] = []
    thread = threading.Thread(target=lambda: found.append(results()))
    thread.start()
    thread.join()
    same(found[0], expected)


def test_the_users_allocator_stays() -> None:
    calls = []

    def users(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        calls.append(size)
        return torch.empty(size, dtype=torch.int8, device="cuda")

    triton.set_allocator(users)
    results()
    assert not calls
    assert triton.runtime._allocation._allocator.get() is users


def test_a_cuda_graph_of_what_descriptors_load() -> None:
    arguments = random_arguments(OP, DESCRIBED, torch.bfloat16)
    for name, tensor in vars(arguments).items():
        setattr(arguments, name, tensor.to(gpu()))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        forward_backward(OP, arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = forward_backward(OP, arguments)
    with torch.no_grad():
        arguments.input.mul_(-0.5)
    junk = [torch.full((1 << 22,), torch.nan, device=gpu()) for _ in range(8)]
    graph.replay()
    torch.cuda.synchronize()
    del junk
    same(found, forward_backward(OP, arguments))


def test_the_current_stream_is_used_with_descriptors() -> None:
    expected = results()
    arguments = random_arguments(OP, DESCRIBED, torch.bfloat16)
    for name, tensor in vars(arguments).items():
        setattr(arguments, name, tensor.to(gpu()))
    source = arguments.input.clone()
    arguments.input.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # tens of milliseconds: another stream would see the zeros
        arguments.input.copy_(source)
        found = forward_backward(OP, arguments)
    stream.synchronize()
    same(found, expected)


# ------------------------------------------------------------------------------------------- tuning


def test_tuning_finds_a_tile_that_is_right(monkeypatch) -> None:
    monkeypatch.setenv("VGG_FAST_AUTOTUNE", "10")
    call = tiles.Call("fprop", "half", 16, 30, 31, 20, 40, True)
    tile = tuning.choice_for(call, gpu()).tile
    (row,) = tiles.read(tuning.cache_file(gpu()))
    assert row.tile == tile and row.origin.startswith("measured on")
    check_call(call, tile, torch.bfloat16, gpu())
