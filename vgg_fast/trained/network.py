"""The network that a run has trained, and the images that it takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vgg_fast.models import VGG
from vgg_fast.train import checkpoint
from vgg_fast.train.config import TrainingError, from_plain_values, make_model, resolved
from vgg_fast.train.inputs import Input
from vgg_fast.train.options import Config

Device = Literal["auto", "cpu", "cuda"]


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
    averaged = config.ema is not None
    if averaged and not isinstance(state.get("average"), dict):
        raise TrainingError(f"{broken}: it lacks the averaged weights of --ema")
    try:
        taken = Input.from_state(state)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{broken}: its input lacks a part, or has a wrong one") from error
    model = make_model(config, len(taken.classes), taken.channels)
    try:
        checkpoint.load_model(model, checkpoint.result_weights(state), file)
    except TrainingError as error:
        raise TrainingError(
            f"{broken}: its weights don't belong to the network of its options"
        ) from error
    return Trained(file, config, model.eval(), taken, averaged, state)


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
