"""What a user does first, on the installed package: python use.py, in any folder.

Prints one line for each thing that it did; needs torch and vgg_fast alone.
"""

from __future__ import annotations

import platform
import shutil

import torch
from torch import nn

import vgg_fast
from vgg_fast.functional import conv3x3_relu_pool


def forward_and_backward() -> None:
    image, weight, bias = torch.randn(2, 3, 9, 9), torch.randn(8, 3, 3, 3), torch.randn(8)
    ours = [tensor.clone().requires_grad_() for tensor in (image, weight, bias)]
    theirs = [tensor.double().requires_grad_() for tensor in (image, weight, bias)]
    output = conv3x3_relu_pool(*ours)
    expected = nn.functional.max_pool2d(nn.functional.conv2d(*theirs, padding=1).relu(), 2)
    output.sum().backward()
    expected.sum().backward()
    for found, wanted in [(output, expected)] + [
        (a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)
    ]:
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def fused_model() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
    ).eval()  # fmt: skip
    faster = vgg_fast.fuse(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(faster(images), model(images), rtol=1e-3, atol=1e-4)
    assert faster.state_dict().keys() == model.state_dict().keys()


def training_step() -> None:
    net = vgg_fast.VGG(((1, 16), (1, 32)), image_size=16, classifier_width=32)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    images, labels = torch.rand(8, 1, 16, 16), torch.arange(8)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses


def main() -> None:
    torch.manual_seed(0)
    for work in (forward_and_backward, fused_model, training_step):
        work()
        print(work.__name__.replace("_", " "), "works")
    compilers = [name for name in ("c++", "g++", "clang++", "cc", "gcc") if shutil.which(name)]
    print(
        f"vgg_fast {vgg_fast.__version__} in {vgg_fast.__path__[0]}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, compilers: {', '.join(compilers) or 'none'}"
    )


if __name__ == "__main__":
    main()
