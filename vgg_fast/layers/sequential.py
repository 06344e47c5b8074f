"""``nn.Sequential`` that runs its children in groups: a convolution with what follows it.

Several layers become one operator here, in the container, at the moment when it is called, and only
where nobody looks at what lies between them (groups.py says when that is). The children stay what
they are: called by themselves, sliced off, hooked or replaced, each computes what it always did.

Within a run of groups maps stay channels_last; at its end they get the format that torch's layers
would have given them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, List, Optional  # noqa: UP035  (TorchScript's spelling)

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vgg_fast._layout import (
    is_served_dtype,
    lay_out,
    lay_out_as_torch,
    no_elements,
    suggests_channels_last,
)
from vgg_fast.functional import conv3x3, conv3x3_relu, conv3x3_relu_pool, max_pool2x2
from vgg_fast.layers.convolution import is_served
from vgg_fast.layers.groups import Group, group, is_called_plainly, keeps_format
from vgg_fast.layers.pooling import is_poolable

__all__ = ["FusedSequential", "GroupedForward", "fused_class", "unfused_class"]


class GroupedForward(nn.Sequential):
    """The forward of every Sequential that runs its children in groups."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Sequential``, which takes what its first child takes."""
        if torch.jit.is_scripting():
            for module in self:
                input = module(input)
        else:
            input = _run(self, input)
        return input


class FusedSequential(GroupedForward):
    """``nn.Sequential`` that runs a convolution, its ReLU and its pooling as one operator.

    Equivalent to: ``nn.Sequential(*modules)``, also in its children, keys and printout. A child
    with a hook, a parametrization, a ``forward`` of its own, or of a type or with settings that the
    operators don't serve, is called as ``nn.Sequential`` does.
    """

    def _get_name(self) -> str:
        return "Sequential"


_fused_classes: dict[type, type[nn.Sequential]] = {nn.Sequential: FusedSequential}


def fused_class(sequential: type[nn.Sequential]) -> type[nn.Sequential]:
    """A subclass of ``sequential``, itself one of nn.Sequential, that runs children in groups.

    It has the name of ``sequential``, whose instances can become its own and back.
    """
    if sequential not in _fused_classes:
        members = {
            "__doc__": sequential.__doc__,
            "__module__": sequential.__module__,
            "__qualname__": sequential.__qualname__,
            "__reduce_ex__": _reduce,
            "_unfused_class": sequential,
        }
        bases = (GroupedForward, sequential)
        _fused_classes[sequential] = type(sequential.__name__, bases, members)
    return _fused_classes[sequential]


def unfused_class(sequential: type[nn.Sequential]) -> type[nn.Sequential]:
    """What :func:`fused_class` was given; ``sequential`` itself, if it didn't come from there."""
    if sequential is FusedSequential:
        return nn.Sequential
    return sequential.__dict__.get("_unfused_class", sequential)


def _reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
    """Pickle and deepcopy find a class by its name, and this one has another's."""
    state = getattr(module, "__getstate__", lambda: module.__dict__)()
    return _new, (unfused_class(type(module)),), state


def _new(sequential: type[nn.Sequential]) -> nn.Module:
    cls = fused_class(sequential)
    return cls.__new__(cls)


def _run(sequential: nn.Sequential, input: Any) -> Any:
    """What the children make of ``input``, one after another."""
    # What isn't a Tensor may be torch.fx's stand-in for one.
    if not isinstance(input, Tensor) or _has_global_hooks():
        for child in sequential:
            input = child(input)
        return input
    steps = group(_flat(sequential))
    # Under autocast a trace records the casts of what runs here, but not of what is scripted.
    if torch.jit.is_tracing() and not torch.is_autocast_enabled(input.device.type):
        return _trace(steps, input)
    # The input of a run of groups, between which maps are channels_last, and the run's weights.
    run: list[Tensor] = []
    for step in steps:
        if isinstance(step, Group) and _takes(step, input):
            if not run:
                run.append(input)
            if step.conv is not None:
                run.append(step.conv.weight)
            input = _compute(step, input)
            if _has_no_format(input):
                input, run = _end(run, input), []
            continue
        for layer in step.layers if isinstance(step, Group) else (step,):
            if run and not keeps_format(layer):
                input, run = _end(run, input), []
            input = layer(input)
    return _end(run, input) if run else input


def _end(run: list[Tensor], output: Tensor) -> Tensor:
    """The result of a run in torch's format: channels_last if its input or a weight is."""
    return lay_out(output, any(map(suggests_channels_last, run)))


def _flat(sequential: nn.Sequential) -> Iterator[nn.Module]:
    """The children, and in the place of one that runs in groups itself, its own."""
    for child in sequential._modules.values():
        if isinstance(child, GroupedForward) and is_called_plainly(child, GroupedForward.forward):
            yield from _flat(child)
        else:
            yield child


def _takes(group: Group, input: Any) -> bool:
    if not isinstance(input, Tensor) or input.dim() != 4:
        return False
    if group.conv is None:
        return is_poolable(input)
    if not is_served(input, group.conv.weight):
        return False
    # A ReLU that isn't in place makes NCHW of a map that may be either: torch's has to run.
    return group.operator == "conv3x3" or not (
        group.conv.weight.size(0) == 1 or input.size(2) * input.size(3) == 1
    )


def _compute(group: Group, input: Tensor) -> Tensor:
    if group.conv is None:
        return max_pool2x2(input)
    return _OPERATORS[group.operator](input, group.conv.weight, group.conv.bias)


_OPERATORS = {
    "conv3x3": conv3x3,
    "conv3x3_relu": conv3x3_relu,
    "conv3x3_relu_pool": conv3x3_relu_pool,
}


def _has_no_format(map: Tensor) -> bool:
    """Whether ``map`` may be taken for NCHW and for channels_last."""
    return map.size(1) == 1 or map.size(2) * map.size(3) == 1


def _has_global_hooks() -> bool:
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


# ---------------------------------------------------------------------------------- torch.jit.trace


def _trace(steps: list[Group | nn.Module], input: Any) -> Any:
    """:func:`_run` for tracing, which keeps nothing that was chosen by the sizes of one input."""
    run: list[Group] = []
    for step in steps:
        if isinstance(step, Group) and input.dim() == 4 and is_served_dtype(input):
            run.append(step)
            continue
        input = _trace_run(run, input)
        run = []
        for layer in step.layers if isinstance(step, Group) else (step,):
            input = layer(input)
    return _trace_run(run, input)


def _trace_run(groups: list[Group], input: Any) -> Any:
    if not groups:
        return input
    convs = [group.conv for group in groups if group.conv is not None]
    weights = [conv.weight for conv in convs]
    # A list of tensors is traceable, one with None isn't.
    biases = [no_elements(conv.weight) if conv.bias is None else conv.bias for conv in convs]
    operators = [group.operator for group in groups]
    # A script, because its loop and its choice of a format stay in the trace.
    return torch.jit.script(_traced_run)(input, operators, weights, biases)


def _traced_run(
    input: Tensor,
    operators: List[str],  # noqa: UP006  (TorchScript's spelling)
    weights: List[Tensor],  # noqa: UP006
    biases: List[Tensor],  # noqa: UP006
) -> Tensor:
    output, channels_last_weight, layer = input, False, 0
    for operator in operators:
        if operator == "max_pool2x2":
            output = max_pool2x2(output)
            continue
        weight = weights[layer]
        bias: Optional[Tensor] = None
        if biases[layer].numel() > 0:
            bias = biases[layer]
        layer += 1
        channels_last_weight = channels_last_weight or suggests_channels_last(weight)
        if operator == "conv3x3_relu_pool":
            output = conv3x3_relu_pool(output, weight, bias)
        elif operator == "conv3x3_relu":
            output = conv3x3_relu(output, weight, bias)
        else:
            output = conv3x3(output, weight, bias)
    return lay_out_as_torch(output, input, channels_last_weight)
