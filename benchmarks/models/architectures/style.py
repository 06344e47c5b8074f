"""Style transfer: the losses that PyTorch's tutorial puts between the layers; a transformer net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gram(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N·C, N·C)."""
    n, c, h, w = x.shape
    features = x.view(n * c, h * w)
    return features @ features.t() / x.numel()


class Normalisation(nn.Module):
    """The image by the mean and deviation of ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class ContentLoss(nn.Module):
    """Passes its input on, and keeps its distance from the target."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.register_buffer("target", target.detach())

    def forward(self, x: Tensor) -> Tensor:
        self.loss = F.mse_loss(x, self.target)
        return x


class StyleLoss(ContentLoss):
    """The same, of the Gram matrices."""

    def forward(self, x: Tensor) -> Tensor:
        self.loss = F.mse_loss(gram(x), self.target)
        return x


class StyleTransfer(nn.Module):
    """pytorch.org/tutorials/advanced/neural_style_tutorial: a loss behind a convolution, before its
    ReLU, in the Sequential itself; (N, 3, H, W) to the two sums of losses."""

    def __init__(self, features: nn.Sequential, content: Tensor, style: Tensor) -> None:
        super().__init__()
        self.model = nn.Sequential(Normalisation())
        self.contents: list[ContentLoss] = []
        self.styles: list[StyleLoss] = []
        i = 0
        for layer in features.children():
            if isinstance(layer, nn.Conv2d):
                i += 1
                self.model.add_module(f"conv_{i}", layer)
                if i == 4:
                    loss = ContentLoss(self.model(content))
                    self.model.add_module(f"content_loss_{i}", loss)
                    self.contents.append(loss)
                style_loss = StyleLoss(gram(self.model(style)))
                self.model.add_module(f"style_loss_{i}", style_loss)
                self.styles.append(style_loss)
                if i == 5:
                    return
            elif isinstance(layer, nn.ReLU):
                self.model.add_module(f"relu_{i}", nn.ReLU(inplace=False))
            else:
                self.model.add_module(f"pool_{i}", layer)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        self.model(image)
        style = torch.stack([loss.loss for loss in self.styles]).sum()
        return style, torch.stack([loss.loss for loss in self.contents]).sum()


class PaddedConvolution(nn.Module):
    """A convolution without padding, behind one that reflects."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))


class TransformerBlock(nn.Module):
    """Two padded convolutions with instance normalisation, and the input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (PaddedConvolution(width, width, 3) for _ in range(2))
        self.in1, self.in2 = (nn.InstanceNorm2d(width, affine=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.in2(self.conv2(F.relu(self.in1(self.conv1(x)))))


class TransformerNet(nn.Module):
    """Fast style transfer (arXiv:1603.08155), as in pytorch/examples: an image to an image."""

    def __init__(self, width: int = 32, blocks: int = 5) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            PaddedConvolution(i, o, k, s)
            for i, o, k, s in (
                (3, width, 9, 1), (width, 2 * width, 3, 2), (2 * width, 4 * width, 3, 2)
            )
        )  # fmt: skip
        self.blocks = nn.Sequential(*(TransformerBlock(4 * width) for _ in range(blocks)))
        self.up = nn.ModuleList(
            PaddedConvolution(i, o, 3) for i, o in ((4 * width, 2 * width), (2 * width, width))
        )
        self.norms = nn.ModuleList(
            nn.InstanceNorm2d(c, affine=True) for c in (width, 2 * width, 4 * width)
        )
        self.last = PaddedConvolution(width, 3, 9)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.down, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        x = self.blocks(x)
        for conv, norm in zip(self.up, reversed(self.norms[:2]), strict=True):
            x = F.relu(norm(conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))))
        return self.last(x)
