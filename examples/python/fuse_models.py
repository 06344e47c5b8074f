"""Models of torchvision and timm, fused: what is replaced, how far results differ, and the time.

    python examples/python/fuse_models.py
    python examples/python/fuse_models.py --models torchvision/vgg19 timm/resnet50 --size 224

Weights are random: trained ones take as long, and nothing has to be downloaded.
"""

from __future__ import annotations

import statistics
import time

import timm
import torch
import torchvision
import tyro
from torch import Tensor, nn

import vgg_fast


def create(name: str) -> nn.Module:
    """The model that "package/model" names."""
    package, _, name = name.partition("/")
    model = timm.create_model(name) if package == "timm" else torchvision.models.get_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # zeros behind a block would hide its convolutions
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return model


def milliseconds(model: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


@torch.inference_mode()
def main(
    models: tuple[str, ...] = ("torchvision/vgg16", "torchvision/resnet18", "timm/resnet34"),
    size: int = 128,
    batch: int = 1,
    rounds: int = 10,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Compare models with what ``vgg_fast.fuse`` makes of them.

    Args:
        models: package/model, of torchvision and timm.
        size: pixels of an image's side.
        batch: images in one call.
        rounds: calls of each that are timed.
        device: cpu, cuda or cuda:N.
    """
    images = torch.rand(batch, 3, size, size, device=device)
    for name in models:
        model = create(name).eval().to(device)
        fused, report = vgg_fast.fuse(model, return_report=True)  # a copy, with the same tensors

        expected, found = model(images), fused(images)
        error = ((found - expected).norm() / expected.norm()).item()
        assert error < 1e-3, f"{name}: relative error {error:.1e}"

        # In turns, so that whatever else the machine does meets both.
        times = [(milliseconds(model, images), milliseconds(fused, images)) for _ in range(rounds)]
        before, after = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{name}: {len(report.changed)} layers replaced, {len(report.left)} left, "
            f"relative error {error:.1e}, {before:.1f} ms -> {after:.1f} ms"
        )


if __name__ == "__main__":
    tyro.cli(main)
