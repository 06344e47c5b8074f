"""Denoising and super-resolution: DnCNN, SRResNet, EDSR, ESRGAN's generator, its discriminator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dncnn(channels: int = 1, width: int = 64, depth: int = 17) -> nn.Sequential:
    """DnCNN (arXiv:1608.03981): the noise of an image (N, channels, H, W)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
    for _ in range(depth - 2):
        layers += [
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1, bias=False))


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, and the input added."""

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x))) * self.scale


class EDSR(nn.Module):
    """EDSR-baseline (arXiv:1707.02921), four times as large: (N, 3, H, W) to (N, 3, 4 H, 4 W)."""

    def __init__(self, width: int = 64, blocks: int = 16) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.body.append(nn.Conv2d(width, width, 3, padding=1))
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2),
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2),
            nn.Conv2d(width, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        x = x + self.body(x)
        return self.tail(x)


class MSRResNet(nn.Module):
    """SRResNet without batch normalisation, as BasicSR has it: leaky ReLUs between the blocks."""

    def __init__(self, width: int = 64, blocks: int = 16) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, width, 3, 1, 1)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.upconv1 = nn.Conv2d(width, 4 * width, 3, 1, 1)
        self.upconv2 = nn.Conv2d(width, 4 * width, 3, 1, 1)
        self.conv_hr = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_last = nn.Conv2d(width, 3, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.lrelu(self.conv_first(x)))
        for grow in (self.upconv1, self.upconv2):
            y = self.lrelu(F.pixel_shuffle(grow(y), 2))
        y = self.conv_last(self.lrelu(self.conv_hr(y)))
        y += F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
        return y


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees what all before it gave."""

    def __init__(self, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        for i in range(5):
            outputs = growth if i < 4 else width
            self.add_module(f"conv{i + 1}", nn.Conv2d(width + i * growth, outputs, 3, 1, 1))
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, self.lrelu(conv(seen))), 1)
        return x + 0.2 * self.conv5(seen)


class RRDB(nn.Module):
    """Three dense blocks, and the input added."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """ESRGAN's generator (arXiv:1809.00219), four times as large."""

    def __init__(self, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, width, 3, 1, 1)
        self.body = nn.Sequential(*(RRDB(width) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_up1 = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_up2 = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_hr = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_last = nn.Conv2d(width, 3, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for conv in (self.conv_up1, self.conv_up2):
            x = self.lrelu(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(x)))


class Discriminator(nn.Module):
    """SRGAN's discriminator (arXiv:1609.04802): every second convolution halves the image."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.LeakyReLU(0.2, inplace=True)]
            layers += [nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x).mean((2, 3)))


class VGGFeatureExtractor(nn.Module):
    """BasicSR's: named layers of VGG-19 up to the last one wanted; returns clones by name.

    The perceptual loss takes the tensors *before* each ReLU, and the ReLU behind works in place.
    """

    def __init__(self, features: nn.Sequential, names: list[str], wanted: tuple[str, ...]) -> None:
        super().__init__()
        self.wanted = wanted
        last = max(names.index(name) for name in wanted)
        self.vgg_net = nn.Sequential()
        for name, layer in zip(names[: last + 1], features, strict=False):
            self.vgg_net.add_module(name, layer)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = (x - self.mean) / self.std
        found = {}
        for name, layer in self.vgg_net._modules.items():
            x = layer(x)
            if name in self.wanted:
                found[name] = x.clone()
        return found
