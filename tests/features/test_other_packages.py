"""The numbers of torchmetrics, piq, DISTS_pytorch and BasicSR, where the definitions agree.

Where they don't: piq's ContentLoss and StyleLoss add up channels where these take the mean, and
piq's Gram matrices aren't divided; torchmetrics' LPIPS has an ε of 1e-8 in the root, 1e-10 behind
it in lpips. Some take the maps in front of a ReLU that then works in place on them: there is no
telling which numbers they mean.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models.case import Case
from benchmarks.models.collection import CASES
from tests.support.features import with_gradient
from tests.support.numerics import relative_error
from vgg_fast import fuse
from vgg_fast.features import DISTS, LPIPS, ContentLoss, StyleLoss, VGGFeatures

pytestmark = pytest.mark.filterwarnings("ignore")  # other packages' use of what is deprecated


def built(name: str) -> tuple[Case, nn.Module]:
    """A case of the collection, and its model with random weights, frozen and in double.

    So that no ReLU flips between ours and theirs, whose mean and std may still be in single.
    """
    case = CASES[name]
    if case.missing():
        pytest.skip(str(case.missing()))
    model = case.model("small").requires_grad_(False)
    if hasattr(model, "set_dtype"):  # torchmetrics' metrics ignore double()
        model.set_dtype(torch.float64)
    model.double()
    for module in model.modules():
        if hasattr(module, "kernel"):  # piq's pooling keeps that of the first call
            module.kernel = None
    return case, model


def pair(case: Case) -> tuple[Tensor, Tensor]:
    input, target = (tensor.double() for tensor in case.draw("small"))
    return input, target


def assert_same(ours, theirs, input: Tensor, target: Tensor, factor: float = 1.0) -> None:
    value, gradient = with_gradient(theirs, input, target)
    found, gradient_found = with_gradient(ours, input, target)
    assert relative_error(found, factor * value.view_as(found)) < 1e-5
    assert relative_error(gradient_found, factor * gradient) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "lpips.vgg",
        "torchmetrics.LPIPS",
        "torchmetrics.LPIPS_network",
        "piq.LPIPS",
        "piq.LPIPS_average",
    ],
)
def test_lpips(name: str) -> None:
    case, model = built(name)
    ours = LPIPS.from_lpips(model)
    assert_same(ours, model, *pair(case))


@pytest.mark.parametrize("name", ["lpips.squeeze", "torchmetrics.LPIPS_squeeze", "piq.ContentLoss"])
def test_other_modules_are_no_lpips_of_a_vgg(name: str) -> None:
    with pytest.raises(ValueError, match=r"^LPIPS.from_lpips: "):
        LPIPS.from_lpips(built(name)[1])


def test_content_of_piq() -> None:
    case, model = built("piq.ContentLoss")
    ours = ContentLoss({"relu3_3": 256.0}, vgg_weights=model.model, dtype=torch.float64)
    assert_same(ours, model, *pair(case))


def test_style_of_piq() -> None:
    case, model = built("piq.StyleLoss")
    input, target = pair(case)
    height, width = input.shape[2:]
    for i, (tap, channels) in enumerate((("relu1_2", 64), ("relu2_2", 128), ("relu3_3", 256))):
        model.weights = [torch.tensor(float(i == j)) for j in range(3)]
        # Matrices that aren't divided by the map's elements; in piq a mean over the batch's.
        elements = channels * (height >> i) * (width >> i)
        ours = StyleLoss({tap: 1.0}, vgg_weights=model.model, dtype=torch.float64)
        assert_same(ours, model, input, target, factor=1 / elements**2)


def test_dists_of_piq() -> None:
    case, model = built("piq.DISTS")
    # What the package ships has a sum of one; in ours it has one in any case.
    total = sum(weight.double().sum() for weight in model.weights)
    model.weights = [weight.double() / total for weight in model.weights]
    alpha, beta = (torch.cat([w.flatten() for w in model.weights[i : i + 6]]) for i in (0, 6))
    ours = DISTS(
        dists_weights={"alpha": alpha, "beta": beta}, vgg_weights=model.model, dtype=torch.float64
    )
    assert_same(ours, model, *pair(case))


def test_dists_of_its_authors() -> None:
    case, model = built("DISTS_pytorch.DISTS")
    vgg = {
        key.split(".", 1)[1]: value
        for key, value in model.state_dict().items()
        if key.startswith("stage") and not key.endswith("filter")
    }
    weights = {"alpha": model.alpha, "beta": model.beta}
    ours = DISTS(dists_weights=weights, vgg_weights=vgg, dtype=torch.float64)
    assert_same(ours, lambda x, y: case.run(model, (x, y)), *pair(case))


def test_dists_weights_come_with_a_package() -> None:
    pytest.importorskip("DISTS_pytorch")
    ours = DISTS(vgg_weights=None)
    assert ours.alpha.shape == ours.beta.shape == (1475,)
    assert relative_error(ours.alpha.sum() + ours.beta.sum(), torch.tensor(1.0)) < 1e-6


def test_features_of_basicsr() -> None:
    case, model = built("basicsr.VGGFeatureExtractor")
    (images,) = (tensor.double() for tensor in case.draw("small"))
    layers = nn.Sequential(*model.vgg_net)  # by their indices
    ours = VGGFeatures("vgg19", model.wanted, weights=layers, dtype=torch.float64)

    def total(extractor: nn.Module):
        return lambda x: sum(map.square().mean() for map in extractor(x).values())

    found, expected = ours(images), model(images)
    assert list(found) == list(expected)
    assert all(relative_error(found[tap], map) < 1e-6 for tap, map in expected.items())
    value, gradient = with_gradient(total(model), images)
    value_found, gradient_found = with_gradient(total(ours), images)
    assert relative_error(value_found, value) < 1e-6
    assert relative_error(gradient_found, gradient) < 1e-5


# ------------------------------------------------------------------------------------------- fuse()


@pytest.mark.parametrize(
    "name",
    [
        "lpips.vgg",
        "piq.ContentLoss",
        "piq.LPIPS",
        "piq.StyleLoss",
        "torchmetrics.LPIPS_network",
        "basicsr.VGGFeatureExtractor",
    ],
)
def test_fused_and_frozen_their_input_gradients_stay(name: str) -> None:
    """In double, to 1e-9; tests/models/test_other_models.py asks the same in single."""
    case, model = built(name)
    inputs = tuple(tensor.double() for tensor in case.draw("small"))

    def total(model: nn.Module, *inputs: Tensor) -> Tensor:
        result = case.run(model, inputs)
        maps = result.values() if isinstance(result, dict) else (result,)
        return sum(map.square().sum() for map in maps)

    value, gradient = with_gradient(functools.partial(total, model), *inputs)
    fused = fuse(model)
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    found, gradient_found = with_gradient(functools.partial(total, fused), *inputs)
    assert relative_error(found, value) < 1e-9
    assert relative_error(gradient_found, gradient) < 1e-9
