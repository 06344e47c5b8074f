"""Convolutions that were trained before: from a file into a network, and kept as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from vgg_fast.features import weights
from vgg_fast.train.config import TrainingError

LEAST_VARIANCE = 5e-4  # added to each: directions in which images hardly differ stay small


def load_convolutions(model: nn.Sequential, path: Path) -> None:
    """Put the convolutions (and batch norms) of torchvision's VGG into ``model``.

    A first layer for colour images becomes one for grey ones by the sum over its channels: what it
    would give for a colour image that is grey.

    Args:
        model: a :class:`vgg_fast.models.VGG`.
        path: of a state_dict with keys such as "features.0.weight"; ``.safetensors`` also.

    Raises:
        TrainingError: it can't be read, or is of another network; the message names the first
            difference.
    """
    found = _read(path)
    wanted = dict(_tensors(model))
    first = next(iter(wanted))
    if first in found and wanted[first].shape[1] == 1 and found[first].dim() == 4:
        found[first] = found[first].sum(1, keepdim=True)
    for name in [*wanted, *found]:
        if name not in found and name.endswith("num_batches_tracked"):
            continue  # files of before 2018 have none
        own, its = (_shape(values.get(name)) for values in (wanted, found))
        if own != its:
            raise TrainingError(
                f"--init {path} is of another network: its {name} is {its}, and this network's is "
                f"{own}; name its own network with --arch, --width and --batch-norm"
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name in found:
                tensor.copy_(found[name])


@torch.no_grad()
def whiten(model: nn.Sequential, images: Tensor) -> None:
    """Put filters into the first convolution of ``model`` that whiten the patches of ``images``.

    They are the eigenvectors of the patches' covariance, each divided by the root of its
    eigenvalue: first those of the largest, each followed by its negative, because a ReLU is to
    pass both signs. Filters beyond them stay as they are, and so do all where the images are
    smaller than a patch. Jordan 2024 (arXiv:2404.00498).

    Args:
        model: a :class:`vgg_fast.models.VGG`.
        images: as the network takes them, (N, channels, height, width).
    """
    if min(images.shape[2:]) < 3:
        return
    first = next(layer for layer in features_of(model) if isinstance(layer, nn.Conv2d))
    patches = unfold(images, 3).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T.double().cov())
    filters = (vectors / (values + LEAST_VARIANCE).sqrt()).T.flip(0)
    both = torch.stack([filters, -filters], 1).view(-1, *first.weight.shape[1:])
    count = min(len(both), len(first.weight))
    first.weight[:count] = both[:count].to(first.weight)


def features_of(model: nn.Sequential) -> Iterator[nn.Module]:
    """The layers before the classifier, in their order."""
    for block in model:
        if isinstance(block, nn.Flatten):
            return
        yield from block.children()


def freeze(model: nn.Sequential) -> None:
    """Let only the classifier learn: batch norms keep their statistics, too.

    To be called again after ``model.train()``.
    """
    for layer in features_of(model):
        layer.eval().requires_grad_(False)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# ------------------------------------------------------------------------------------------------


def _tensors(model: nn.Sequential) -> Iterator[tuple[str, Tensor]]:
    """Those of the features, by torchvision's names: it numbers all layers in their order."""
    for i, layer in enumerate(features_of(model)):
        for name, tensor in layer.state_dict(keep_vars=True).items():
            yield f"features.{i}.{name}", tensor


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = weights.read(path, "--init")
    except (ImportError, FileNotFoundError) as error:
        raise TrainingError(str(error)) from error
    except Exception as error:  # torch, zipfile and pickle each raise their own
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        # What torch says ends in the advice to load without its safeguard: it isn't passed on.
        raise TrainingError(
            f"--init {path} is no readable file of tensors{reason}: name one that "
            "torch.save(model.state_dict(), path) or safetensors has written"
        ) from error
    if not isinstance(state, Mapping):
        raise TrainingError(
            f"--init {path} holds a {type(state).__name__}: name a file with the state_dict of "
            "torchvision's VGG"
        )
    found = {
        str(name): value
        for name, value in state.items()
        if str(name).startswith("features.") and isinstance(value, Tensor)
    }
    if not found:
        raise TrainingError(
            f"--init {path} has no tensor features.0.weight: name a file with the state_dict of "
            "torchvision's VGG"
        )
    return found


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))
