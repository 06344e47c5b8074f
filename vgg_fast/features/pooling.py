"""The pooling of DISTS, in place of the largest value: a smooth root of mean squares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgg_fast.features.distances import widened


class L2Pool2d(nn.Module):
    """``sqrt(blur(x²))`` at every second pixel: Ding et al. 2020 (arXiv:2004.07728), equation 3.

    Shape:
        (N, C, H, W) to (N, C, (H + 1) // 2, (W + 1) // 2).
    """

    def forward(self, map: Tensor) -> Tensor:
        """The pooled map."""
        wide, channels = widened(map), map.shape[1]
        hann = torch.tensor([0.25, 0.5, 0.25], dtype=wide.dtype, device=wide.device)
        window = (hann[:, None] * hann).expand(channels, 1, 3, 3)
        with torch.autocast(map.device.type, enabled=False):
            squares = F.conv2d(wide.square(), window, stride=2, padding=1, groups=channels)
        return (squares + 1e-12).sqrt().to(map.dtype)
