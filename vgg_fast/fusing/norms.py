"""A batch norm in eval mode behind a convolution, in a graph: as a scale, or inside the weight.

    scale = gamma / √(var + eps)        bias' = (bias - mean) · scale + beta

The operators take a scale, which costs nothing and leaves the weight what it is. Where gamma wants
a gradient, the graph multiplies the weight by it.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from vgg_fast.fusing import spellings
from vgg_fast.fusing.spellings import BatchNorm, value


def why_not_taken(
    norm: BatchNorm, convolution: Node, weight: Node, places: dict[Node, int]
) -> str | None:
    """Why the operator can't compute the norm as well; None if it can. Completes "it ...".

    Args:
        norm: what follows.
        convolution: what it follows.
        weight: of the convolution.
        places: of all nodes in the graph.
    """
    statistics = (norm.running_mean, norm.running_var)
    if norm.training is not False or None in statistics:
        return "is followed by a batch norm in training mode"
    arguments = [a for a in (*statistics, norm.weight, norm.bias) if a is not None]
    if not all(spellings.is_plain(value(a)) for a in arguments) or not isinstance(
        norm.eps, (float, Node)
    ):
        return "is followed by a batch norm of tensors that aren't plain ones"
    here = places[convolution]
    for argument in _read_by(norm):
        written = [u for u in argument.users if spellings.written_by(u) is argument]
        late = places[argument] > here and not _can_move(argument)
        if late or any(here < places[u] for u in written):
            return "is followed by a batch norm whose tensors are computed later"
    result, filters = value(convolution), value(weight)
    if not is_scale(norm, result):
        if torch.float16 in (result.dtype, filters.dtype):
            return "is followed by a batch norm whose scale could leave float16's range"
        learns = any(_wants_gradient(a) for a in (norm.weight, norm.bias))
        if learns and result.requires_grad and not filters.requires_grad:
            return "is followed by a batch norm that wants gradients where the weight doesn't"
    if not is_free(norm, result) and _hint(filters) > _hint(result):
        return "is followed by a batch norm, and has more weights than pixels to scale"
    return None


def is_scale(norm: BatchNorm, result: Tensor) -> bool:
    """Whether the operator gets a scale for the norm of ``result``, or a weight times that."""
    return not (result.requires_grad and _wants_gradient(norm.weight))


def is_free(norm: BatchNorm, result: Tensor) -> bool:
    """Whether no call multiplies a weight, as the others and all backward passes do.

    Inductor folds what is frozen, once.
    """
    from torch._inductor import config

    return not result.requires_grad and (is_scale(norm, result) or config.freezing)


def scale_and_bias(graph: Graph, norm: BatchNorm, bias: Node | None) -> tuple[Node, Node]:
    """Nodes that compute the norm's scale, and the bias that goes with it, in fp32 or fp64."""

    def call(function: Any, *args: Any) -> Node:
        return graph.call_function(function, args)

    def wide(tensor: Node) -> Node:
        narrow = value(tensor).dtype in (torch.bfloat16, torch.float16)
        return graph.call_method("float", (tensor,)) if narrow else tensor

    scale = call(torch.rsqrt, call(operator.add, wide(norm.running_var), norm.eps))
    if norm.weight is not None:
        scale = call(operator.mul, wide(norm.weight), scale)
    mean = wide(norm.running_mean)
    shift = call(operator.neg, mean) if bias is None else call(operator.sub, wide(bias), mean)
    shift = call(operator.mul, shift, scale)
    if norm.bias is not None:
        shift = call(operator.add, shift, wide(norm.bias))
    return scale, shift


def multiplied(graph: Graph, weight: Node, scale: Node, bias: Node) -> tuple[Node, Node]:
    """Nodes that compute ``weight`` times ``scale``; it and the bias have the weight's dtype."""
    dtype = value(weight).dtype
    if dtype in (torch.bfloat16, torch.float16):
        weight = graph.call_method("float", (weight,))
    scaled = graph.call_function(
        operator.mul, (weight, graph.call_method("view", (scale, -1, 1, 1, 1)))
    )
    return (
        graph.call_method("to", (scaled,), {"dtype": dtype}),
        graph.call_method("to", (bias,), {"dtype": dtype}),
    )


def move_before(node: Node, norm: BatchNorm) -> None:
    """Put what the norm reads in front of ``node``, where the operator is to stand."""
    for argument in _read_by(norm):
        if argument.op != "placeholder" and _can_move(argument):
            node.prepend(argument)


def _read_by(norm: BatchNorm) -> list[Node]:
    """What a batch norm in eval mode reads besides its input; under dynamic shapes eps as well."""
    read = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    return [argument for argument in read if isinstance(argument, Node)]


def _can_move(node: Node) -> bool:
    """Whether ``node`` gives the same wherever it stands: what is read from a model's state."""
    if node.op == "call_method" and node.target == "item":
        return all(input.op == "placeholder" for input in node.all_input_nodes)
    return node.op == "get_attr"


def _wants_gradient(parameter: Node | None) -> bool:
    tensor = value(parameter)
    return tensor is not None and tensor.requires_grad


def _hint(tensor: Tensor) -> float:
    """The number of elements; of what is symbolic, the one that it was traced with."""
    shape: tuple[Any, ...] = tensor.shape
    sizes = (s if type(s) is int else getattr(s.node, "hint", None) for s in shape)
    return math.prod(math.inf if size is None else size for size in sizes)
