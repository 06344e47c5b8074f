"""An image that is optimised until a VGG's features are those of another one.

    python examples/python/perceptual_loss.py
    python examples/python/perceptual_loss.py --picture me.jpg --pretrained --out seen.png

The same losses train a network: put its output in the place of ``image``. Without ``--pretrained``
the features are those of random filters, and nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import tyro
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_tensor
from torchvision.utils import save_image

from vgg_fast.features import LPIPS, ContentLoss


def read(picture: Path | None, size: int) -> Tensor:
    """(1, 3, size, size), between 0 and 1: the file's middle, or a disc before a gradient."""
    if picture:
        square = ImageOps.fit(Image.open(picture).convert("RGB"), (size, size))
        return to_tensor(square)[None]
    y, x = torch.meshgrid(*[torch.linspace(0, 1, size)] * 2, indexing="ij")
    disc = ((x - 0.5).square() + (y - 0.5).square() < 0.1).float()
    return torch.stack([x, y, disc])[None]


def main(
    loss: Literal["content", "lpips"] = "content",
    picture: Path | None = None,
    pretrained: bool = False,
    size: int = 96,
    steps: int = 100,
    out: Path | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> tuple[float, float]:
    """Optimise an image; print, and return, the loss of the first step and of the last.

    Args:
        loss: ContentLoss at three layers, or LPIPS.
        picture: the file whose features are wanted; an invented image without it.
        pretrained: ImageNet's weights, which torchvision downloads once (more than 500 MB).
        size: pixels of the image's side.
        steps: steps of Adam.
        out: where the image goes.
        device: cpu, cuda or cuda:N.
    """
    torch.manual_seed(0)
    weights = "DEFAULT" if pretrained else None
    criterion: LPIPS | ContentLoss
    if loss == "lpips":  # its weights for each channel fit trained features alone
        criterion = LPIPS(lpips=pretrained, normalize=True, vgg_weights=weights, device=device)
    else:
        taps = {"relu1_2": 1.0, "relu2_2": 1.0, "relu3_3": 1.0}
        criterion = ContentLoss(taps, arch="vgg16", vgg_weights=weights, device=device)

    wanted = criterion.target(read(picture, size).to(device))  # computed once, for all steps
    image = torch.rand(1, 3, size, size, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=0.02)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = criterion(image, wanted)
        value.backward()
        optimizer.step()
        with torch.no_grad():
            image.clamp_(0, 1)
        history.append(value.item())

    print(f"{loss}: {history[0]:.4g} -> {history[-1]:.4g} in {steps} steps")
    if out:
        save_image(image.detach(), out)
    return history[0], history[-1]


if __name__ == "__main__":
    tyro.cli(main)
