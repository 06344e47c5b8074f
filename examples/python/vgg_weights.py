"""Weights of a VGG network for the examples: trained ones, or some for a trial.

auto            torchvision's, trained on ImageNet; random ones where they can't be had
imagenet        torchvision's, or an error
random          drawn, and scaled to the pictures at hand
fashion-mnist   of the training program: TRAINING below
PATH            a file of torchvision's, or a checkpoint or folder of the training program
"""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from vgg_fast.features import VGGFeatures
from vgg_fast.features.weights import read
from vgg_fast.models import CONV_ARCHS
from vgg_fast.train import checkpoint
from vgg_fast.train.config import TrainingError

# The seed network has VGG-11's convolutions in full width; at 32² an epoch takes minutes on a CPU.
RUN = Path(__file__).resolve().parents[2] / "runs" / "seed-fused"
TRAINING = (
    "python -m vgg_fast.train --fused --preset seed --image-size 32 --classifier-width 512 "
    f"--epochs 1 --output-dir {RUN}"
)
PATIENCE = 5  # seconds for a host to answer


class MissingWeights(Exception):
    """The weights can't be had; one sentence says which, and what to do."""


class Weights(NamedTuple):
    """What :class:`VGGFeatures` takes as ``arch`` and ``weights``, and where it comes from."""

    arch: str
    state: Mapping[str, Tensor]
    source: str


def find(choice: str, arch: str, pictures: Sequence[Tensor]) -> Weights:
    """The weights that ``choice`` names; ``arch`` may become the one of a checkpoint.

    Args:
        choice: one of the words above, or a path.
        arch: "vgg11" to "vgg19".
        pictures: (1, 3, H, W) of values between 0 and 1, to which random weights are scaled.

    Raises:
        MissingWeights: there are none.
    """
    if choice == "random":
        return Weights(arch, random_weights(arch, pictures), "random")
    if choice == "auto":
        try:
            return Weights(arch, _of_torchvision(arch), "ImageNet")
        except MissingWeights as missing:
            print(f"{missing}\nGoing on with random weights: enough for textures, less for forms.")
            return Weights(arch, random_weights(arch, pictures), "random")
    if choice == "imagenet":
        return Weights(arch, _of_torchvision(arch), "ImageNet")
    path = RUN if choice == "fashion-mnist" else Path(choice)
    if choice == "fashion-mnist" and not path.exists():
        raise MissingWeights(f"There is no {path / checkpoint.NAME} yet; it is made by: {TRAINING}")
    if path.is_dir() or _is_checkpoint(path):
        return Weights(*_of_training(path), "Fashion-MNIST")
    try:
        return Weights(arch, read(path, "--weights"), path.name)
    except (FileNotFoundError, ValueError) as error:
        raise MissingWeights(str(error)) from error


@torch.no_grad()
def random_weights(arch: str, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    """Filters of He et al. 2015 (arXiv:1502.01852), each of mean 0 and variance 1 on ``pictures``.

    Without biases, deep maps hardly differ from one picture to the next, since what all pixels have
    in common grows from layer to layer. Scaled to data, as in Krähenbühl et al. 2015
    (arXiv:1511.06856), each filter tells half of the pixels from the others.
    """
    features = VGGFeatures(arch, ["pool5"])
    assert features.scale is not None and features.shift is not None
    maps = [torch.addcmul(features.shift, picture.cpu(), features.scale) for picture in pictures]
    for layer in features.features:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            values = torch.cat([layer(map).flatten(2) for map in maps], 2)
            deviation, mean = torch.std_mean(values, (0, 2))
            deviation.clamp_(min=1e-3)  # a map of one pixel doesn't vary
            layer.weight.div_(deviation.view(-1, 1, 1, 1))
            layer.bias.copy_(-mean / deviation)
        maps = [layer(map) for map in maps]
    return features.state_dict()


# ------------------------------------------------------------------------------------------------


def _of_torchvision(arch: str) -> Mapping[str, Tensor]:
    weights = get_model_weights(arch)["DEFAULT"]
    name = weights.url.rpartition("/")[2]
    folder = Path(torch.hub.get_dir(), "checkpoints")
    before = socket.getdefaulttimeout()
    try:
        if not (folder / name).exists():
            _require_answer(weights.url)
            print(f"Downloading {weights.url} to {folder} (more than 500 MB) ...")
        socket.setdefaulttimeout(4 * PATIENCE)  # a download that stalls
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # the network's; a wrong hash, a broken file
        raise MissingWeights(
            f"{name}, {arch} trained on ImageNet, can't be had ({error}): download {weights.url}, "
            f"and put it into {folder} or name it with --weights PATH."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _require_answer(url: str) -> None:
    """Fail within seconds where the host can't be reached.

    In a thread, because a timeout holds for each of a host's addresses, and for no search of them.
    """
    answer: list[object] = ["no answer"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=PATIENCE).close()
            answer[0] = None
        except (OSError, ValueError) as error:
            answer[0] = getattr(error, "reason", error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if answer[0] is not None:
        raise OSError(answer[0])


def _is_checkpoint(path: Path) -> bool:
    try:
        return "model" in torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch, zipfile and pickle each raise their own
        return False


def _of_training(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The architecture of the training program's network, and its convolutions for three channels.

    Each channel gets a third of the filter: the network sees a picture's gray, and no colors.
    """
    try:
        model = checkpoint.load(path)["model"]
    except TrainingError as error:
        raise MissingWeights(str(error)) from error
    filters = [tensor for tensor in model.values() if tensor.dim() == 4]
    shapes = tuple(tuple(filter.shape[:2]) for filter in filters)
    known = {_shapes(blocks): arch for arch, blocks in CONV_ARCHS.items()}
    if shapes not in known:
        raise MissingWeights(
            f"{path} has convolutions of {[c for c, _ in shapes]} channels, which aren't those of "
            f"a whole VGG; such a network is trained by: {TRAINING}"
        )
    filters[0] = filters[0].repeat(1, 3, 1, 1) / 3
    biases = [model[key.replace("weight", "bias")] for key, t in model.items() if t.dim() == 4]
    arch = known[shapes]
    keys = VGGFeatures(arch, ["pool5"], device="meta").state_dict()
    values = [tensor for pair in zip(filters, biases, strict=True) for tensor in pair]
    return arch, dict(zip(keys, values, strict=True))


def _shapes(blocks: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """(outputs, inputs) of each convolution, of a network with one channel."""
    channels = [c for count, c in blocks for _ in range(count)]
    return tuple(zip(channels, [1, *channels[:-1]], strict=True))
