"""Which layers that follow each other run as one operator.

    Conv2d(3x3) [→ BatchNorm2d] → ReLU → MaxPool2d(2)    conv3x3_relu_pool
    Conv2d(3x3) [→ BatchNorm2d] → MaxPool2d(2) → ReLU    conv3x3_relu_pool
    Conv2d(3x3) [→ BatchNorm2d] → ReLU                   conv3x3_relu
    Conv2d(3x3) [→ BatchNorm2d]                          conv3x3
    MaxPool2d(2)                                         max_pool2x2

The ReLU may be a LeakyReLU if it comes before the pooling: behind it, its rounding can't make two
pixels of a window equal, and torch's gradient may be another one's. A norm in eval mode, of which
nothing wants a gradient, is folded into the convolution; one in training runs behind it, as one
operator with the ReLU, and on CPUs alone (norm.py). On a GPU a convolution that pads with anything
but zeros stays torch's.

A layer takes part if it is exactly of one of these types, with settings that the operators serve,
and if calling it does nothing else. An ``nn.Identity`` or an inactive ``nn.Dropout`` may stand
between. The layers are looked at anew at every call, since a cache would have to learn of every
hook, patch and replacement; that takes less time than calling the modules that a group spares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import nn

from vgg_fast.layers.convolution import Conv3x3
from vgg_fast.layers.norm import is_scale_of, normalises_the_batch
from vgg_fast.layers.pooling import MaxPool2x2, pools_2x2

__all__ = ["Group", "group", "is_called_plainly", "keeps_format"]


class Group:
    """Layers that run as one operator, or as a convolution with a norm or a pooling behind it.

    Attributes:
        operator: ``conv3x3``, ``conv3x3_relu``, ``conv3x3_relu_pool`` or ``max_pool2x2``.
        layers: in the order of their calls.
        conv: the convolution; None for ``max_pool2x2``.
        padding: of the convolution, as the operators call it.
        norm: the batch norm behind the convolution that is its scale; None if there is none.
        batch_norm: the one that takes the batch's statistics; then the operator is what the layers
            would be without it.
        negative_slope: of the ReLU.
        pools_first: whether a pooling comes before the ReLU; behind ``conv3x3`` there is none.
        ceil_mode: of the pooling.
    """

    __slots__ = (
        "batch_norm", "ceil_mode", "conv", "layers", "negative_slope", "norm", "operator",
        "padding", "pools_first",
    )  # fmt: skip

    def __init__(self, operator: str, layer: nn.Module) -> None:
        self.operator = operator
        self.layers = [layer]
        self.conv: Any = None
        self.padding = "zeros"
        self.norm: Any = None
        self.batch_norm: Any = None
        self.negative_slope = 0.0
        self.pools_first = self.ceil_mode = False

    def takes(self, role: str, layer: Any, setting: Any) -> bool:
        """Whether the operator computes ``layer`` as well; then all but ``layers`` says so."""
        if role == "relu":
            if self.operator != "conv3x3" or (setting and self.pools_first):
                return False
            self.operator = "conv3x3_relu_pool" if self.pools_first else "conv3x3_relu"
            self.negative_slope = setting
        elif role == "pooling":
            if self.operator == "conv3x3_relu":
                self.operator = "conv3x3_relu_pool"
            elif self.operator == "conv3x3" and not self.pools_first:
                self.pools_first = True
            else:
                return False
            self.ceil_mode = layer.ceil_mode
        elif role == "norm":
            if self.operator != "conv3x3" or self.pools_first:
                return False
            if self.norm is not None or self.batch_norm is not None:
                return False
            if not layer.training and is_scale_of(layer, self.conv):
                self.norm = layer
            elif normalises_the_batch(layer, self.conv):
                self.batch_norm = layer
            else:
                return False
        else:
            return False
        return True


def group(layers: Iterable[nn.Module], without: Collection[str] = ()) -> list[Group | nn.Module]:
    """The same layers in the same order, those that run as one operator in groups.

    Args:
        layers: of a Sequential.
        without: "norm", "pooling" or "ceil_mode", for layers that are to be in no group.
    """
    steps: list[Group | nn.Module] = []
    last: Group | None = None  # that more may be added to
    between: list[nn.Module] = []  # behind `last`, and nothing happens in them
    layer: Any
    for layer in layers:
        role, setting = _role(layer)
        if role == "nothing" and last is not None:
            between.append(layer)
            continue
        if without and (role in without or ("ceil_mode" in without and _is_ceiled(role, layer))):
            role = None
        if last is not None and role is not None and last.takes(role, layer, setting):
            last.layers += (*between, layer)
        else:
            steps += between
            last = None
            if role == "convolution":
                last = Group("conv3x3", layer)
                last.conv, last.padding = layer, setting
            elif role == "pooling":
                last = Group("max_pool2x2", layer)
                last.ceil_mode = layer.ceil_mode
            steps.append(last or layer)
        between = []
    return steps + between


def is_called_plainly(module: Any, forward: Any) -> bool:
    """Whether a call of ``module`` runs the function ``forward``, and nothing else."""
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or module._compiled_call_impl is not None
        or type(module).forward is not forward
    )


def keeps_format(layer: nn.Module) -> bool:
    """Whether the layer's result has the memory format of its input, whichever that is."""
    forward = _KEEP_FORMAT.get(type(layer))
    return forward is not None and is_called_plainly(layer, forward)


def _role(layer: nn.Module) -> tuple[str | None, Any]:
    """What the layer may be in a group, and the setting that the operators are given of it."""
    # Exact types: a subclass, such as a parametrization or a sharded weight makes, may do more.
    found = _ROLES.get(type(layer))
    if found is None:
        return None, None
    role, forward, read = found
    setting = 0.0
    if read is not None:
        setting = read(layer)
        if not setting:
            return None, None
    return (role, setting) if is_called_plainly(layer, forward) else (None, None)


def _is_ceiled(role: str | None, layer: Any) -> bool:
    return role == "pooling" and layer.ceil_mode


def _is_evaluated(layer: nn.Module) -> bool:
    return not layer.training


def _slope(relu: nn.LeakyReLU) -> float:
    """Of what pools as it falls: not negative, and of 0, where torch makes NaN of an infinity."""
    slope = relu.negative_slope
    return slope if isinstance(slope, (int, float)) and 0 < slope < math.inf else 0.0


# With each type, the forward that a group stands for: somebody may put another into the class. The
# settings, False if they aren't served, are asked of an nn.Conv2d as of a Conv3x3, so that one that
# is put in later takes part.
_ROLES: dict[type, tuple[str, Any, Callable[[Any], Any] | None]] = {
    nn.Conv2d: ("convolution", nn.Conv2d.forward, Conv3x3._served_padding),
    Conv3x3: ("convolution", Conv3x3.forward, Conv3x3._served_padding),
    nn.BatchNorm2d: ("norm", nn.BatchNorm2d.forward, None),
    nn.ReLU: ("relu", nn.ReLU.forward, None),
    nn.LeakyReLU: ("relu", nn.LeakyReLU.forward, _slope),
    nn.MaxPool2d: ("pooling", nn.MaxPool2d.forward, pools_2x2),
    MaxPool2x2: ("pooling", MaxPool2x2.forward, pools_2x2),
    nn.Identity: ("nothing", nn.Identity.forward, None),
    nn.Dropout: ("nothing", nn.Dropout.forward, _is_evaluated),
}
# No Dropout: it draws its mask in the order of the map's memory.
_KEEP_FORMAT: dict[type, Any] = {
    layer: layer.forward for layer in (nn.ReLU, nn.LeakyReLU, nn.Identity)
}
