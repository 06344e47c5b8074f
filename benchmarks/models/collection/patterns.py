"""What people write around a VGG, and small networks that nobody takes from a package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.case import Case, images
from benchmarks.models.collection import vgg

# A map of 2x1 is the last: of a single pixel, no format could be told from another.
VGG_INPUTS = images((1, 3, 64, 48), (4, 3, 224, 224))
SMALL_INPUTS = images((2, 3, 32, 32), (64, 3, 32, 32))


class Taps(nn.Module):
    """Loops over the layers by name and keeps some: the tensors themselves, not clones."""

    def __init__(self, features: nn.Sequential, kept: tuple[str, ...]) -> None:
        super().__init__()
        self.features, self.kept = features, kept

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for name, layer in self.features._modules.items():
            x = layer(x)
            if name in self.kept:
                found.append(x)
        return found


class EnumeratedTaps(Taps):
    """The same by ``enumerate``, which stops early and returns a dict."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if str(i) in self.kept:
                found[f"layer{i}"] = x
            if i == int(self.kept[-1]):
                break
        return found


class ListedLayers(nn.Module):
    """The layers in a ModuleList; a clone before each ReLU."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(features)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                found.append(x.mean((2, 3)))
            x = layer(x)
        return (*found, x)


class SlicedTwice(nn.Module):
    """A whole Sequential, and a prefix of it that shares its layers."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.whole, self.prefix = features, features[:3]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole(x), self.prefix(x)


class FunctionalNet(nn.Module):
    """Layers as attributes, activations and poolings as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 2)
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((-2, -1)))


class LeNet(nn.Module):
    """``view`` behind the last pooling, which needs a contiguous tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class ConvBlock(nn.Sequential):
    """Convolution, normalisation, ReLU: a Sequential of a name of its own."""

    def __init__(self, inputs: int, outputs: int, normalised: bool = True) -> None:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=not normalised)]
        layers += [nn.BatchNorm2d(outputs)] * normalised + [nn.ReLU(inplace=True)]
        super().__init__(*layers)


class ReusedReLU(nn.Module):
    """One ReLU object for all layers; the sum keeps a tensor from before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        return self.relu(self.conv2(self.relu(first))) + first


class SharedLayer(nn.Module):
    """One convolution that runs three times, as in recurrent networks and feature pyramids."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.conv = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.body = nn.Sequential(self.conv, nn.ReLU(), self.conv, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.body(F.relu(self.head(x))))


class Hooked(nn.Module):
    """Hooks, registered when the model is made, keep the features."""

    def __init__(self, features: nn.Sequential, kept: tuple[int, ...]) -> None:
        super().__init__()
        self.features, self.found = features, {}
        self.kept = kept
        for i in kept:
            features[i].register_forward_hook(self.keep)

    def keep(self, layer: nn.Module, args: tuple, output: Tensor) -> None:
        self.found[len(self.found)] = output

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        self.found.clear()
        self.features(x)
        return dict(self.found)


def hooked_afterwards(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Hooks on layers that are looked up in the model as it is when it runs."""
    found: list[Tensor] = []
    handles = [
        model[i].register_forward_hook(lambda layer, args, output: found.append(output.clone()))
        for i in (0, 3, 4, 8)
    ]
    try:
        found.append(model(x))
    finally:
        for handle in handles:
            handle.remove()
    return found


def by_index(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Parts of the model that are cut out when it runs: before a ReLU, behind it, behind a pool."""
    return [model[:1](x), model[:2](x), model[:5](x), model[5:7](model[:5](x)), model[7:](x[:, :1]
            .expand(-1, 128, -1, -1))]  # fmt: skip


def plain_loop(model: nn.Sequential, x: Tensor) -> Tensor:
    """What is added is what the layer before the ReLU gave."""
    total = x.new_zeros(())
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            total = total + x.square().mean()
    return total


def _small_vgg(convolution=nn.Conv2d, **options) -> nn.Sequential:
    return nn.Sequential(
        convolution(3, 32, 3, padding=1, **options), nn.ReLU(),
        convolution(32, 32, 3, padding=1, **options), nn.ReLU(), nn.MaxPool2d(2),
        convolution(32, 64, 3, padding=1, **options), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 10),
    )  # fmt: skip


def _normed(norm) -> nn.Sequential:
    model = _small_vgg()
    for i in (0, 2, 5):
        model[i] = norm(model[i])
    return model


def _frozen(model: nn.Sequential, layers: int) -> nn.Sequential:
    model[:layers].requires_grad_(False)
    return model


def _layer_getter() -> nn.Module:
    from torchvision.models._utils import IntermediateLayerGetter

    return IntermediateLayerGetter(vgg.features()[:24], {"3": "a", "9": "b", "14": "c", "22": "d"})


def _feature_extractor(name: str, nodes: list[str]) -> nn.Module:
    import torchvision
    from torchvision.models.feature_extraction import create_feature_extractor

    model = getattr(torchvision.models, name)(weights=None)
    return create_feature_extractor(model.eval(), nodes)


def _vgg_case(name: str, build, **rest) -> Case:
    return Case(f"pattern.{name}", "torchvision", build, VGG_INPUTS, **rest)


def _small_case(name: str, build, inputs=SMALL_INPUTS, **rest) -> Case:
    return Case(f"pattern.{name}", "torch", build, inputs, **rest)


CASES = [
    _vgg_case("vgg16_features", vgg.features),
    _vgg_case("vgg16_bn_features", lambda: vgg.features("vgg16_bn"), training=True),
    _vgg_case("prefix_behind_relu", lambda: vgg.features()[:23], gradients="input"),
    _vgg_case("prefix_before_relu", lambda: vgg.features("vgg19")[:35], gradients="input",
              note="vgg19 up to conv5_4, as ESRGAN's loss takes it"),
    _vgg_case("prefix_of_children", lambda: nn.Sequential(*list(vgg.features().children())[:-1]),
              gradients="input"),
    _vgg_case("taps_behind_relu", lambda: Taps(vgg.features(), ("3", "8", "15", "22")),
              gradients="input"),
    _vgg_case("taps_before_relu", lambda: Taps(vgg.features(), ("2", "7", "14", "21")),
              gradients="input", note="the ReLU works in place on what was kept"),
    _vgg_case("taps_before_relu_not_in_place", lambda: Taps(
        vgg.features(inplace=False)[:15], ("0", "2", "7", "14")),
        gradients="both"),
    _vgg_case("taps_behind_pool", lambda: EnumeratedTaps(vgg.features(), ("4", "9", "16")),
              gradients="input"),
    _vgg_case("taps_of_bn", lambda: EnumeratedTaps(
        vgg.features("vgg16_bn"), ("0", "1", "2", "5", "12", "22")), training=True,
        note="behind a convolution, a normalisation, a ReLU"),
    _vgg_case("module_list", lambda: ListedLayers(vgg.features()[:17]), gradients="both"),
    _vgg_case("sliced_twice", lambda: SlicedTwice(vgg.features()[:10]), gradients="both"),
    _vgg_case("layer_getter", _layer_getter, gradients="input"),
    _vgg_case("feature_extractor_vgg16", lambda: _feature_extractor(
        "vgg16", ["features.3", "features.8", "features.14", "features.22"]), gradients="input",
        note="torch.fx's GraphModule"),
    _vgg_case("feature_extractor_resnet18", lambda: _feature_extractor(
        "resnet18", ["layer1", "layer2.0.relu", "layer4"])),
    _vgg_case("hooks", lambda: Hooked(vgg.features()[:17], (3, 8, 15)), gradients="input"),
    _vgg_case("hooks_before_relu", lambda: Hooked(vgg.features()[:17], (2, 7, 14)),
              gradients="input"),
    _vgg_case("hooks_afterwards", lambda: vgg.features()[:10], call=hooked_afterwards,
              gradients="input"),
    _vgg_case("parts_by_index", lambda: vgg.features()[:9], call=by_index, gradients="both"),
    _vgg_case("loop_by_type", lambda: vgg.features(inplace=False)[:17], call=plain_loop,
              gradients="input",
              note="a loop that asks for nn.Conv2d"),
    _small_case("functional", FunctionalNet, training=True),
    _small_case("lenet_view", LeNet, images((4, 1, 28, 28), (64, 1, 28, 28)), training=True),
    _small_case("conv_blocks", lambda: nn.Sequential(
        ConvBlock(3, 32), ConvBlock(32, 32), nn.MaxPool2d(2), ConvBlock(32, 64, False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), training=True),
    _small_case("reused_relu", ReusedReLU, gradients="both"),
    _small_case("shared_layer", SharedLayer, gradients="both"),
    _small_case("weight_norm", lambda: _normed(nn.utils.parametrizations.weight_norm),
                training=True),
    _small_case("old_weight_norm", lambda: _normed(torch.nn.utils.weight_norm), training=True),
    _small_case("spectral_norm", lambda: _normed(nn.utils.parametrizations.spectral_norm),
                training=True, note="a step of power iteration at each call in train mode"),
    _small_case("no_bias", lambda: _small_vgg(bias=False), gradients="both"),
    _small_case("reflect_padding", lambda: _small_vgg(padding_mode="reflect"), gradients="both"),
    _small_case("dropout", lambda: nn.Sequential(
        *_small_vgg()[:5], nn.Dropout2d(0.2), *_small_vgg()[5:7], nn.Dropout(0.5),
        nn.Conv2d(64, 10, 3, padding=1)), training=True),
    _small_case("leaky", lambda: nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1), nn.LeakyReLU(0.1), nn.Conv2d(32, 32, 3, 1, 1), nn.GELU(),
        nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU6(), nn.Conv2d(32, 8, 3, 1, 1), nn.Sigmoid())),
    _small_case("frozen_stem", lambda: _frozen(_small_vgg(), 3)),
    _small_case("channels_last", lambda: _small_vgg().to(memory_format=torch.channels_last),
                note="the model is channels_last, its images aren't"),
]  # fmt: skip
