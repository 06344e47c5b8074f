"""The network that a run has trained, and the images that it takes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vgg_fast.models import VGG
from vgg_fast.train import checkpoint
from vgg_fast.train.batches import DEVIATION, MEAN
from vgg_fast.train.config import TrainingError, from_plain_values, make_model, resolved
from vgg_fast.train.data import CLASSES
from vgg_fast.train.options import Config

Device = Literal["auto", "cpu", "cuda"]
AVERAGED = ("averaged", "average")  # where a checkpoint of --ema has its weights


@dataclass(frozen=True)
class Input:
    """The images that a network takes, and the names of its outputs.

    Attributes:
        channels: 1, grey, or 3, red, green and blue.
        image_size: height and width.
        mean: of each channel, of images scaled to [0, 1]; it is subtracted.
        deviation: of each channel; the rest is divided by it.
        classes: the names, in the order of the outputs.
    """

    channels: int
    image_size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: tuple[str, ...]

    def prepared(self, images: Tensor) -> Tensor:
        """Scaled, normalised and resized, as in training.

        Args:
            images: uint8 (N, height, width), or (N, channels, height, width).

        Returns:
            float32 (N, channels, image_size, image_size).
        """
        if images.dim() == 3:
            images = images.unsqueeze(1)
        mean, deviation = (
            torch.tensor(values, device=images.device).reshape(1, -1, 1, 1)
            for values in (self.mean, self.deviation)
        )
        images = images.float().div_(255).sub_(mean).div_(deviation)
        size = (self.image_size, self.image_size)
        if images.shape[2:] == size:
            return images
        return interpolate(images, size, mode="bilinear", align_corners=False)

    def described(self) -> dict[str, Any]:
        """In values that JSON can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


@dataclass(frozen=True)
class Trained:
    """A network in eval mode, and what belongs to it.

    Attributes:
        file: the checkpoint.
        config: the run's options, with the device that the network is on.
        model: takes what :meth:`Input.prepared` gives, and gives a score for each class.
        input: the images that it takes.
        averaged: whether the weights are an average over the run, and not its last ones.
        state: the checkpoint's other contents.
    """

    file: Path
    config: Config
    model: VGG
    input: Input
    averaged: bool
    state: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.config.device)

    @property
    def of_photographs(self) -> bool:
        """Whether it has learnt from photographs, and not from light shapes on black."""
        return self.input.channels == 3 or self.config.dataset == "folder"

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """The scores of every class, before softmax.

        Args:
            images: what :meth:`Input.prepared` gave, on any device.

        Returns:
            float32 (N, classes).

        Raises:
            TrainingError: the device doesn't have the memory, or lacks the kernels.
        """
        try:
            images = images.to(self.device)
            if self.config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            scores: Tensor = self.model(images)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]  # below it, torch explains itself
            raise TrainingError(f"the network can't run on {self.device}: {reason}") from error
        return scores

    def introduction(self) -> str:
        """The line that says which network it is."""
        size = self.input.image_size
        return (
            f"{self.file}: {len(self.input.classes)} classes, {size} x {size} "
            f"{'grey' if self.input.channels == 1 else 'colour'} images, step {self.state['step']}"
            f"{', averaged weights' if self.averaged else ''}; on {self.device}, "
            f"{'fused' if self.config.fused else 'plain'}, float32"
        )


def load(
    run: Path,
    device: str = "auto",
    fused: bool | None = None,
    channels_last: bool | None = None,
) -> Trained:
    """The network of a run, with its averaged weights where it has them.

    Args:
        run: the folder of a run, or a checkpoint.
        device: auto, cpu or cuda; auto takes a GPU if there is one.
        fused: with this package's kernels, or plain torch layers; None: as it was trained.
        channels_last: the memory layout; None: as it was trained.

    Raises:
        TrainingError: there is no checkpoint, or it is broken or of another format, or the device
            doesn't exist.
    """
    file, state = checkpoint.find(run), checkpoint.load(run)
    broken = f"the checkpoint {file} is broken"
    try:
        config = from_plain_values(state["config"])
    except ValueError as error:
        raise TrainingError(f"{broken}: {error}") from error
    # What belongs to the machine and the files of the training, which may be others than here.
    changed: dict[str, Any] = {"device": device, "threads": None, "init": None, "fsdp": False}
    if fused is not None:
        changed["fused"] = fused
    if channels_last is not None:
        changed["channels_last"] = channels_last
    config = resolved(dataclasses.replace(config, **changed))
    key = next((name for name in AVERAGED if state.get(name) is not None), None)
    if key is None and config.ema is not None:
        raise TrainingError(f"{broken}: it lacks the averaged weights of --ema")
    weights = state[key or "model"]
    if not isinstance(weights, dict):
        raise TrainingError(f"{broken}: its averaged weights are a {type(weights).__name__}")
    taken = _input(state, config, weights, broken)
    model = make_model(config, len(taken.classes), taken.channels)
    try:
        checkpoint.load_model(model, weights, file)
    except TrainingError as error:
        raise TrainingError(
            f"{broken}: its weights don't belong to the network of its options"
        ) from error
    return Trained(file, config, model.eval(), taken, key is not None, state)


def sequence(model: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """The layers in their order, each with torchvision's key: features.0, ..., classifier.6.

    A block of the model is a Sequential of its layers, and torchvision has the layers of all blocks
    in one; what follows Flatten is its classifier.
    """
    layers: list[tuple[str, nn.Module]] = []
    part, place = "features", 0
    for child in model:
        if isinstance(child, nn.Flatten):
            part, place = "classifier", 0
            continue
        for layer in child if isinstance(child, nn.Sequential) else [child]:
            layers.append((f"{part}.{place}", layer))
            place += 1
    return layers


# ------------------------------------------------------------------------------------------------


def _input(state: dict[str, Any], config: Config, weights: dict[str, Any], broken: str) -> Input:
    """What the checkpoint says of its images; an older one says nothing."""
    assert config.image_size
    found = state.get("input")
    if found is None:
        biases = [value for name, value in weights.items() if name.endswith(".bias")]
        count = len(biases[-1]) if biases and isinstance(biases[-1], Tensor) else len(CLASSES)
        own = config.dataset == "fashion-mnist" and count == len(CLASSES)
        classes = CLASSES if own else tuple(map(str, range(count)))
        return Input(1, config.image_size, (MEAN,), (DEVIATION,), classes)
    try:
        taken = Input(
            found["channels"],
            found["image_size"],
            tuple(map(float, found["mean"])),
            tuple(map(float, found["deviation"])),
            tuple(map(str, found["classes"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{broken}: its input lacks a part, or has a wrong one") from error
    numbers = (*taken.mean, *taken.deviation)
    if (
        taken.channels not in (1, 3)
        or taken.image_size != config.image_size
        or not len(taken.mean) == len(taken.deviation) == taken.channels
        or not all(map(math.isfinite, numbers))
        or not all(taken.deviation)
        or not taken.classes
    ):
        raise TrainingError(f"{broken}: its input lacks a part, or has a wrong one")
    return taken
