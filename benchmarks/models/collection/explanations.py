"""Captum's attributions, whose methods hook the layers that they find in the model."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.models.case import Case, images
from benchmarks.models.collection import vgg

INPUTS = images((1, 3, 32, 32), (2, 3, 224, 224))


class Classifier(nn.Module):
    """A VGG with one linear layer, whose ReLUs don't work in place, as Captum asks."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.features = vgg.features(name, inplace=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def grad_cam(model: Classifier, x: Tensor) -> Tensor:
    from captum.attr import LayerGradCam

    return LayerGradCam(model, model.features[10]).attribute(x, target=3)


def guided_backprop(model: Classifier, x: Tensor) -> Tensor:
    from captum.attr import GuidedBackprop

    return GuidedBackprop(model).attribute(x, target=3)


def deep_lift(model: Classifier, x: Tensor) -> Tensor:
    from captum.attr import DeepLift

    return DeepLift(model).attribute(x, baselines=x * 0, target=3)


def layer_activation(model: Classifier, x: Tensor) -> Tensor:
    from captum.attr import LayerActivation

    return LayerActivation(model, model.features[3]).attribute(x)


def integrated_gradients(model: Classifier, x: Tensor) -> Tensor:
    from captum.attr import IntegratedGradients

    return IntegratedGradients(model).attribute(x, target=3, n_steps=4)


def _case(name: str, call, network: str = "vgg11", note: str = "") -> Case:
    return Case(
        f"captum.{name}", "captum", lambda: Classifier(network), INPUTS, gradients="own",
        call=call, note=note,
    )  # fmt: skip


CASES = [
    _case("LayerGradCam", grad_cam, note="hooks a convolution"),
    _case("LayerGradCam_bn", grad_cam, "vgg11_bn"),
    _case("GuidedBackprop", guided_backprop, note="hooks every nn.ReLU"),
    _case("DeepLift", deep_lift, note="hooks every ReLU and pooling"),
    _case("LayerActivation", layer_activation, note="of a convolution"),
    _case("IntegratedGradients", integrated_gradients),
]
