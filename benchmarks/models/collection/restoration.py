"""Denoising, super-resolution, edges, and descriptors of patches."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.models.architectures import restoration, style
from benchmarks.models.case import Case, Inputs, images
from benchmarks.models.collection import vgg
from benchmarks.models.weights import settle

SUPER_RESOLUTION = images((1, 3, 16, 16), (4, 3, 96, 96), low=0.0)

SOLD2 = {
    "backbone_cfg": {
        "input_channel": 1, "depth": 4, "num_stacks": 2, "num_blocks": 1, "num_classes": 5
    },
    "grid_size": 8,
    "use_descriptor": True,
}  # fmt: skip


def _kornia(name: str, inputs: Inputs, **options) -> Case:
    """``name``: a dotted path in kornia."""
    module, kind = name.rsplit(".", 1)
    training = options.pop("training", False)
    call, note = options.pop("call", None), options.pop("note", "")

    def build() -> nn.Module:
        import importlib

        return getattr(importlib.import_module(f"kornia.{module}"), kind)(**options)

    return Case(f"kornia.{kind}", "kornia", build, inputs, training=training, call=call, note=note)


def _style_transfer() -> nn.Module:
    content, picture = torch.rand(2, 1, 3, 64, 64)
    features = vgg.features("vgg19")
    settle(features, lambda: features(content))  # the targets come from its weights
    return style.StyleTransfer(features, content, picture)


CASES = [
    Case("pattern.dncnn", "torch", restoration.dncnn,
         images((1, 1, 40, 40), (2, 1, 256, 256)), training=True),
    Case("pattern.edsr_baseline", "torch", restoration.EDSR, SUPER_RESOLUTION),
    Case("pattern.msrresnet", "torch", restoration.MSRResNet, SUPER_RESOLUTION),
    Case("pattern.rrdbnet", "torch", restoration.RRDBNet, SUPER_RESOLUTION, note="3 blocks"),
    Case("pattern.discriminator", "torch", restoration.Discriminator,
         images((2, 3, 48, 48), (8, 3, 96, 96)), training=True, gradients="both",
         note="leaky ReLUs"),
    Case("pattern.transformer_net", "torch", style.TransformerNet,
         images((1, 3, 48, 48), (2, 3, 256, 256)), gradients="both",
         note="reflection padding, so no padding in the convolutions; instance normalisation"),
    Case("pattern.style_transfer", "torchvision", _style_transfer,
         images((1, 3, 64, 64), (1, 3, 64, 64), low=0.0), gradients="input", settled=False,
         note="losses between a convolution and its ReLU"),
    _kornia("feature.HardNet", images((4, 1, 32, 32), (512, 1, 32, 32)), pretrained=False,
            training=True),
    _kornia("feature.SOSNet", images((4, 1, 32, 32), (512, 1, 32, 32)), pretrained=False),
    _kornia("feature.HyNet", images((4, 1, 32, 32), (512, 1, 32, 32)), pretrained=False),
    _kornia("feature.KeyNet", images((1, 1, 48, 48), (4, 1, 256, 256), low=0.0),
            pretrained=False, note="5x5 convolutions: none is eligible"),
    _kornia("feature.sold2.backbones.SOLD2Net",
            images((1, 1, 64, 64), (2, 1, 256, 256), low=0.0), model_cfg=SOLD2),
    _kornia("filters.dexined.DexiNed", images((1, 3, 32, 32), (2, 3, 256, 256), low=0.0),
            pretrained=False),
]  # fmt: skip
