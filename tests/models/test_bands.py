"""Two convolutions and a pooling in bands: the same numbers, without the map between them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import vgg_fast
from tests.support.numerics import relative_error
from vgg_fast import cpu
from vgg_fast.features import VGGFeatures
from vgg_fast.layers import bands


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of 8 rows and more, so that small images have several."""
    monkeypatch.setattr(bands, "BAND_BYTES", 4096)
    monkeypatch.setattr(bands, "FEWEST_ROWS", 8)
    # Which sums a pixel in the same way whatever lies around it: so bits can be compared.
    with cpu.use("direct"):
        yield


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what is computed in bands."""
    shapes: list[tuple[int, ...]] = []
    run = bands.block

    def counted(images: Tensor, *layers: bands.Layer) -> Tensor:
        shapes.append(tuple(images.shape))
        return run(images, *layers)

    monkeypatch.setattr(bands, "block", counted)
    return shapes


def network(channels: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ).requires_grad_(False)


def value_and_gradient(model, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.detach().requires_grad_()
    found = model(images)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    return found.detach(), torch.autograd.grad(found, images, direction.to(found.dtype))[0]


@pytest.mark.parametrize("size", [(40, 33), (41, 16), (8, 64), (64, 9), (37, 37)], ids=str)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_bands_change_nothing(size, count, dtype, channels_last, blocks) -> None:
    model = network().to(dtype)
    images = torch.randn(count, 3, *size).to(dtype)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    fused = vgg_fast.fuse(copy.deepcopy(model))
    found, gradient = value_and_gradient(fused, images)
    assert blocks == [images.shape]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "BAND_BYTES", 1 << 40)
        expected, wanted = value_and_gradient(fused, images)
        assert len(blocks) == 1
    assert torch.equal(found, expected) and found.stride() == expected.stride()
    assert torch.equal(gradient, wanted) and gradient.stride() == wanted.stride()
    with torch.no_grad():
        assert torch.equal(fused(images), expected)
    if dtype != torch.bfloat16:
        plain, of_plain = value_and_gradient(model, images)
        assert relative_error(found, plain) < 2e-6 and relative_error(gradient, of_plain) < 2e-5


def test_features_in_bands(blocks) -> None:
    features = VGGFeatures("vgg16_bn", ["pool1", "relu2_2", "pool3"], weights=None)
    images = torch.rand(2, 3, 40, 48)
    found = features(images)
    assert [shape[1] for shape in blocks] == [3, 256]  # of block 2 somebody wants the map
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "BAND_BYTES", 1 << 40)
        expected = features(images)
    for tap, map in expected.items():
        assert torch.equal(found[tap], map)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[2].requires_grad_(True),
        lambda model: model[1].register_forward_hook(lambda *_: None),
        lambda model: setattr(model[4], "ceil_mode", True),
        lambda model: setattr(model[0], "padding", 0),
    ],
    ids=["a weight that trains", "a hook", "ceil_mode", "another padding"],
)
def test_whatever_isnt_served_runs_layer_by_layer(change, blocks) -> None:
    model = network()
    fused = vgg_fast.fuse(copy.deepcopy(model))
    change(model), change(fused)
    images = torch.randn(1, 3, 41, 33)
    torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=1e-5)
    assert not blocks


def test_neither_a_compiler_nor_a_transform_meets_bands(blocks) -> None:
    fused = vgg_fast.fuse(network())
    images = torch.randn(1, 3, 40, 33)
    expected = fused(images)
    assert blocks.pop()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), expected)
    torch.func.grad(lambda images: fused(images).sum())(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(images).dtype == torch.bfloat16
    assert not blocks


def test_a_second_derivative_goes_through() -> None:
    fused = vgg_fast.fuse(network().double())
    images = torch.randn(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(fused(images).square().sum(), images, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "BAND_BYTES", 1 << 40)
        (gradient,) = torch.autograd.grad(fused(images).square().sum(), images, create_graph=True)
        (expected,) = torch.autograd.grad(gradient.square().sum(), images)
    assert relative_error(second, expected) < 1e-12


def test_bits_are_kept_and_no_map(blocks) -> None:
    fused = vgg_fast.fuse(network())
    images = torch.randn(1, 3, 40, 32, requires_grad=True)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        fused(images)
    weights = {parameter.data_ptr() for parameter in fused.parameters()}
    bytes = sum(tensor.nbytes for tensor in kept if tensor.data_ptr() not in weights)
    # A bit for each value of 8 channels; of 16 channels three for each window.
    assert blocks and bytes == 40 * 32 * 1 + 20 * 16 * 3 * 2


@pytest.mark.parametrize(("images", "height", "rows"), [(1, 41, 8), (5, 8, 16), (3, 24, 8)])
def test_every_row_is_taken_once(images: int, height: int, rows: int, monkeypatch) -> None:
    monkeypatch.setattr(bands, "FEWEST_ROWS", rows)
    taken = torch.zeros(images, height, dtype=torch.int)
    for band in bands.bands(images, height, 1 << 20):
        taken[band.images, band.taken] += 1
        assert band.computed.start % 2 == 0 and band.taken.start % 2 == 0
        for edge, seam in ((0, band.computed.start), (height, band.computed.stop)):
            inner = band.taken.start if edge == 0 else band.taken.stop
            assert seam == edge or abs(seam - inner) == bands.OVERLAP
    assert (taken == 1).all()
