"""Saves a fused network for C++ programs, and prints what it makes of some images.

    python save.py FOLDER [cpu|cuda]

Writes FOLDER/network.pt (TorchScript), network.pt2 (AOTInductor) and images.pt (a tensor), and
prints a line of logits for each image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import vgg_fast


def save(net: vgg_fast.VGG, images: Tensor, folder: Path) -> None:
    """``net`` and ``images`` are on the device that the C++ program will run them on."""
    torch.jit.script(net).save(str(folder / "network.pt"))
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(net, (images,), dynamic_shapes=({0: batch},))
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "network.pt2"))
    torch.save(images.cpu(), folder / "images.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("device", nargs="?", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    net = vgg_fast.VGG(
        ((1, 16), (1, 32), (2, 64)), in_channels=3, image_size=32, classifier_width=64
    ).eval()
    net = net.to(arguments.device, memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32).to(arguments.device)
    with torch.no_grad():
        save(net, images, arguments.folder)
        for row in net(images).tolist():
            print(*(f"{logit:.9g}" for logit in row))


if __name__ == "__main__":
    main()
