"""What a training run needs at least, and what there is: known before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

# The limit of a control group, such as a container's, or "max".
GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def of_machine() -> int:
    """Bytes of memory that a process on this machine, or in this container, can have."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(whole, int(GROUP_LIMIT.read_text("ascii")))
    except (OSError, ValueError):
        return whole


def of_device(device: torch.device) -> int:
    """Bytes of memory of a GPU; of the machine for the CPU."""
    if device.type != "cuda":
        return of_machine()
    return int(torch.cuda.get_device_properties(device).total_memory)


def in_gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:,.1f} GiB"


def parameters_of_vgg(
    blocks: Sequence[tuple[int, int]],
    image_size: int,
    classifier_width: int,
    classes: int,
    channels: int = 1,
    batch_norm: bool = False,
) -> int:
    """Weights and biases of a VGG.

    Args:
        blocks: (convolutions, channels), after their multiplication by the width.
        image_size: height and width of the images.
        classifier_width: outputs of the two hidden linear layers.
        classes: outputs of the last one.
        channels: of the images.
        batch_norm: whether each convolution has one, with a scale and a shift for each channel.
    """
    total, before, per_channel = 0, channels, 3 if batch_norm else 1
    for convolutions, channels in blocks:
        total += 9 * channels * (before + (convolutions - 1) * channels)
        total += per_channel * convolutions * channels
        before = channels
    features = before * (image_size >> len(blocks)) ** 2
    for inputs, outputs in (
        (features, classifier_width),
        (classifier_width, classifier_width),
        (classifier_width, classes),
    ):
        total += (inputs + 1) * outputs
    return total


def least_to_train(
    parameters: int,
    blocks: Sequence[tuple[int, int]],
    image_size: int,
    batch_size: int,
    channels: int = 1,
    copies: int = 3,
) -> int:
    """Bytes below which no training step fits.

    Weights, gradients and momentum in float32, ``copies`` of them with what else the optimizer
    keeps; the images of one pass; and the map after each block, in 16 bits as mixed precision has
    it. Kernels and a run without fusing take more.
    """
    maps = sum(channels * (image_size >> i) ** 2 for i, (_, channels) in enumerate(blocks, start=1))
    images = 4 * channels * image_size**2
    return copies * 4 * parameters + batch_size * (images + 2 * maps)
