"""Detectors and readers of text."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CRNN(nn.Module):
    """CRNN (arXiv:1507.05717): VGG with flat poolings, then an LSTM along the line of text.

    (N, 1, 32, W) to (W / 4 + 1, N, classes), which the CTC loss takes.
    """

    def __init__(self, classes: int = 37, hidden: int = 256) -> None:
        super().__init__()
        self.cnn = nn.Sequential()
        inputs = 1
        for i, outputs in enumerate((64, 128, 256, 256, 512, 512, 512)):
            kernel, padding = (2, 0) if i == 6 else (3, 1)
            self.cnn.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, kernel, 1, padding))
            if i in (2, 4, 6):
                self.cnn.add_module(f"batchnorm{i}", nn.BatchNorm2d(outputs))
            self.cnn.add_module(f"relu{i}", nn.ReLU(True))
            if i in (0, 1):
                self.cnn.add_module(f"pooling{i}", nn.MaxPool2d(2, 2))
            if i in (3, 5):
                self.cnn.add_module(f"pooling{i}", nn.MaxPool2d((2, 2), (2, 1), (0, 1)))
            inputs = outputs
        self.rnn = nn.LSTM(512, hidden, bidirectional=True)
        self.classifier = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.cnn(x).squeeze(2).permute(2, 0, 1)
        return F.log_softmax(self.classifier(self.rnn(columns)[0]), dim=2)


class CRAFT(nn.Module):
    """CRAFT (arXiv:1904.01941): VGG-16 with batch normalisation, sliced, and a U-Net's way up.

    (N, 3, H, W) to scores (N, H/2, W/2, 2) and features (N, 32, H/2, W/2).
    """

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        cuts = (0, 12, 19, 29, 39)
        for i, (start, end) in enumerate(itertools.pairwise(cuts)):
            part = nn.Sequential()
            for k in range(start, end):
                part.add_module(str(k), features[k])
            self.add_module(f"slice{i + 1}", part)
        self.slice5 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.Conv2d(1024, 1024, 1),
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, middle, 1), nn.BatchNorm2d(middle), nn.ReLU(inplace=True),
                nn.Conv2d(middle, outputs, 3, padding=1), nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            )
            for inputs, middle, outputs in (
                (1536, 512, 256), (768, 256, 128), (384, 128, 64), (192, 64, 32)
            )
        )  # fmt: skip
        self.score = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 1), nn.ReLU(inplace=True), nn.Conv2d(16, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = []
        for part in (self.slice1, self.slice2, self.slice3, self.slice4):
            x = part(x)
            kept.append(x)
        x = self.slice5(x)
        for up in self.up:
            side = kept.pop()
            x = F.interpolate(x, size=side.shape[2:], mode="bilinear", align_corners=False)
            x = up(torch.cat([x, side], dim=1))
        return self.score(x).permute(0, 2, 3, 1), x
