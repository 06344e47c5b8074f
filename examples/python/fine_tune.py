"""Fine-tune a fused ResNet or VGG of torchvision with a new head, and use the weights without it.

    python examples/python/fine_tune.py
    python examples/python/fine_tune.py --data pictures --pretrained --size 224 --out tuned.pth

``--data`` is a folder with a folder of pictures for each class; without it the classes are gratings
in four directions, in noise. ``--pretrained`` downloads torchvision's weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split
from torchvision.datasets import ImageFolder
from torchvision.models import get_model
from torchvision.transforms import v2

import vgg_fast


def gratings(count: int, size: int, classes: int = 4) -> Dataset:
    labels = torch.arange(count) % classes
    angles = (labels * torch.pi / classes).view(-1, 1, 1)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    waves = (0.8 * (x * angles.cos() + y * angles.sin())).sin()
    return TensorDataset(waves[:, None] + 0.5 * torch.randn(count, 3, size, size), labels)


def folder(path: Path, size: int) -> ImageFolder:
    steps = [v2.ToImage(), v2.RGB(), v2.Resize(size), v2.CenterCrop(size)]
    steps += [v2.ToDtype(torch.float32, scale=True)]
    steps += [v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]  # ImageNet's
    return ImageFolder(path, v2.Compose(steps))


def main(
    arch: str = "resnet18",
    data: Path | None = None,
    pretrained: bool = False,
    size: int = 64,
    epochs: int = 2,
    out: Path | None = None,
) -> float:
    """Train; print, and return, the accuracy on a fifth of the images, which is held out."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = folder(data, size) if data else gratings(640, size)
    classes = len(images.classes) if isinstance(images, ImageFolder) else 4
    training, held_out = (DataLoader(part, 32, True) for part in random_split(images, [0.8, 0.2]))

    model = vgg_fast.fuse(get_model(arch, weights="DEFAULT" if pretrained else None))
    if hasattr(model, "fc"):  # a fused model's layers can be exchanged like any other's
        model.fc = nn.Linear(model.fc.in_features, classes)
    else:
        model.classifier[-1] = nn.Linear(model.classifier[-1].in_features, classes)
    model.to(device)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    for epoch in range(1, epochs + 1):
        for batch, labels in training:
            loss = F.cross_entropy(model(batch.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}")

    # The keys are torchvision's, so the weights load where vgg_fast isn't installed.
    plain = get_model(arch, num_classes=classes).to(device).eval()
    plain.load_state_dict(model.state_dict())
    with torch.inference_mode():
        right = [plain(x.to(device)).argmax(1).cpu() == labels for x, labels in held_out]
    accuracy = torch.cat(right).float().mean().item()
    print(f"{accuracy:.1%} of the images held out, by the plain {arch}")
    if out:
        torch.save(model.state_dict(), out)
    return accuracy


if __name__ == "__main__":
    tyro.cli(main)
