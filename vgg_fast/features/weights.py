"""Trained weights for :class:`~vgg_fast.features.VGGFeatures`, in whatever form they come."""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vgg_fast.features.plan import ARCHS, layer_names

Weights = Any
"""None, torchvision's enum member or its name, a path, a state_dict or a model."""


def load(features: nn.Sequential, arch: str, weights: Weights) -> None:
    """Copy ``weights`` into ``features``, the first layers of ``arch``.

    Raises:
        ValueError: they are of another architecture, or the file can't be read.
    """
    given = _of_features(_state_dict(arch, weights))
    _check_arch(given, arch, len(features))
    own = features.state_dict()
    with torch.no_grad():
        for key, tensor in own.items():
            # Files of before 2018 don't have the count, which eval mode doesn't need.
            if key not in given and key.endswith("num_batches_tracked"):
                tensor.zero_()
                continue
            _check_shape(key, given.get(key), tensor, arch)
            tensor.copy_(given[key])


def read(path: str | os.PathLike[str], what: str) -> Any:
    """What a ``.safetensors`` file, or one of ``torch.save``, holds; tensors and nothing else.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can't be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{what}: there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(
                f"{what}: reading {path} needs the package safetensors; install it"
            ) from error
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{what}: {path} is no readable safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it ends too early"
        raise ValueError(
            f"{what}: {path} is no readable file of tensors, such as "
            f"torch.save(model.state_dict(), path) writes: {reason}"
        ) from error


def find_file(what: str, candidates: Iterable[tuple[str, str]]) -> Path:
    """The first of these (package, file in it) that is installed; no package is imported.

    Raises:
        ImportError: none is.
    """
    candidates = tuple(candidates)
    for package, file in candidates:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            path = Path(folder, file)
            if path.is_file():
                return path
    packages = " or ".join(package for package, _ in candidates)
    raise ImportError(f"{what}: no package has them; install {packages}, or give a file")


def _state_dict(arch: str, weights: Weights) -> Mapping[str, Tensor]:
    if isinstance(weights, nn.Module):
        return weights.state_dict()
    if isinstance(weights, str) and not _is_path(weights):
        weights = _by_name(arch, weights)
    if hasattr(weights, "get_state_dict"):  # a member of torchvision's enum
        return weights.get_state_dict(progress=True, check_hash=True)
    if isinstance(weights, (str, os.PathLike)):
        path, weights = weights, read(weights, "VGGFeatures")
        if not isinstance(weights, Mapping):
            raise ValueError(
                f"VGGFeatures: {path} holds a {type(weights).__name__}, not a state_dict"
            )
    if not isinstance(weights, Mapping):
        raise TypeError(
            "VGGFeatures: weights must be None, torchvision's weights or their name, a path, a "
            f"state_dict or a model, but they are a {type(weights).__name__}"
        )
    return weights


def _is_path(weights: str) -> bool:
    return Path(weights).suffix != "" or os.sep in weights or Path(weights).is_file()


def _by_name(arch: str, name: str) -> Any:
    try:
        from torchvision.models import get_model_weights
    except ImportError as error:
        raise ImportError(
            f"VGGFeatures: the weights {name!r} are torchvision's, which isn't installed; install "
            "it, or give a file"
        ) from error
    known = get_model_weights(arch)
    if name not in known.__members__:
        raise ValueError(
            f"VGGFeatures: {arch} has no weights {name!r}; torchvision has "
            f"{', '.join(known.__members__)}; a file's name needs its ending"
        )
    return known[name]


def _of_features(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By keys such as "0.weight"; what isn't of the features is left out."""
    found = {key.removeprefix("features."): tensor for key, tensor in state.items()}
    return {key: tensor for key, tensor in found.items() if key.split(".")[0].isdecimal()}


def _check_arch(given: Mapping[str, Tensor], arch: str, layers: int) -> None:
    """``given`` has the layers of ``arch``, at least the first ``layers`` of them.

    All of its layers count, since the first ones are the same in VGG-16 and in VGG-19.
    """
    indices = {int(key.split(".")[0]) for key in given}
    fitting = [name for name in ARCHS if _starts_with(name, indices)]
    if not indices or not fitting:
        raise ValueError(
            f"VGGFeatures: the weights aren't those of a VGG: a state_dict with keys such as "
            f"'features.0.weight' is wanted, as torchvision's {arch} has"
        )
    if arch not in fitting:
        raise ValueError(f"VGGFeatures: the weights are those of {fitting[0]}, not of {arch}")
    lacking = {i for i in _with_weights(arch) if i < layers} - indices
    if lacking:
        names = layer_names(arch)
        raise ValueError(
            f"VGGFeatures: the weights end before {names[min(lacking)]} (features."
            f"{min(lacking)}), but the last tap is {names[layers - 1]}"
        )


def _starts_with(arch: str, indices: set[int]) -> bool:
    return sorted(indices) == _with_weights(arch)[: len(indices)]


def _with_weights(arch: str) -> list[int]:
    return [i for i, name in enumerate(layer_names(arch)) if name.startswith(("conv", "bn"))]


def _check_shape(key: str, given: Any, own: Tensor, arch: str) -> None:
    if not isinstance(given, Tensor):
        raise ValueError(f"VGGFeatures: the weights have no tensor features.{key}, as {arch} has")
    if given.shape != own.shape:
        raise ValueError(
            f"VGGFeatures: features.{key} of the weights is {tuple(given.shape)}, but that of "
            f"{arch} is {tuple(own.shape)}"
        )
