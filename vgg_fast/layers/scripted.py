"""A Sequential's groups in TorchScript, where it can't look at its children at each call.

They are found once, when the Sequential is scripted, and only what can't change afterwards takes
part: no batch norm and no dropout, whose mode is a call's, and no pooling in ceil mode, which takes
part by the sizes of its map. Whatever the operators don't serve at a call is torch's, as elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, max_pool2d, relu

from vgg_fast.functional import conv3x3, conv3x3_relu, conv3x3_relu_pool
from vgg_fast.layers.convolution import Conv3x3, is_served
from vgg_fast.layers.groups import Group, group

__all__ = ["ALONE", "Part", "activate", "compute", "is_computed", "parts"]

ALONE = ""  # the operator of a child that is called by itself

KeptWithout = Callable[[Group, "list[Group | nn.Module]", "list[Tensor]"], str]
"""Of sequential.py: what a group is to be without for the sake of what follows it."""


@dataclass
class Part:
    """What a child is in its group."""

    operator: str = ALONE  # a convolution's; "in a group" for what runs with the one before it
    negative_slope: float = 0.0
    ends: bool = True  # whether what follows takes a map in torch's format


def parts(children: Iterable[nn.Module], kept_without: KeptWithout) -> list[Part]:
    """A part for each of a Sequential's children, in the order of their calls."""
    steps = group(children, without=("norm", "ceil_mode"))
    found: list[Part] = []
    for index, step in enumerate(steps):
        if isinstance(step, Group) and type(step.conv) is Conv3x3:
            found += _of_group(step, steps[index + 1 :], kept_without)
        else:
            layers = step.layers if isinstance(step, Group) else [step]
            found += [Part() for _ in layers]
    ends = True
    for part in reversed(found):
        if part.operator != "in a group":
            part.ends, ends = ends, part.operator == ALONE
    return found


def _of_group(
    step: Group, behind: list[Group | nn.Module], kept_without: KeptWithout
) -> list[Part]:
    taken = step.layers
    # A ReLU behind the pooling may get a map of one pixel, which has no format.
    if step.pools_first or any(isinstance(layer, nn.Dropout) for layer in taken):
        return [Part("conv3x3"), *(Part() for _ in taken[1:])]
    # As if gradients were wanted, and the input in channels_last: whoever calls decides on both.
    channels_last = torch.empty(1, 2, 2, 2).to(memory_format=torch.channels_last)
    without = kept_without(step, behind[::-1], [channels_last])
    if without != "nothing":
        shorter = group(taken, without=(without,))[0]
        assert isinstance(shorter, Group)
        step = shorter
    count = 1 if step.operator == "conv3x3" else len(step.layers)
    together = [Part("in a group") for _ in range(count - 1)]
    first = Part(step.operator, step.negative_slope)
    return [first, *together, *(Part() for _ in taken[count:])]


# ------------------------------------------------------------------- compiled as TorchScript


def is_computed(operator: str, input: Tensor, weight: Tensor, padding: str) -> bool:
    """Whether the operator takes this input, and its result has one format."""
    if input.dim() != 4 or not is_served(input, weight, padding):
        return False
    height, width = input.size(2), input.size(3)
    if padding == "valid":
        height, width = height - 2, width - 2
    if operator == "conv3x3_relu_pool" and (height < 2 or width < 2):
        return False
    return weight.size(0) > 1 and height * width > 1


def compute(
    operator: str,
    input: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    negative_slope: float,
    padding: str,
) -> Tensor:
    """The operator of that name, in channels_last."""
    if operator == "conv3x3":
        return conv3x3(input, weight, bias, padding=padding)
    if operator == "conv3x3_relu":
        return conv3x3_relu(input, weight, bias, negative_slope=negative_slope, padding=padding)
    return conv3x3_relu_pool(input, weight, bias, negative_slope=negative_slope, padding=padding)


def activate(operator: str, map: Tensor, negative_slope: float) -> Tensor:
    """What the operator does behind its convolution, by torch."""
    if operator == "conv3x3":
        return map
    map = relu(map) if negative_slope == 0 else leaky_relu(map, negative_slope)
    return max_pool2d(map, 2) if operator == "conv3x3_relu_pool" else map
