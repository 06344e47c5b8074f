"""LPIPS: the numbers of the package lpips 0.1.4, and gradients where that has none."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models.weights import random_weights
from tests.support.features import with_gradient
from tests.support.numerics import relative_error
from vgg_fast.features import LPIPS, VGGFeatures
from vgg_fast.features.lpips import CHANNELS, TAPS
from vgg_fast.ops.distances import unit_distance

lpips = pytest.importorskip("lpips")
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:torchvision")


@functools.cache
def built(linear: bool) -> nn.Module:
    """With linear weights of the package's own, and a random network: nothing is downloaded.

    In double, where no ReLU flips by what comes of another order of sums.
    """
    with random_weights():  # without drawing those of a classifier that is thrown away
        module = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False, lpips=linear)
    return module.requires_grad_(False).double()


def reference(linear: bool = True, spatial: bool = False) -> nn.Module:
    module = copy.copy(built(linear))
    module.spatial = spatial
    return module


def vgg_of(module: nn.Module) -> dict[str, Tensor]:
    return {key.split(".", 1)[1]: value for key, value in module.net.state_dict().items()}


def pair() -> tuple[Tensor, Tensor]:
    input, target = 2 * torch.rand(2, 2, 3, 33, 35, dtype=torch.float64) - 1
    return input, target


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spatial", [False, True], ids=["mean", "spatial"])
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "baseline"])
def test_the_packages_numbers(linear: bool, spatial: bool, normalize: bool) -> None:
    module = reference(linear, spatial)
    ours = LPIPS(
        lpips=linear, spatial=spatial, normalize=normalize, reduction="none",
        vgg_weights=vgg_of(module), dtype=torch.float64,
    )  # fmt: skip
    input, target = pair()
    if normalize:
        input, target = (input + 1) / 2, (target + 1) / 2
    value, gradient = with_gradient(lambda x: module(x, target, normalize=normalize), input)
    found, gradient_found = with_gradient(ours, input, target)
    assert found.shape == ((2, 1, 33, 35) if spatial else (2,))
    assert relative_error(found.view_as(value), value) < 1e-5
    assert relative_error(gradient_found, gradient) < 1e-5
    assert relative_error(ours.float()(input.float(), target.float()), found) < 1e-5


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "baseline"])
def test_made_from_the_packages_module(linear: bool) -> None:
    module = reference(linear, spatial=True)
    ours = LPIPS.from_lpips(module)
    assert ours.spatial and (ours.linear is not None) == linear
    input, target = pair()
    assert relative_error(ours(input, target), module(input, target).mean()) < 1e-5
    assert ours.features.first_weight is not module.net.slice1[0].weight


def test_reductions_of_a_map() -> None:
    ours = LPIPS.from_lpips(reference(spatial=True), reduction="none")
    input, target = pair()
    map = ours(input, target)
    ours.reduction = "mean"
    assert relative_error(ours(input, target), map.mean()) < 1e-6


def test_linear_weights_in_every_form(tmp_path) -> None:
    module = reference()
    vgg = vgg_of(module)
    expected = [lin.model[-1].weight.flatten() for lin in module.lins]
    state = {f"lin{i}.model.1.weight": w.view(1, -1, 1, 1) for i, w in enumerate(expected)}
    torch.save(state, tmp_path / "vgg.pth")
    for given in (None, state, expected, tmp_path / "vgg.pth", str(tmp_path / "vgg.pth")):
        ours = LPIPS(vgg_weights=vgg, linear_weights=given)
        for weight, value in zip(ours.linear, expected, strict=True):
            assert torch.equal(weight, value.float()) and not weight.requires_grad


def test_the_state_dict_is_whole() -> None:
    trained = LPIPS.from_lpips(reference())
    linear = [torch.zeros(c) for c in CHANNELS]
    ours = LPIPS(vgg_weights=None, linear_weights=linear, dtype=torch.float64)
    ours.load_state_dict(trained.state_dict())
    input, target = pair()
    assert torch.equal(ours(input, target), trained(input, target))


def test_learned_weights_get_gradients() -> None:
    ours = LPIPS.from_lpips(reference())
    ours.linear.requires_grad_()
    ours(*pair()).backward()
    assert all(weight.grad.abs().max() > 0 for weight in ours.linear)


def test_features_that_are_shared() -> None:
    module = reference()
    features = VGGFeatures("vgg16", ["conv3_1", *TAPS], weights=vgg_of(module), input_range=(-1, 1))
    features.double()
    input, target = pair()
    found = LPIPS(features=features)(input, target)
    assert relative_error(found, module(input, target).mean()) < 1e-5


# --------------------------------------------------------------------------------- pixels of zeros


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "baseline"])
def test_pixels_without_features_get_no_gradient(linear: bool) -> None:
    weight = torch.rand(8) if linear else None
    x, y = torch.rand(2, 2, 8, 4, 5)
    x[..., 0], y[..., :2] = 0, 0
    map, gradient = with_gradient(lambda x: unit_distance(x, y, weight), x)
    assert map.shape == (2, 1, 4, 5) and not map[..., 0].any() and map[..., 1].all()
    assert gradient.isfinite().all() and not gradient[..., 0].any() and gradient[..., 2].any()


def test_the_distance_is_the_packages() -> None:
    weight = torch.rand(8)
    x, y = torch.rand(2, 2, 8, 4, 5)

    def packages(x: Tensor) -> Tensor:
        squares = (lpips.normalize_tensor(x) - lpips.normalize_tensor(y)).square()
        return (squares * weight.view(-1, 1, 1)).sum(1, keepdim=True)

    for scale in (1e-6, 1.0, 1e6):
        value, gradient = with_gradient(packages, scale * x)
        found, gradient_found = with_gradient(lambda x: unit_distance(x, y, weight), scale * x)
        assert relative_error(found, value) < 1e-4 if scale < 1 else 1e-5
        assert relative_error(gradient_found, gradient) < 1e-4
