"""How a step learns: the optimizer, its learning rate, and the average of the weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vgg_fast.models import VGG
from vgg_fast.train import checkpoint, sharding
from vgg_fast.train.initial import trainable
from vgg_fast.train.muon import Muon
from vgg_fast.train.options import Config

SECOND_BETA = 0.999  # AdamW's, over squares of gradients
COUNT = "step"  # what an optimizer's state calls it

# One-cycle: what the peak is divided by at the first step, and that again at the last.
FIRST, LAST = 25.0, 1e4


def make_optimizer(config: Config, model: VGG) -> torch.optim.Optimizer:
    """The optimizer of a resolved ``config``, for the parameters of ``model`` that learn."""
    assert config.lr is not None and config.weight_decay is not None
    parameters = trainable(model)
    if config.optimizer == "muon":
        weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        hidden = {id(weight) for weight in weights[1:-1]}
        return Muon(
            [parameter for parameter in parameters if id(parameter) in hidden],
            [parameter for parameter in parameters if id(parameter) not in hidden],
            config.lr,
            config.momentum,
            config.weight_decay,
        )
    is_fused = not config.fsdp  # torch has no fused ones for parameters that are cut
    if config.optimizer == "adamw":  # Loshchilov and Hutter 2017 (arXiv:1711.05101)
        return torch.optim.AdamW(
            parameters,
            config.lr,
            (config.momentum, SECOND_BETA),
            weight_decay=config.weight_decay,
            fused=is_fused,
        )
    return torch.optim.SGD(
        parameters,
        config.lr,
        config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
        fused=is_fused,
    )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What it changes, in the order of its state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    config: Config,
    saved: dict[str, Any],
    momentum_then: float,
    path: Path,
) -> None:
    """Give it back what it had kept of each parameter; whatever the options fix is theirs already.

    Args:
        optimizer: of ``config``, and new.
        config: resolved.
        saved: its ``state_dict()`` after one or more steps.
        momentum_then: the option of the run that saved it.
        path: of the checkpoint, for messages.

    Raises:
        TrainingError: ``saved`` lacks something, or has it in another form.
    """
    parameters: list[nn.Parameter] = parameters_of(optimizer)
    found: Any = saved.get("state")
    then, now = (_kept(optimizer, m) for m in (momentum_then, config.momentum))
    if any(then):
        like = {
            i: {name: torch.zeros(()) if name == COUNT else parameter for name in names}
            for i, (parameter, names) in enumerate(zip(parameters, then, strict=True))
            if names
        }
        checkpoint.require_alike(found, like, "optimizer.state", path)
    for i, parameter in enumerate(parameters):
        for name in now[i]:
            if name == COUNT:
                optimizer.state[parameter][name] = found[i][name].to(parameter.device)
                continue
            # In the parameter's layout, which --channels-last may have changed.
            value = torch.zeros_like(parameter, requires_grad=False)
            if name in then[i]:
                value.copy_(sharding.cut_like(found[i][name], parameter))
            optimizer.state[parameter][name] = value


def _kept(optimizer: torch.optim.Optimizer, momentum: float) -> list[tuple[str, ...]]:
    """What an optimizer with this ``momentum`` keeps of each parameter."""
    kept: list[tuple[str, ...]] = []
    for group in optimizer.param_groups:
        names: tuple[str, ...] = ("momentum_buffer",) if momentum else ()
        if isinstance(optimizer, torch.optim.AdamW) or group.get("moved_by") == "adam":
            names = ("exp_avg", "exp_avg_sq", COUNT)
        kept += [names] * len(group["params"])
    return kept


# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of every step: it depends on nothing else, so that a run can be resumed.

    "one-cycle" rises along a cosine to the peak, and falls along one to almost nothing, as torch's
    OneCycleLR does (Smith and Topin 2017, arXiv:1708.07120). The others rise in a straight line,
    and the first step behind the warm-up has the peak.

    Args:
        schedule: of the options.
        peak: the highest rate.
        warm_up: share of the steps in which it rises.
        steps: of the whole run.
    """

    schedule: str
    peak: float
    warm_up: float
    steps: int

    def at(self, step: int) -> float:
        """The rate of a step; the first one is 0."""
        if self.schedule == "one-cycle":
            return self._one_cycle(step)
        rising = self.warm_up * self.steps
        if step < rising:
            return self.peak * (step + 1) / (rising + 1)
        share = (step - rising) / max(1.0, self.steps - rising)
        if self.schedule == "cosine":
            return self.peak * (1 + math.cos(math.pi * share)) / 2
        return self.peak * (1 - share) if self.schedule == "triangle" else self.peak

    def _one_cycle(self, step: int) -> float:
        first, last = self.peak / FIRST, self.peak / FIRST / LAST
        top = self.warm_up * self.steps - 1
        if step <= top:
            return _along_cosine(first, self.peak, step, top)
        return _along_cosine(self.peak, last, step - top, self.steps - 1 - top)


def _along_cosine(start: float, end: float, way: float, length: float) -> float:
    if length == 0:  # a run of so few steps that one of them is the whole rise, or the whole fall
        return max(start, end)
    return end + (start - end) / 2 * (math.cos(math.pi * (way / length)) + 1)


# ------------------------------------------------------------------------------------------------


class Average:
    """A copy of a network whose weights are an average over those of all steps so far.

    After step t the average keeps min(decay, (1 + t) / (10 + t)) of itself, and takes the rest from
    the network: so the random weights of the beginning are soon forgotten, whatever the decay.

    The running statistics of batch norms are averaged in the same way. Those of the network itself
    are of its current weights, and the ones that belong to the average would take another pass over
    the images.

    Args:
        model: the network, on its device.
        decay: the share that the average keeps at each step, after the first ones.
    """

    def __init__(self, model: VGG, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._own, self._others = self._tensors(self.model), self._tensors(model)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the network's weights after ``step`` steps."""
        kept = min(self.decay, (1 + step) / (10 + step))
        (own, counts), (others, their_counts) = self._own, self._others
        torch._foreach_lerp_(own, others, 1 - kept)
        for count, other in zip(counts, their_counts, strict=True):
            count.copy_(other)

    @staticmethod
    def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """What is averaged, and the whole numbers, which are copied."""
        tensors = [*model.parameters(), *model.buffers()]
        averaged = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        return averaged, [tensor for tensor in tensors if not tensor.is_floating_point()]
