"""Detectors and readers of text."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from benchmarks.models.architectures.text import CRAFT, CRNN
from benchmarks.models.case import Case, images
from benchmarks.models.collection import vgg

LINE = images((2, 1, 32, 64), (8, 1, 32, 256))
PAGE = images((1, 3, 64, 64), (1, 3, 256, 256))


def _easyocr_craft() -> nn.Module:
    from easyocr.craft import CRAFT

    return CRAFT()


def _easyocr_reader() -> nn.Module:
    from easyocr.model.vgg_model import Model

    return Model(input_channel=1, output_channel=256, hidden_size=256, num_class=97)


def _doctr(kind: str, name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import doctr.models

        return getattr(getattr(doctr.models, kind), name)(
            pretrained=False, pretrained_backbone=False
        )

    return build


CASES = [
    Case("pattern.craft", "torchvision", lambda: CRAFT(vgg.features("vgg16_bn")), PAGE,
         note="slices that end behind a normalisation, and begin with a ReLU in place"),
    Case("pattern.crnn", "torch", CRNN, LINE, training=True, note="flat poolings"),
    Case("easyocr.CRAFT", "easyocr", _easyocr_craft, PAGE,
         note="the same, from the package"),
    Case("easyocr.VGGReader", "easyocr", _easyocr_reader, images((2, 1, 64, 64), (8, 1, 64, 256)),
         call=lambda model, line: model(line, "")),
    Case("doctr.crnn_vgg16_bn", "doctr", _doctr("recognition", "crnn_vgg16_bn"),
         images((2, 3, 32, 64), (8, 3, 32, 128)),
         call=lambda model, line: model(line, return_model_output=True)["out_map"]),
    Case("doctr.db_resnet34", "doctr", _doctr("detection", "db_resnet34"),
         images((1, 3, 64, 64), (1, 3, 512, 512)),
         call=lambda model, page: model(page, return_model_output=True)["out_map"]),
]  # fmt: skip
