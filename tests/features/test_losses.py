"""The losses on features: their numbers, targets that are kept, and what torch does with them."""

from __future__ import annotations

import copy
import functools
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.support.features import torchvisions, with_gradient
from tests.support.numerics import relative_error
from vgg_fast.features import DISTS, LPIPS, ContentLoss, StyleLoss, VGGFeatures, gram_matrix

CONTENT = {"relu1_2": 0.5, "conv2_1": 2.0}
STYLE = {"relu1_1": 1e3, "relu2_1": 2e3}


@functools.cache
def vgg16() -> torch.nn.Sequential:
    return torchvisions("vgg16")


def content(**options) -> ContentLoss:
    return ContentLoss(CONTENT, vgg_weights=vgg16(), **options)


def style(**options) -> StyleLoss:
    return StyleLoss(STYLE, vgg_weights=vgg16(), **options)


def lpips(**options) -> LPIPS:
    linear = [torch.rand(c) / c for c in (64, 128, 256, 512, 512)]
    return LPIPS(normalize=True, linear_weights=linear, vgg_weights=vgg16(), **options)


def dists(**options) -> DISTS:
    weights = {"alpha": torch.rand(1475), "beta": torch.rand(1475)}
    return DISTS(dists_weights=weights, vgg_weights=vgg16(), **options)


LOSSES = {loss.__name__: loss for loss in (content, style, lpips, dists)}
losses = pytest.mark.parametrize("build", LOSSES.values(), ids=LOSSES)


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    input, target = torch.rand(2, *(shape or (2, 3, 21, 26)))
    return input, target


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_content_loss(distance: str) -> None:
    input, target = pair()
    loss = content(distance=distance)
    x, y = loss.features(input), loss.features(target)
    torchs = {"l1": F.l1_loss, "l2": F.mse_loss}[distance]
    expected = sum(weight * torchs(x[tap], y[tap]) for tap, weight in CONTENT.items())
    assert relative_error(loss(input, target), expected) < 1e-6


def test_content_loss_of_a_function() -> None:
    def charbonnier(x: Tensor, y: Tensor) -> Tensor:
        return ((x - y).square() + 1e-6).sqrt().mean((1, 2, 3))

    input, target = pair()
    loss = content(distance=charbonnier)
    x, y = loss.features(input), loss.features(target)
    expected = sum(weight * charbonnier(x[t], y[t]) for t, weight in CONTENT.items()).mean()
    assert torch.equal(loss(input, target), expected)


def test_style_loss() -> None:
    input, target = pair()
    loss = style()
    x, y = loss.features(input), loss.features(target)
    expected = sum(w * F.mse_loss(gram_matrix(x[t]), gram_matrix(y[t])) for t, w in STYLE.items())
    assert relative_error(loss(input, target), expected) < 1e-6
    larger = torch.rand(1, 3, 40, 23)
    assert loss(input, larger).isfinite()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gram_matrix(dtype: torch.dtype, format: torch.memory_format) -> None:
    map = (100 * torch.randn(2, 6, 7, 5)).to(dtype).contiguous(memory_format=format)
    with torch.autocast("cpu", torch.bfloat16):
        found = gram_matrix(map)
    rows = map.double().flatten(2)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative_error(found, rows @ rows.mT / (6 * 7 * 5)) < 1e-6


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_squares_of_fp16_stay_finite(distance: str) -> None:
    for loss in (content(distance=distance), style()):
        loss.half()
        with torch.no_grad():
            loss.features.features[0].weight.mul_(200)
        input, target = (images.half() for images in pair())
        assert max(map.max() for map in loss.features(input).values()) > 300
        assert loss(input, target).isfinite()


@losses
def test_reductions(build) -> None:
    input, target = pair()
    loss = build(reduction="none")
    each = loss(input, target)
    assert each.shape == (2,)
    for reduction in ("mean", "sum"):
        loss.reduction = reduction
        assert relative_error(loss(input, target), getattr(each, reduction)()) < 1e-6


@losses
def test_equal_images_have_loss_0_and_gradient_0(build) -> None:
    input = pair()[0]
    input[0, :, :12] = 0  # where a network without biases has no features at all
    loss = build()
    value, gradient = with_gradient(loss, input, input)
    assert value == 0 and not gradient.any()


@losses
def test_black_images(build) -> None:
    loss = build()
    with torch.no_grad():
        for parameter in loss.features.parameters():
            if parameter.dim() == 1:
                parameter.fill_(-10)  # so that every feature is zero
    input, target = pair()
    for y in (target, torch.zeros_like(target)):
        value, gradient = with_gradient(loss, input, y)
        assert value.isfinite() and gradient.isfinite().all()


# ------------------------------------------------------------------------------- targets, features


@losses
@pytest.mark.parametrize("count", [1, 2])
def test_a_kept_target(build, count: int) -> None:
    input, target = pair()
    target = target[:count]
    loss = build()
    kept = loss.target(target.clone().requires_grad_())
    assert not any(tensor.requires_grad for tensor in kept.of_taps.values())
    value, gradient = with_gradient(loss, input, target)
    for _ in range(2):
        again, gradient_again = with_gradient(loss, input, kept)
        assert torch.equal(again, value) and torch.equal(gradient_again, gradient)
    if count == 1:
        whole = loss(input, target.expand_as(input))
        assert relative_error(value, whole) < 1e-5


@losses
def test_the_target_gets_no_gradient(build) -> None:
    input, target = (images.requires_grad_() for images in pair())
    build()(input, target).backward()
    assert input.grad.abs().max() > 0 and target.grad is None


def test_losses_share_features() -> None:
    features = VGGFeatures("vgg16", [*STYLE, *CONTENT], weights=vgg16())
    input, target = pair()
    for shared, own in (
        (ContentLoss(CONTENT, features=features), content()),
        (StyleLoss(STYLE, features=features), style()),
    ):
        assert shared.features is features
        assert relative_error(shared(input, target), own(input, target)) < 1e-5


def test_options_are_those_of_the_features() -> None:
    loss = content(input_range=(0, 255), pooling="average", dtype=torch.float64)
    assert loss.features.input_range == (0, 255) and loss.features.pooling == "average"
    assert loss.features.first_weight.dtype == torch.float64


# ------------------------------------------------------------------------------------ torch's tools


@losses
def test_copies_compute_the_same(build) -> None:
    input, target = pair()
    loss = build()
    expected = loss(input, target)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(copied(input, target), expected)
        assert torch.equal(copied(input, loss.target(target)), expected)


@losses
def test_compiled_in_one_graph(build) -> None:
    torch.compiler.reset()  # all losses have the same forward
    input, target = pair(1, 3, 16, 20)
    loss = build()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for y in (target, loss.target(target)):
        value, gradient = with_gradient(loss, input, y)
        found, gradient_found = with_gradient(compiled, input, y)
        assert relative_error(found, value) < 1e-5
        assert relative_error(gradient_found, gradient) < 1e-4


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    torch.compiler.reset()
    input, target = pair(1, 3, 16, 20)
    loss = StyleLoss({"relu1_1": 1.0}, vgg_weights=vgg16())
    value, gradient = with_gradient(loss, input, target)
    found, gradient_found = with_gradient(torch.compile(loss, fullgraph=True), input, target)
    assert relative_error(found, value) < 1e-5
    assert relative_error(gradient_found, gradient) < 1e-4


@losses
def test_exported(build) -> None:
    input, target = pair()
    loss = build()
    program = torch.export.export(loss, (input, target))
    assert relative_error(program.module()(input, target), loss(input, target)) < 1e-6


@losses
def test_checkpointed(build) -> None:
    input, target = pair()
    loss = build()
    value, gradient = with_gradient(loss, input, target)
    found, gradient_found = with_gradient(
        lambda x: checkpoint(loss, x, target, use_reentrant=False), input
    )
    assert torch.equal(found, value) and torch.equal(gradient_found, gradient)


@losses
def test_autocast(build) -> None:
    input, target = pair()
    loss = build()
    value = loss(input, target)
    with torch.autocast("cpu", torch.bfloat16):
        found, gradient_found = with_gradient(loss, input, target)
    assert found.dtype == torch.float32  # whatever the maps have
    assert relative_error(found, value) < 0.05
    assert gradient_found.dtype == torch.float32 and gradient_found.isfinite().all()


@losses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(build, dtype: torch.dtype) -> None:
    input, target = pair()
    loss = build()
    expected = loss(input, target)
    found, gradient = with_gradient(loss.to(dtype), input.to(dtype), target.to(dtype))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative_error(found, expected) < (1e-5 if dtype == torch.float64 else 0.05)
    assert gradient.dtype == dtype and gradient.isfinite().all()


# ------------------------------------------------------------------------------------ maps at hand


def test_losses_that_share_maps() -> None:
    features = VGGFeatures("vgg11", ["relu1_1", "pool1", "relu2_1"], weights=None)
    content = ContentLoss({"relu2_1": 1.0}, features=features)
    style = StyleLoss({"pool1": 2.0, "relu1_1": 1.0}, features=features)
    images, target = torch.rand(2, 2, 3, 16, 16)
    maps, of_target = features(images), features(target)
    for loss in (content, style):
        expected = loss(images, target)
        torch.testing.assert_close(loss(maps, of_target), expected)
        torch.testing.assert_close(loss(maps, target), expected)
        torch.testing.assert_close(loss(images, loss.target(of_target)), expected)
    del maps["relu2_1"]
    with pytest.raises(ValueError, match="no relu2_1 among the taps of the maps"):
        content(maps, target)


def test_no_more_than_one_tap_is_there_at_a_time() -> None:
    """What is held while the network computes on: the slopes, and no map."""
    features = VGGFeatures("vgg11", ["relu1_1", "relu2_1", "relu3_1"], weights=None)
    images = torch.rand(1, 3, 16, 16)
    alive: list[weakref.ref] = []
    for _, map in features.iterate(images):
        assert all(earlier() is None for earlier in alive)
        alive.append(weakref.ref(map))
        del map
    assert len(alive) == 3


def test_a_target_of_another_dtype() -> None:
    """Kept without autocast, and compared under it."""
    features = VGGFeatures("vgg11", ["relu1_1", "relu2_1"], weights=None)
    images, target = torch.rand(2, 2, 3, 16, 16)
    for distance in ("l1", "l2"):
        loss = ContentLoss({"relu1_1": 1.0, "relu2_1": 1.0}, distance, features=features)
        expected, kept = loss(images, target), loss.target(target)
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(images.requires_grad_(), kept)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
        assert torch.autograd.grad(found, images)[0].any()
        images = images.detach()
