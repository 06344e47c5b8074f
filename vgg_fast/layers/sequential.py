"""``nn.Sequential`` that runs its children in groups: a convolution with what follows it.

Several layers become one operator here, in the container, at the moment when it is called, and only
where nobody looks at what lies between them (groups.py says when that is). The children stay what
they are: called by themselves, sliced off, hooked or replaced, each computes what it always did.

Within a run of groups maps stay channels_last; at its end they get the format that torch's layers
would have given them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, List, Optional  # noqa: UP035  (TorchScript's spelling)

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vgg_fast._layout import (
    is_served_dtype,
    lay_out,
    no_elements,
    suggests_channels_last,
)
from vgg_fast.functional import conv3x3, conv3x3_relu, conv3x3_relu_pool, max_pool2x2
from vgg_fast.layers import bands, scripted
from vgg_fast.layers.convolution import is_served, keeps_channels_last
from vgg_fast.layers.groups import Group, group, is_called_plainly, keeps_format
from vgg_fast.layers.norm import is_folded_cheaply, normalise, scale_and_bias
from vgg_fast.layers.pooling import cuts_windows, is_poolable

__all__ = ["FusedSequential", "GroupedForward", "fused_class", "unfused_class"]


class GroupedForward(nn.Sequential):
    """The forward of every Sequential that runs its children in groups."""

    if TYPE_CHECKING:  # TorchScript would read them as strings
        _script_operators: list[str]
        _script_slopes: list[float]
        _script_ends: list[bool]

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Sequential``, which takes what its first child takes."""
        if torch.jit.is_scripting():
            input = self._run_script(input)
        else:
            input = _run(self, input)
        return input

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by torch.jit.script, whose programs can't look at the children themselves."""
        found = scripted.parts(self._modules.values(), _kept_without)
        attribute = torch.jit.Attribute
        self.__dict__.update(
            _script_operators=attribute([part.operator for part in found], list[str]),
            _script_slopes=attribute([part.negative_slope for part in found], list[float]),
            _script_ends=attribute([part.ends for part in found], list[bool]),
        )
        return self

    def _run_script(self, input: Tensor) -> Tensor:
        """:func:`_run` in TorchScript, by the groups that were there when it was made."""
        in_run, channels_last = False, False
        for i, module in enumerate(self):
            operator, slope = self._script_operators[i], self._script_slopes[i]
            # Asked while this is compiled, for each child.
            if hasattr(module, "_served_padding"):
                padding: str = module._served_padding()  # type: ignore[operator]
                weight: Tensor = module.weight  # type: ignore[assignment]
                bias: Optional[Tensor] = module.bias  # type: ignore[assignment]
                if operator != "" and scripted.is_computed(operator, input, weight, padding):
                    if not in_run:
                        channels_last = suggests_channels_last(input)
                    channels_last = channels_last and keeps_channels_last(padding)
                    channels_last = channels_last or suggests_channels_last(weight)
                    input = scripted.compute(operator, input, weight, bias, slope, padding)
                    in_run = True
                    if self._script_ends[i] or _has_no_format(input):
                        input, in_run = lay_out(input, channels_last), False
                else:
                    if in_run:
                        input, in_run = lay_out(input, channels_last), False
                    input = module(input)
                    if operator != "":
                        input = scripted.activate(operator, input, slope)
            elif operator != "in a group":
                input = module(input)
        return input


class FusedSequential(GroupedForward):
    """``nn.Sequential`` that runs a convolution and what follows it as one operator.

    That is a batch norm in eval mode, a ReLU or LeakyReLU, and a pooling (groups.py lists them).

    Equivalent to: ``nn.Sequential(*modules)``, also in its children, keys and printout. A child
    with a hook, a parametrization, a ``forward`` of its own, or of a type or with settings that the
    operators don't serve, is called as ``nn.Sequential`` does.

    Args:
        *modules: as in ``nn.Sequential``, or one ``OrderedDict`` of them.

    Shape:
        What the first child takes to what the last one returns, in the memory format that torch's
        layers would have given it.
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
    tracing = torch.jit.is_tracing()
    steps = group(_flat(sequential), without=_UNTRACED if tracing else ())
    # Under autocast a trace records the casts of what runs here, but not of what is scripted.
    if tracing and not torch.is_autocast_enabled(input.device.type):
        return _trace(steps, input)
    # What decides the format of a run of groups, between which maps are channels_last: its input,
    # and its weights.
    run: list[Tensor] = []
    steps.reverse()
    while steps:
        step = steps.pop()
        if isinstance(step, Group):
            without = _taken_without(step, input)
            if without == "nothing" and torch.is_grad_enabled():
                without = _kept_without(step, steps, run or [input])
            if without == "nothing":
                if not run:
                    run.append(input)
                if step.conv is not None:
                    if not keeps_channels_last(step.padding):
                        run.clear()
                    run.append(step.conv.weight)
                block = _in_bands(step, steps[-1], input) if steps else None
                if block is not None:
                    run.append(steps.pop().conv.weight)  # type: ignore[union-attr, arg-type]
                    input = bands.block(input, *block)
                else:
                    input = _compute(step, input)
                if _has_no_format(input):
                    input, run = _end(run, input), []
                continue
            if without != "everything":
                steps += reversed(group(step.layers, without=(without,)))
                continue
        for layer in step.layers if isinstance(step, Group) else (step,):
            if run and not keeps_format(layer):
                input, run = _end(run, input), []
            input = layer(input)
    return _end(run, input) if run else input


_UNTRACED = ("norm", "ceil_mode")  # whether they take part depends on tensors, or on sizes


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


def _taken_without(group: Group, input: Any) -> str:
    """What the operator can't compute for this input: "nothing", or what a group is to be without.

    That is "norm" or "pooling", or "everything" where the layers run alone.
    """
    if not isinstance(input, Tensor) or input.dim() != 4:
        return "everything"
    conv = group.conv
    if conv is None:
        return "nothing" if is_poolable(input, group.ceil_mode) else "everything"
    weight = conv.weight
    if not is_served(input, weight, group.padding):
        return "everything"
    is_normed = group.norm is not None or group.batch_norm is not None
    if group.operator == "conv3x3" and not is_normed and not group.pools_first:
        return "nothing"
    height, width = input.size(2), input.size(3)
    if group.padding == "valid":
        height, width = height - 2, width - 2
    # A norm, or a ReLU that isn't in place, makes NCHW of a map that may be either.
    if weight.size(0) == 1 or height * width == 1:
        return "everything"
    if group.norm is not None and not is_folded_cheaply(weight, input, height * width):
        return "norm"
    if group.operator == "conv3x3_relu_pool" or group.pools_first:
        if height < 2 or width < 2 or (group.ceil_mode and cuts_windows(height, width)):
            return "pooling"
        if group.pools_first and height < 4 and width < 4:  # the ReLU gets one pixel
            return "pooling"
    return "nothing"


def _kept_without(group: Group, behind: list[Group | nn.Module], run: list[Tensor]) -> str:
    """What a group is to be without, so that its result may be changed in place.

    The operators keep their result for the backward pass, torch's pooling and LeakyReLU their
    input.

    Args:
        group: what is to run.
        behind: what follows it, in reverse.
        run: what the run's format follows from.
    """
    if group.batch_norm is not None:
        return "nothing"  # none of its operators keeps what it returns
    if group.operator == "conv3x3_relu_pool" and not group.pools_first:
        last = "pooling"
    elif group.operator == "conv3x3_relu" and group.negative_slope and not group.layers[-1].inplace:
        last = "relu"
    else:
        return "nothing"
    for step in reversed(behind):
        if isinstance(step, Group):
            return "nothing"
        if step.__dict__.get("inplace", False):
            return last
        if not isinstance(step, _PASSING):
            return "nothing"
    # Nobody knows what becomes of the Sequential's result, unless that is a copy in another format.
    # A pooling's is rarely changed.
    copies = not any(map(suggests_channels_last, (*run, group.conv.weight)))
    return "nothing" if last == "pooling" or copies else last


_PASSING = (nn.Identity, nn.Dropout, nn.Flatten)  # may return what they are given, or a view of it


def _in_bands(
    group: Group, behind: Group | nn.Module, input: Tensor
) -> tuple[bands.Layer, bands.Layer] | None:
    """Both groups' layers, if they are to be computed together, in bands."""
    if group.operator != "conv3x3_relu" or not isinstance(behind, Group):
        return None
    if behind.operator != "conv3x3_relu_pool" or behind.pools_first or behind.ceil_mode:
        return None
    layers = []
    for one in (group, behind):
        has_norm = one.norm is not None or one.batch_norm is not None
        if has_norm or one.negative_slope or one.padding != "zeros":
            return None
        layers.append(bands.Layer(one.conv.weight, one.conv.bias, None))
    first, second = layers
    return (first, second) if bands.is_worth_it(input, first, second) else None


def _compute(group: Group, input: Tensor) -> Tensor:
    conv, operator = group.conv, group.operator
    if conv is None:
        return max_pool2x2(input)
    bias, scale = conv.bias, None
    if group.norm is not None:
        scale, bias = scale_and_bias(group.norm, bias)
    if operator == "conv3x3" or group.batch_norm is not None:
        output = conv3x3(input, conv.weight, bias, scale=scale, padding=group.padding)
        if group.batch_norm is not None:
            has_relu = operator != "conv3x3"
            output = normalise(group.batch_norm, output, has_relu, group.negative_slope)
        pools = group.pools_first or operator == "conv3x3_relu_pool"
        return max_pool2x2(output) if pools else output
    run = conv3x3_relu_pool if operator == "conv3x3_relu_pool" else conv3x3_relu
    return run(
        input, conv.weight, bias, scale=scale, negative_slope=group.negative_slope,
        padding=group.padding,
    )  # fmt: skip


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
    operators: list[str] = []
    for step in groups:
        operators.append(step.operator)
        if step.operator == "conv3x3" and step.pools_first:
            operators.append("max_pool2x2")
    convolutions = [step for step in groups if step.conv is not None]
    weights = [step.conv.weight for step in convolutions]
    # A list of tensors is traceable, one with None isn't.
    biases = [
        no_elements(weight) if step.conv.bias is None else step.conv.bias
        for step, weight in zip(convolutions, weights, strict=True)
    ]
    slopes = [float(step.negative_slope) for step in convolutions]
    paddings = [step.padding for step in convolutions]
    # A script, because its loop and its choice of a format stay in the trace.
    return torch.jit.script(_traced_run)(input, operators, weights, biases, slopes, paddings)


def _traced_run(
    input: Tensor,
    operators: List[str],  # noqa: UP006  (TorchScript's spelling)
    weights: List[Tensor],  # noqa: UP006
    biases: List[Tensor],  # noqa: UP006
    slopes: List[float],  # noqa: UP006
    paddings: List[str],  # noqa: UP006
) -> Tensor:
    output, channels_last, layer = input, suggests_channels_last(input), 0
    for operator in operators:
        if operator == "max_pool2x2":
            output = max_pool2x2(output)
            continue
        weight, slope, padding = weights[layer], slopes[layer], paddings[layer]
        bias: Optional[Tensor] = None
        if biases[layer].numel() > 0:
            bias = biases[layer]
        layer += 1
        channels_last = channels_last and keeps_channels_last(padding)
        channels_last = channels_last or suggests_channels_last(weight)
        if operator == "conv3x3_relu_pool":
            output = conv3x3_relu_pool(output, weight, bias, negative_slope=slope, padding=padding)
        elif operator == "conv3x3_relu":
            output = conv3x3_relu(output, weight, bias, negative_slope=slope, padding=padding)
        else:
            output = conv3x3(output, weight, bias, padding=padding)
    return lay_out(output, channels_last)
