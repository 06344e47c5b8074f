"""fuse() and unfuse(): put this package's layers into models that other people wrote, and back.

Inside every ``nn.Sequential``, at any depth:

    Conv2d(3x3) → ReLU → MaxPool2d(2)    becomes    Conv3x3ReLUPool, Identity, Identity
    Conv2d(3x3) → ReLU                   becomes    Conv3x3ReLU, Identity
    MaxPool2d(2) alone                   becomes    MaxPool2x2
    Linear of 2^20 weights or more       becomes    this package's Linear, for few rows on a CPU

A convolution that no ReLU follows is left as it is: there is nothing to fuse with it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, overload

import torch
from torch import nn

from vgg_fast.layers import (
    Conv3x3,
    Conv3x3ReLU,
    Conv3x3ReLUPool,
    Linear,
    MaxPool2x2,
    why_not_conv3x3,
)

__all__ = ["FusionReport", "fuse", "unfuse"]

# Where a replaced layer keeps what stood there, for unfuse(): in a tuple, so that nn.Module doesn't
# take it for a child.
_REPLACED = "_vgg_fast_replaced"

# What a report names where it isn't in a Sequential. Models have many linear layers elsewhere.
_FUSABLE = ("convolution", "pooling")

# Of a linear layer whose weights take longer to read than its result takes to transpose.
_MANY_WEIGHTS = 1 << 20


@dataclass
class FusionReport:
    """What :func:`fuse` or :func:`unfuse` did.

    Attributes:
        changed: (name, what became of it) of each group of layers that was replaced.
        left: (name, the reason) of each convolution or pooling that was not, and of each linear
            layer that would have been, were it plain.
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
    """Replace 3×3 convolutions, their ReLU and their pooling by fused layers.

    Linear layers of 2^20 weights or more, with a bias, inside an ``nn.Sequential`` become
    :class:`vgg_fast.layers.Linear`, which reads the weights for few rows faster on a CPU, and is
    ``nn.Linear`` elsewhere.

    The fused layer stands at the convolution's index and ``nn.Identity`` at those of what it
    absorbed, so ``state_dict`` keys stay as they are. The Parameters (and buffers) are the model's
    own, not copies: an optimizer that holds them goes on working, and training either model trains
    both.

    Left alone, and reported: layers outside an ``nn.Sequential`` (only there is the order of
    execution certain), in a Sequential with a ``forward`` of its own, with hooks or
    parametrizations, of a subclass, standing at more than one place, lazy ones not yet
    initialised, convolutions that aren't 3x3 with stride 1 and padding 1, or that something other
    than a ReLU follows, such as batch normalisation.

    A model that takes features from the middle of a Sequential (``features[:5]``) gets the same
    ones as long as the cut doesn't part a convolution from its ReLU or pooling. Where it does, as
    for features before the ReLU, leave that part unfused or use
    :class:`vgg_fast.layers.Conv3x3`.

    Tools that know layers by their type (quantisation, ``torch.fx``) take the model before it is
    fused, or after :func:`unfuse`.

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
    places = Counter(id(child) for _, parent in model.named_modules() for child in _slots(parent))
    for name, parent in list(model.named_modules()):
        if _runs_in_order(parent):
            _fuse_sequential(name, parent, places, report)
        else:
            _report_outside(name, parent, report)
    if _role(model) in _FUSABLE:
        report.left.append(("(the model)", "stands outside an nn.Sequential"))
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
    """Undo :func:`fuse`: put plain torch layers where this package's layers stand.

    Takes ``VGG(fused=True)`` and its like as well. What :func:`fuse` replaced comes back as it was
    (``nn.ReLU(inplace=True)``, ``padding="same"``), with the Parameters of the fused model.

    A fused layer without an ``nn.Identity`` behind it for each layer that it stands for is left
    and reported: its ReLU could only come back by renumbering what follows.

    Arguments, sharing of Parameters and errors as :func:`fuse`.
    """
    report = FusionReport()
    model = _prepare("unfuse", model, inplace)
    for name, parent in list(model.named_modules()):
        if _runs_in_order(parent):
            _unfuse_sequential(name, parent, report)
        else:
            for key, child in parent.named_children():
                if isinstance(child, (Conv3x3, Linear, MaxPool2x2)):
                    report.left.append((_join(name, key), "stands outside an nn.Sequential"))
    if isinstance(model, (Conv3x3, Linear, MaxPool2x2)):
        report.left.append(("(the model)", "stands outside an nn.Sequential"))
    return (model, report) if return_report else model


# ------------------------------------------------------------------------------------------ fusing


def _fuse_sequential(
    name: str, parent: nn.Sequential, places: Counter[int], report: FusionReport
) -> None:
    keys = list(parent._modules)
    i = 0
    while i < len(keys):
        here = _join(name, keys[i])
        layers: list[nn.Module | None] = [parent._modules[key] for key in keys[i : i + 3]]
        role = _role(layers[0])
        taken = 1
        if role == "convolution":
            why_not = _why_not_conv(layers, places)
            if why_not is None:
                taken = 3 if len(layers) == 3 and _why_not_pool(layers[2]) is None else 2
                _replace_conv(parent, keys[i : i + taken])
                what = ["Conv2d", "ReLU", "MaxPool2d"][:taken]
                fused = type(parent._modules[keys[i]]).__name__
                report.changed.append((here, f"{' → '.join(what)} is now {fused}"))
            else:
                report.left.append((here, why_not))
        elif role == "pooling":
            why_not = _why_not_pool(layers[0])
            if why_not is None:
                _put(parent, keys[i], MaxPool2x2(), layers[0])
                report.changed.append((here, "MaxPool2d is now MaxPool2x2"))
            else:
                report.left.append((here, why_not))
        elif role == "linear":
            why_not = _why_not_linear(layers[0], places)
            if why_not is None:
                _replace_linear(parent, keys[i])
                report.changed.append((here, "Linear is now vgg_fast.layers.Linear"))
            else:
                report.left.append((here, why_not))
        i += taken


def _why_not_conv(layers: list[nn.Module | None], places: Counter[int]) -> str | None:
    conv = layers[0]
    assert isinstance(conv, nn.Module)
    if isinstance(conv, nn.Conv2d) and isinstance(conv.weight, nn.parameter.UninitializedParameter):
        return why_not_conv3x3(conv)
    why_not = _why_not_plain(conv, nn.Conv2d)
    if why_not is not None:
        return why_not
    assert isinstance(conv, nn.Conv2d)
    why_not = why_not_conv3x3(conv)
    if why_not is not None:
        return why_not
    if places[id(conv)] > 1:
        return f"stands at {places[id(conv)]} places of the model"
    if len(layers) < 2 or layers[1] is None:
        return "is the last of its Sequential: no ReLU follows"
    if not isinstance(layers[1], nn.ReLU):
        return f"is followed by {type(layers[1]).__name__}, not by a ReLU"
    why_not = _why_not_plain(layers[1], nn.ReLU)
    return why_not and f"is followed by a ReLU that {why_not}"


def _why_not_pool(pool: nn.Module | None) -> str | None:
    if not isinstance(pool, nn.MaxPool2d):
        return "is not an nn.MaxPool2d"
    why_not = _why_not_plain(pool, nn.MaxPool2d)
    if why_not is not None:
        return why_not
    for name, served in (
        ("kernel_size", (2, (2, 2))),
        ("stride", (2, (2, 2))),
        ("padding", (0, (0, 0))),
        ("dilation", (1, (1, 1))),
        ("ceil_mode", (False,)),
        ("return_indices", (False,)),
    ):
        value = getattr(pool, name)
        if (tuple(value) if isinstance(value, list) else value) not in served:
            return f"has {name}={value}, not {served[0]}"
    return None


def _why_not_linear(linear: nn.Module | None, places: Counter[int]) -> str | None:
    assert isinstance(linear, nn.Linear)
    why_not = _why_not_plain(linear, nn.Linear)
    if why_not is None and places[id(linear)] > 1:
        why_not = f"stands at {places[id(linear)]} places of the model"
    return why_not


def _why_not_plain(module: nn.Module, layer_type: type[nn.Module]) -> str | None:
    """Why ``module`` may do more than the forward of ``layer_type``; None if it can't."""
    if nn.utils.parametrize.is_parametrized(module):
        return "has a parametrization, such as weight_norm"
    if module._modules:
        return "has layers of its own"
    if "qconfig" in vars(module):
        return "has a qconfig, which fusing would lose"
    if vars(module).get("_compiled_call_impl") is not None:
        return "was compiled on its own"
    if type(module) is not layer_type:
        return f"is a {type(module).__name__}, not an nn.{layer_type.__name__} itself"
    if "forward" in vars(module):
        return "has a forward of its own"
    if any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks")):
        return "has hooks, which fusing would lose"
    if any(name not in ("weight", "bias") for name in (*module._parameters, *module._buffers)):
        return "has parameters or buffers other than weight and bias"
    weighted = layer_type in (nn.Conv2d, nn.Linear, Linear)
    if weighted and not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "has a weight that is computed, such as by weight_norm or pruning"
    return None


def _replace_conv(parent: nn.Sequential, keys: list[str]) -> None:
    conv = parent._modules[keys[0]]
    assert isinstance(conv, nn.Conv2d)
    fused = (Conv3x3ReLU if len(keys) == 2 else Conv3x3ReLUPool).from_conv(conv)
    _put(parent, keys[0], fused, _without_tensors(conv))
    for key in keys[1:]:
        _put(parent, key, nn.Identity(), parent._modules[key])


def _replace_linear(parent: nn.Sequential, key: str) -> None:
    plain = parent._modules[key]
    assert isinstance(plain, nn.Linear)
    layer = Linear(plain.in_features, plain.out_features, device="meta")
    layer._parameters = dict(plain._parameters)
    _put(parent, key, layer, _without_tensors(plain))


def _without_tensors(layer: nn.Module) -> nn.Module:
    """What is remembered holds none: the new layer's are the ones that count."""
    shell = copy.copy(layer)
    shell._parameters = dict.fromkeys(layer._parameters)
    return shell


def _put(parent: nn.Sequential, key: str, layer: nn.Module, replaced: nn.Module | None) -> None:
    assert replaced is not None
    setattr(layer, _REPLACED, (replaced,))
    parent._modules[key] = layer.train(replaced.training)


def _report_outside(name: str, parent: nn.Module, report: FusionReport) -> None:
    container = type(parent).__name__
    for key, child in parent.named_children():
        if _role(child) in _FUSABLE:
            why = f"stands in a {container}, not in a plain nn.Sequential"
            report.left.append((_join(name, key), why))


def _role(module: nn.Module | None) -> str | None:
    if isinstance(module, nn.Conv2d) or (
        module is not None and type(module).__name__.endswith("Conv2d")
    ):
        return "convolution"
    if isinstance(module, nn.Linear) and not isinstance(module, Linear):
        # Without a bias it has nothing to gain; a lazy one isn't initialised yet.
        few = module.in_features * module.out_features < _MANY_WEIGHTS
        return None if few or module._parameters.get("bias") is None else "linear"
    return "pooling" if isinstance(module, nn.MaxPool2d) else None


# ---------------------------------------------------------------------------------------- unfusing


def _unfuse_sequential(name: str, parent: nn.Sequential, report: FusionReport) -> None:
    keys = list(parent._modules)
    for i, key in enumerate(keys):
        layer = parent._modules[key]
        here = _join(name, key)
        if isinstance(layer, MaxPool2x2):
            parent._modules[key] = _original(layer, nn.MaxPool2d(2))
            report.changed.append((here, "MaxPool2x2 is now MaxPool2d"))
        elif isinstance(layer, Linear):
            why_not = _why_not_plain(layer, Linear)
            if why_not is not None:
                report.left.append((here, why_not))
                continue
            plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
            parent._modules[key] = _original_with(layer, plain)
            report.changed.append((here, "vgg_fast.layers.Linear is now Linear"))
        elif isinstance(layer, Conv3x3):
            absorbed = _absorbed(layer)
            behind = keys[i + 1 : i + 1 + len(absorbed)]
            why_not = _why_not_unfuse(layer, [parent._modules[k] for k in behind], len(absorbed))
            if why_not is not None:
                report.left.append((here, why_not))
                continue
            parent._modules[key] = _original_conv(layer)
            for k, default in zip(behind, absorbed, strict=True):
                identity = parent._modules[k]
                assert identity is not None
                parent._modules[k] = _original(identity, default)
            what = " → ".join(["Conv2d", *(type(module).__name__ for module in absorbed)])
            report.changed.append((here, f"{type(layer).__name__} is now {what}"))


def _absorbed(layer: Conv3x3) -> list[nn.Module]:
    if isinstance(layer, Conv3x3ReLUPool):
        return [nn.ReLU(), nn.MaxPool2d(2)]
    return [nn.ReLU()] if isinstance(layer, Conv3x3ReLU) else []


def _why_not_unfuse(layer: Conv3x3, behind: list[nn.Module | None], needed: int) -> str | None:
    if isinstance(layer.weight, nn.parameter.UninitializedParameter):
        return "is lazy and not initialised yet; run one batch through the model first"
    if len(behind) < needed or any(type(module) is not nn.Identity for module in behind):
        return f"lacks the {needed} nn.Identity behind it whose places its layers would take"
    return None


def _original(layer: nn.Module, default: nn.Module) -> nn.Module:
    return getattr(layer, _REPLACED, (default,))[0].train(layer.training)


def _original_conv(layer: Conv3x3) -> nn.Module:
    bias = layer.bias is not None
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, bias=bias, device="meta")
    return _original_with(layer, plain)


def _original_with(layer: nn.Module, default: nn.Module) -> nn.Module:
    """What stood there, with the Parameters of the layer that does now."""
    original = _original(layer, default)
    original._parameters = {name: layer._parameters[name] for name in ("weight", "bias")}
    return original


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
    # deepcopy takes what it finds in the memo as already copied: new modules, the same tensors.
    # vars() has those that are computed, as by pruning, which deepcopy would refuse.
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        tensors += (value for value in vars(module).values() if isinstance(value, torch.Tensor))
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _runs_in_order(module: nn.Module) -> bool:
    """Whether the module does nothing but call its children one after another."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and "forward" not in vars(module)
    )


def _slots(module: nn.Module) -> Iterator[nn.Module]:
    return (child for child in module._modules.values() if child is not None)


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key
