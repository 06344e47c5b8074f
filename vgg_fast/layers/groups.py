"""Which layers that follow each other run as one operator.

    Conv2d(3x3) → ReLU → MaxPool2d(2)    conv3x3_relu_pool
    Conv2d(3x3) → ReLU                   conv3x3_relu
    Conv2d(3x3)                          conv3x3
    MaxPool2d(2)                         max_pool2x2

A layer takes part if it is exactly of one of these types, with settings that the operators serve,
and if calling it does nothing else. An ``nn.Identity`` or an inactive ``nn.Dropout`` may stand
between. The layers are looked at anew at every call, since a cache would have to learn of every
hook, patch and replacement; that takes less time than calling the modules that a group spares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from vgg_fast.layers.convolution import Conv3x3
from vgg_fast.layers.pooling import MaxPool2x2, pools_2x2

__all__ = ["Group", "group", "is_called_plainly", "keeps_format"]


class Group:
    """Layers that run as one operator.

    Attributes:
        operator: ``conv3x3``, ``conv3x3_relu``, ``conv3x3_relu_pool`` or ``max_pool2x2``.
        layers: in the order of their calls.
        conv: the convolution; None for ``max_pool2x2``.
    """

    __slots__ = ("conv", "layers", "operator")

    def __init__(self, operator: str, layer: nn.Module, conv: Any = None) -> None:
        self.operator = operator
        self.layers = [layer]
        self.conv = conv


def group(layers: Iterable[nn.Module]) -> list[Group | nn.Module]:
    """The same layers in the same order, those that run as one operator in groups."""
    steps: list[Group | nn.Module] = []
    last: Group | None = None  # that more may be added to
    between: list[nn.Module] = []  # behind `last`, and nothing happens in them
    for layer in layers:
        role = _role(layer)
        if role == "nothing" and last is not None:
            between.append(layer)
            continue
        longer = _LONGER.get((last.operator, role)) if last is not None and role else None
        if longer is not None:
            assert last is not None
            last.operator = longer
            last.layers += (*between, layer)
        else:
            steps += between
            last = None
            if role == "convolution":
                last = Group("conv3x3", layer, layer)
            elif role == "pooling":
                last = Group("max_pool2x2", layer)
            steps.append(last or layer)
        between = []
    return steps + between


_LONGER = {
    ("conv3x3", "relu"): "conv3x3_relu",
    ("conv3x3_relu", "pooling"): "conv3x3_relu_pool",
}


def is_called_plainly(module: Any, forward: Any) -> bool:
    """Whether a call of ``module`` runs the function ``forward``, and nothing else."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or type(module).forward is not forward
        or "forward" in module.__dict__
    )


def keeps_format(layer: nn.Module) -> bool:
    """Whether the layer's result has the memory format of its input, whichever that is."""
    forward = _KEEP_FORMAT.get(type(layer))
    return forward is not None and is_called_plainly(layer, forward)


def _role(layer: nn.Module) -> str | None:
    # Exact types: a subclass, such as a parametrization or a sharded weight makes, may do more.
    found = _ROLES.get(type(layer))
    if found is None:
        return None
    role, forward, is_served = found
    if is_served is not None and not is_served(layer):
        return None
    return role if is_called_plainly(layer, forward) else None


def _is_inactive(dropout: nn.Module) -> bool:
    return not dropout.training


# With each type, the forward that a group stands for: somebody may put another into the class. The
# settings are asked of an nn.Conv2d as of a Conv3x3, so that one that is put in later takes part.
_ROLES: dict[type, tuple[str, Any, Callable[[Any], bool] | None]] = {
    nn.Conv2d: ("convolution", nn.Conv2d.forward, Conv3x3._has_served_settings),
    Conv3x3: ("convolution", Conv3x3.forward, Conv3x3._has_served_settings),
    nn.ReLU: ("relu", nn.ReLU.forward, None),
    nn.MaxPool2d: ("pooling", nn.MaxPool2d.forward, pools_2x2),
    MaxPool2x2: ("pooling", MaxPool2x2.forward, pools_2x2),
    nn.Identity: ("nothing", nn.Identity.forward, None),
    nn.Dropout: ("nothing", nn.Dropout.forward, _is_inactive),
}
# No Dropout: it draws its mask in the order of the map's memory.
_KEEP_FORMAT: dict[type, Any] = {
    layer: layer.forward for layer in (nn.ReLU, nn.LeakyReLU, nn.Identity)
}
