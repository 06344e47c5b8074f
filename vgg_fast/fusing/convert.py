"""fuse() and unfuse(): this package's layers in the place of torch's, at any depth of a model.

    nn.Conv2d, 3x3, stride 1, padding 1 or 0    becomes    Conv3x3
    nn.MaxPool2d(2)                             becomes    MaxPool2x2
    nn.Linear of 2^20 weights or more           becomes    Linear, for few rows on a CPU
    nn.Sequential                               becomes    FusedSequential

Each is a subclass of what it replaces and computes the same when it is called on its own, so a
layer becomes one by a change of its class: its parameters, buffers, hooks, attributes, and every
place where it stands, remain. What runs as one operator is decided by a FusedSequential at each
call (vgg_fast/layers/sequential.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, overload

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from vgg_fast.layers import Conv3x3, Linear, MaxPool2x2, why_not_conv3x3, why_not_max_pool2x2
from vgg_fast.layers.sequential import fused_class, unfused_class

__all__ = ["FusionReport", "fuse", "unfuse"]

# Of a linear layer whose weights take longer to read than the layer's result to turn round.
_MANY_WEIGHTS = 1 << 20


@dataclass
class FusionReport:
    """What :func:`fuse` or :func:`unfuse` did.

    Attributes:
        changed: (name, what became of it) of each layer that was replaced.
        left: (name, the reason) of each convolution or pooling that was not.
    """

    changed: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.changed)} replaced, {len(self.left)} left as they were"]
        lines += [f"  {name}: {what}" for name, what in self.changed]
        lines += [f"  {name} left: it {why}" for name, why in self.left]
        return "\n".join(lines)


@overload
def fuse(
    model: nn.Module, *, inplace: bool = ..., return_report: Literal[False] = ...
) -> nn.Module: ...
@overload
def fuse(
    model: nn.Module, *, inplace: bool = ..., return_report: Literal[True]
) -> tuple[nn.Module, FusionReport]: ...
def fuse(
    model: nn.Module, *, inplace: bool = False, return_report: bool = False
) -> nn.Module | tuple[nn.Module, FusionReport]:
    """Put this package's layers in the place of torch's, wherever they stand in ``model``.

    The model computes what it computed, however its parts are called, and keeps its printout, its
    ``state_dict`` keys and its memory formats: each new layer is a subclass of the old one at the
    same place, with the same Parameters (an optimizer that holds them goes on working, and training
    either model trains both). Slices, hooks, children that are exchanged later, ``deepcopy`` and
    pickle work as with torch's layers.

    Replaced are 3x3 convolutions with stride 1, dilation 1 and one group, without padding or with
    padding 1 in any of torch's modes; 2x2 max pooling; ``nn.Sequential``, which then runs a
    convolution with what follows (batch norm in eval mode, ReLU or LeakyReLU, pooling) as one
    operator; and linear layers of 2^20 weights or more, with a bias, which are read faster for few
    rows on a CPU. Left alone, and reported: other convolutions and poolings, and subclasses and
    layers with a parametrization of ``torch.nn.utils.parametrize``.

    The copy shares parameters and buffers with ``model``: to train or load one changes the other.
    A conversion or move (``.half()``, ``.to(device)``) changes the parameters in both, but the
    buffers only in one: do it before ``fuse()``, or call ``fuse(copy.deepcopy(model))``.

    Args:
        model: any module; it stays as it is unless ``inplace``.
        inplace: change ``model`` itself; else a copy of its modules that shares their tensors.
        return_report: return ``(fused model, FusionReport)``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``, or was already made into TorchScript.

    >>> model, report = vgg_fast.fuse(torchvision.models.vgg16(), return_report=True)
    >>> print(report)
    """
    report = FusionReport()
    model = _prepare("fuse", model, inplace)
    for name, module in model.named_modules():
        _fuse_layer(name or "(the model)", module, report)
    return (model, report) if return_report else model


@overload
def unfuse(
    model: nn.Module, *, inplace: bool = ..., return_report: Literal[False] = ...
) -> nn.Module: ...
@overload
def unfuse(
    model: nn.Module, *, inplace: bool = ..., return_report: Literal[True]
) -> tuple[nn.Module, FusionReport]: ...
def unfuse(
    model: nn.Module, *, inplace: bool = False, return_report: bool = False
) -> nn.Module | tuple[nn.Module, FusionReport]:
    """Undo :func:`fuse`: torch's layers where this package's stand.

    Takes ``VGG(fused=True)`` and its like as well. Left, and reported: layers that were
    parametrised since, and :class:`~vgg_fast.layers.Conv3x3ReLU` and its like, which a network was
    written with.

    Args:
        model: any module; it stays as it is unless ``inplace``.
        inplace: change ``model`` itself; else a copy of its modules that shares their tensors.
        return_report: return ``(model, FusionReport)``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``, or was already made into TorchScript.
    """
    report = FusionReport()
    model = _prepare("unfuse", model, inplace)
    for name, module in model.named_modules():
        _unfuse_layer(name or "(the model)", module, report)
    return (model, report) if return_report else model


# ------------------------------------------------------------------------------------------ a layer

# torch's layer, this package's, and why one can't become the other
_LAYERS: list[tuple[type[nn.Module], type[nn.Module], Callable[..., str | None]]] = [
    (nn.Conv2d, Conv3x3, why_not_conv3x3),
    (nn.MaxPool2d, MaxPool2x2, why_not_max_pool2x2),
]


def _fuse_layer(name: str, module: nn.Module, report: FusionReport) -> None:
    if isinstance(module, nn.Sequential):
        if type(module).forward is nn.Sequential.forward:
            module.__class__ = fused_class(type(module))
        return
    if type(module) is nn.Linear:
        weights = module.in_features * module.out_features
        if weights >= _MANY_WEIGHTS and module._parameters.get("bias") is not None:
            _become(Linear, name, module, report)
        return
    for torchs, ours, why_not in _LAYERS:
        if isinstance(module, torchs) and not isinstance(module, ours):
            reason = _why_not_exact(module, torchs) or why_not(module)
            if reason is None:
                _become(ours, name, module, report)
            else:
                report.left.append((name, reason))


def _unfuse_layer(name: str, module: nn.Module, report: FusionReport) -> None:
    if isinstance(module, nn.Sequential):
        module.__class__ = unfused_class(type(module))
        return
    for ours, torchs in ((Conv3x3, nn.Conv2d), (MaxPool2x2, nn.MaxPool2d), (Linear, nn.Linear)):
        if type(module) is ours:
            _become(torchs, name, module, report)
        elif isinstance(module, ours):
            reason = _why_not_exact(module, ours)
            assert reason is not None
            report.left.append((name, reason))


def _become(cls: type[nn.Module], name: str, module: nn.Module, report: FusionReport) -> None:
    before, after = _public_name(type(module)), _public_name(cls)
    module.__class__ = cls
    report.changed.append((name, f"{before} is now {after}"))


def _public_name(cls: type[nn.Module]) -> str:
    return f"{'vgg_fast.layers' if cls.__module__.startswith('vgg_fast') else 'nn'}.{cls.__name__}"


def _why_not_exact(module: nn.Module, cls: type[nn.Module]) -> str | None:
    """Why ``module`` may do something else than ``cls`` does; None if it can't."""
    if isinstance(module, LazyModuleMixin):
        return "is lazy and not initialised yet; run one batch through the model first"
    if nn.utils.parametrize.is_parametrized(module):
        return "has a parametrization, such as weight_norm"
    if type(module) is not cls:
        return f"is a {type(module).__name__}, not a {cls.__name__} itself"
    if "qconfig" in vars(module):
        return "has a qconfig: quantise the model before it is fused"
    return None


# ------------------------------------------------------------------------------------------- both


def _prepare(function: str, model: nn.Module, inplace: bool) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{function}: the model is TorchScript already; {function} the Python model, then "
            "script that"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be an nn.Module, but it is a {type(model)}")
    if inplace:
        return model
    # deepcopy takes what it finds in the memo for copied already: new modules, the same tensors.
    # vars() has those that are computed, as by pruning, which deepcopy would refuse.
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        tensors += (value for value in vars(module).values() if isinstance(value, torch.Tensor))
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for old, new in zip(model.modules(), copied.modules(), strict=True):
        new.training = old.training  # torch.fx's GraphModule forgets it
    return copied
